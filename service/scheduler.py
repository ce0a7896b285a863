"""What is computed next: a pure policy over a queue, with an injected clock.

Rows wait in buckets of like length and equal variant, since on a CPU a batch padded to its longest
row costs more than no batch at all. The bucket whose first call has waited longest goes next, so
long texts do not starve; it is filled from that bucket alone, up to a budget of padded tokens. A
call with rows left over goes to the back, so that a call of a thousand texts holds up none of one.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from service.batch import Batch, Entry
from service.costs import CostTable, bucket
from service.errors import DeadlineExceeded, InvalidRequest, Overloaded, Violation
from service.types import Variant

MAX_ATTENTION_ELEMENTS = 1 << 25  # B·L·H·S·S of one batch: 128 MiB in float32


@dataclass(slots=True)
class Chunk:
    """Rows of one entry that wait in one bucket, `tokens` in all; the lowest `turn` goes first."""

    turn: int
    entry: Entry
    rows: list[int]
    seconds_per_token: float
    tokens: int = 0


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
        costs: CostTable | None = None,
    ) -> None:
        """`attention_maps` is L·H, which bounds batches of the full variant.

        `parallel` batches are computed side by side; `costs` says how long each will take.
        """
        self.max_batch_tokens = max_batch_tokens
        self.max_queue_tokens = max_queue_tokens
        self.attention_maps = attention_maps
        self.clock = clock
        self.parallel = parallel
        self.costs = costs or CostTable()
        self.queued_tokens = 0
        self._queued_s = 0.0
        self._buckets: dict[tuple[Variant, int], deque[Chunk]] = {}
        self._turns = itertools.count()

    def wait_s(self) -> float:
        """Seconds until all that is queued is computed, by the speed seen lately."""
        return self._queued_s / self.parallel

    def check(self, tokens: int, deadline: float | None, compute_s: float = 0.0) -> None:
        """Refuse what there is no room or no time for, before any work is done for it.

        `compute_s` is what its own tokens will take. With nothing waiting, time is no reason to
        refuse: after one slow spell an estimate would else shut out all it could learn better from.
        """
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
            if self._queued_s + compute_s <= left_s * self.parallel or not self.queued_tokens:
                return
            answer_s = (self._ahead_s(tokens) + compute_s) / self.parallel
            if answer_s > left_s:
                raise DeadlineExceeded(
                    f"the deadline is in {left_s:.3f} s, the answer would take {answer_s:.3f} s"
                )

    def add(self, entry: Entry) -> None:
        """Queue an entry, all its rows or none. Raises as `check` does."""
        variant, turn = entry.request.variant, next(self._turns)
        chunks: dict[int, Chunk] = {}
        for row, ids in enumerate(entry.input_ids):
            number = bucket(len(ids))
            if number not in chunks:
                speed = self.costs.seconds_per_token(variant, number)
                chunks[number] = Chunk(turn, entry, [], speed)
            chunks[number].rows.append(row)
            chunks[number].tokens += len(ids)
        tokens = sum(chunk.tokens for chunk in chunks.values())
        compute_s = sum(chunk.tokens * chunk.seconds_per_token for chunk in chunks.values())
        self.check(tokens, entry.deadline, compute_s)
        for number, chunk in chunks.items():
            self._buckets.setdefault((variant, number), deque()).append(chunk)
        entry.missing = len(entry.input_ids)
        self._wait(entry, tokens, compute_s)

    def next_batch(self) -> tuple[Batch | None, list[Entry]]:
        """The batch to run now, if any, and the entries whose deadline passed while they waited.

        What is cancelled, ended or expired leaves the queue without being computed.
        """
        now = self.clock()
        expired: list[Entry] = []
        self._drop_dead_heads(now, expired)
        oldest = min(self._buckets.items(), key=lambda b: b[1][0].turn, default=None)
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
            tokens = 0
            for row in chunk.rows:
                length = len(chunk.entry.input_ids[row])
                if rows and not self._fits(rows + 1, max(width, length), variant):
                    break
                taken.append(row)
                rows, width, tokens = rows + 1, max(width, length), tokens + length
            if not taken:
                break
            parts.append((chunk.entry, taken))
            self._wait(chunk.entry, -tokens, -tokens * chunk.seconds_per_token)
            chunks.popleft()
            if len(taken) < len(chunk.rows):
                chunk.rows = chunk.rows[len(taken) :]
                chunk.tokens -= tokens
                chunk.turn = next(self._turns)
                chunks.append(chunk)
                break
        if not chunks:
            del self._buckets[oldest[0]]
        return (Batch(variant, parts) if parts else None), expired

    def forget(self, entry: Entry) -> None:
        """Free the room of an entry that has ended; its rows leave when their turn comes."""
        self._wait(entry, -entry.waiting_tokens, -entry.waiting_s)
        entry.ended = True

    def drain(self) -> list[Entry]:
        """Empty the queue; returns the entries still waited for."""
        waiting = {id(c.entry): c.entry for chunks in self._buckets.values() for c in chunks}
        self._buckets.clear()
        for entry in waiting.values():
            self._wait(entry, -entry.waiting_tokens, -entry.waiting_s)
        return [entry for entry in waiting.values() if not entry.abandoned]

    def _wait(self, entry: Entry, tokens: int, seconds: float) -> None:
        """Account for tokens that have begun to wait, or ceased to."""
        entry.waiting_tokens += tokens
        entry.waiting_s += seconds
        self.queued_tokens += tokens
        # What rounding leaves behind must not outlast the queue.
        self._queued_s = self._queued_s + seconds if self.queued_tokens else 0.0

    def _ahead_s(self, tokens: int) -> float:
        """Seconds of work ahead of a new call of so many tokens: a batch a turn, in turn."""
        share = max(1, math.ceil(tokens / self.max_batch_tokens)) * self.max_batch_tokens
        chunks = itertools.chain.from_iterable(self._buckets.values())
        return sum(
            min(chunk.tokens, share) * chunk.seconds_per_token
            for chunk in chunks
            if not chunk.entry.ended
        )

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
