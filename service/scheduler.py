"""What is computed next: a pure policy over a queue, with an injected clock.

Rows wait in buckets of like length and equal variant, since on a CPU a batch padded to its longest
row costs more than no batch at all. The bucket whose first row has waited longest goes next, so
long texts do not starve; it is filled from that bucket alone, up to a budget of padded tokens.
"""

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from model.tokenizer import PAD_ID
from service.errors import DeadlineExceeded, InvalidRequest, Overloaded, Violation
from service.types import NO_VIEWS, FloatArray, IntArray, Variant, View, ViewRequest

# Lengths within one bucket differ by at most a quarter, so padding wastes a ninth on average.
BUCKET_RATIO = 1.25
MAX_ATTENTION_ELEMENTS = 1 << 25  # B·L·H·S·S of one batch: 128 MiB in float32

_arrivals = itertools.count()


@dataclass(slots=True, eq=False)
class Entry:
    """One call of n rows, and what has come of it so far.

    `input_ids` holds n arrays [S]; `deadline` is on the scheduler's clock, in seconds. `logits` and
    `probabilities` [n, C] and `views` (one dict a row) fill as batches return. Its future belongs
    to the batcher alone, which sets it when `missing` is 0.
    """

    input_ids: list[IntArray]
    request: ViewRequest = NO_VIEWS
    deadline: float | None = None
    future: "asyncio.Future[Entry] | None" = None
    logits: FloatArray | None = None
    probabilities: FloatArray | None = None
    views: list[dict[View, FloatArray]] = field(default_factory=list)
    missing: int = 0
    waiting_tokens: int = 0
    ended: bool = False

    @property
    def abandoned(self) -> bool:
        """True when nobody waits for it any more: answered, failed or cancelled."""
        return self.ended or (self.future is not None and self.future.cancelled())


@dataclass(slots=True)
class Chunk:
    """Rows of one entry that wait in one bucket; `arrival` numbers the entries."""

    arrival: int
    entry: Entry
    rows: list[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that run together: for each entry some of its rows, in this order along B."""

    variant: Variant
    parts: list[tuple[Entry, list[int]]]

    @property
    def rows(self) -> int:
        """B."""
        return sum(len(rows) for _, rows in self.parts)

    def lengths(self) -> Iterator[int]:
        """Tokens of each row, without padding."""
        return (len(entry.input_ids[row]) for entry, rows in self.parts for row in rows)

    def arrays(self) -> tuple[IntArray, IntArray]:
        """input_ids and attention_mask [B, S], S being the longest row."""
        lengths = list(self.lengths())
        input_ids = np.full((len(lengths), max(lengths)), PAD_ID, dtype=np.int64)
        mask = np.zeros_like(input_ids)
        at = 0
        for entry, rows in self.parts:
            for row in rows:
                input_ids[at, : lengths[at]] = entry.input_ids[row]
                mask[at, : lengths[at]] = 1
                at += 1
        return input_ids, mask

    def halves(self) -> tuple["Batch", "Batch"]:
        """The same rows in two batches, for finding the one that fails."""
        flat = [(entry, row) for entry, rows in self.parts for row in rows]
        middle = len(flat) // 2
        return self._of(flat[:middle]), self._of(flat[middle:])

    def _of(self, flat: list[tuple[Entry, int]]) -> "Batch":
        return Batch(self.variant, [(entry, [row]) for entry, row in flat])


class Scheduler:
    """The queue: bounded in tokens, grouped by length, aware of deadlines.

    Not thread-safe and never sleeps; `clock` gives seconds, as `time.monotonic` does.
    """

    def __init__(
        self,
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        attention_maps: int,
        clock: Callable[[], float],
        parallel: int = 1,
    ) -> None:
        """`attention_maps` is L·H, which bounds batches of the full variant."""
        self.max_batch_tokens = max_batch_tokens
        self.max_queue_tokens = max_queue_tokens
        self.attention_maps = attention_maps
        self.clock = clock
        self.parallel = parallel
        self.queued_tokens = 0
        self._buckets: dict[tuple[Variant, int], deque[Chunk]] = {}
        self._seconds_per_token: float | None = None

    def wait_s(self, tokens: int = 0) -> float:
        """Seconds until the queue and `tokens` more are computed, by the speed seen lately."""
        return (self.queued_tokens + tokens) * (self._seconds_per_token or 0.0) / self.parallel

    def check(self, tokens: int, deadline: float | None) -> None:
        """Refuse what there is no room or no time for, before any work is done for it."""
        if tokens > self.max_queue_tokens:
            reason = f"{tokens} tokens in one call, the limit is {self.max_queue_tokens}"
            raise InvalidRequest([Violation("texts", reason)])
        if self.queued_tokens + tokens > self.max_queue_tokens:
            raise Overloaded(
                f"the queue is full: {self.queued_tokens} of {self.max_queue_tokens} tokens",
                retry_after_s=max(0.01, self.wait_s()),
            )
        if deadline is not None:
            left_s = deadline - self.clock()
            if left_s <= 0:
                raise DeadlineExceeded("the deadline had passed before work began")
            if (wait_s := self.wait_s(tokens)) > left_s:
                raise DeadlineExceeded(
                    f"the deadline is in {left_s:.3f} s, the answer would take {wait_s:.3f} s"
                )

    def add(self, entry: Entry) -> None:
        """Queue an entry, all its rows or none. Raises as `check` does."""
        tokens = sum(map(len, entry.input_ids))
        self.check(tokens, entry.deadline)
        variant, arrival = entry.request.variant, next(_arrivals)
        entry.missing = len(entry.input_ids)
        entry.waiting_tokens = tokens
        self.queued_tokens += tokens
        chunks: dict[int, Chunk] = {}
        for row, ids in enumerate(entry.input_ids):
            number = bucket(len(ids))
            if number not in chunks:
                chunks[number] = Chunk(arrival, entry, [])
                self._buckets.setdefault((variant, number), deque()).append(chunks[number])
            chunks[number].rows.append(row)

    def next_batch(self) -> tuple[Batch | None, list[Entry]]:
        """The batch to run now, if any, and the entries whose deadline passed while they waited.

        What is cancelled, ended or expired leaves the queue without being computed.
        """
        now = self.clock()
        expired: list[Entry] = []
        self._drop_dead_heads(now, expired)
        oldest = min(self._buckets.items(), key=lambda b: b[1][0].arrival, default=None)
        if oldest is None:
            return None, expired
        (variant, _), chunks = oldest
        parts: list[tuple[Entry, list[int]]] = []
        rows = width = 0
        while chunks:
            chunk = chunks[0]
            if self._dead(chunk.entry, now, expired):
                chunks.popleft()
                continue
            taken: list[int] = []
            for row in chunk.rows:
                length = len(chunk.entry.input_ids[row])
                if rows and not self._fits(rows + 1, max(width, length), variant):
                    break
                taken.append(row)
                rows, width = rows + 1, max(width, length)
                chunk.entry.waiting_tokens -= length
                self.queued_tokens -= length
            if taken:
                parts.append((chunk.entry, taken))
                chunk.rows = chunk.rows[len(taken) :]
            if chunk.rows:
                break
            chunks.popleft()
        if not chunks:
            del self._buckets[oldest[0]]
        return (Batch(variant, parts) if parts else None), expired

    def forget(self, entry: Entry) -> None:
        """Free the room of an entry that has ended; its rows leave when their turn comes."""
        self.queued_tokens -= entry.waiting_tokens
        entry.waiting_tokens = 0
        entry.ended = True

    def drain(self) -> list[Entry]:
        """Empty the queue; returns the entries still waited for."""
        waiting = {id(c.entry): c.entry for chunks in self._buckets.values() for c in chunks}
        self._buckets.clear()
        self.queued_tokens = 0
        return [entry for entry in waiting.values() if not entry.abandoned]

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn the speed from a batch that ran."""
        measured = seconds / max(tokens, 1)
        known = self._seconds_per_token
        self._seconds_per_token = measured if known is None else 0.9 * known + 0.1 * measured

    def _fits(self, rows: int, width: int, variant: Variant) -> bool:
        if rows * width > self.max_batch_tokens:
            return False
        elements = rows * self.attention_maps * width * width
        return variant is not Variant.FULL or elements <= MAX_ATTENTION_ELEMENTS

    def _drop_dead_heads(self, now: float, expired: list[Entry]) -> None:
        for key in list(self._buckets):
            chunks = self._buckets[key]
            while chunks and self._dead(chunks[0].entry, now, expired):
                chunks.popleft()
            if not chunks:
                del self._buckets[key]

    def _dead(self, entry: Entry, now: float, expired: list[Entry]) -> bool:
        if entry.abandoned:
            self.forget(entry)
            return True
        if entry.deadline is not None and entry.deadline <= now:
            self.forget(entry)
            expired.append(entry)
            return True
        return False


def bucket(length: int) -> int:
    """Number of the bucket that a row of `length` tokens waits in."""
    return math.ceil(math.log(max(length, 8), BUCKET_RATIO))
