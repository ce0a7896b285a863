"""What is computed next: a pure policy over a queue, with an injected clock.

On a CPU a batch padded to its longest row costs more than no batch at all. So rows wait by their
length, and a batch begins with the length of the call that has waited longest and takes in the
lengths beside it only as long as padding them costs less than a run of their own, by the costs
measured on this machine. A call with rows left over goes to the back: one of a thousand texts holds
up none of one.
"""

import bisect
import heapq
import itertools
import math
from collections.abc import Callable, Iterator

from service.batch import Batch, Entry
from service.costs import CostTable
from service.errors import DeadlineExceeded, InvalidRequest, Overloaded, Violation
from service.types import Variant

HEADROOM = 0.5  # share of its time that a call may spend waiting, by estimate, to be let in
MAX_ATTENTION_ELEMENTS = 1 << 25  # B·L·H·S·S of one batch: 128 MiB in float32


class Lane:
    """The rows of one length that wait: those of each call, `rows` in all."""

    __slots__ = ("calls", "rows")

    def __init__(self) -> None:
        self.calls: dict[Entry, list[int]] = {}
        self.rows = 0


class Scheduler:
    """The queue: bounded in tokens, ordered by length, aware of deadlines.

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
        self.queued_s = 0.0
        self._calls: dict[Entry, None] = {}  # those that wait, by turn
        self._lanes: dict[Variant, dict[int, Lane]] = {variant: {} for variant in Variant}
        self._deadlines: list[tuple[float, int, Entry]] = []
        self._numbers = itertools.count()

    @property
    def queued_calls(self) -> int:
        """Calls that wait with all or a part of their rows."""
        return len(self._calls)

    def wait_s(self) -> float:
        """Seconds until all that is queued is computed, by the speed seen lately."""
        return self.queued_s / self.parallel

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
            # What is computed and then comes too late is work lost to those who could be answered.
            most_s = left_s * HEADROOM
            if self.queued_s + compute_s <= most_s * self.parallel or not self.queued_tokens:
                return
            answer_s = (self._ahead_s(tokens) + compute_s) / self.parallel
            if answer_s > most_s:
                raise DeadlineExceeded(
                    f"the deadline is in {left_s:.3f} s; the answer would take {answer_s:.3f} s "
                    "by estimate and may take twice that"
                )

    def add(self, entry: Entry) -> None:
        """Queue an entry, all its rows or none. Raises as `check` does."""
        variant = entry.request.variant
        waiting: dict[int, list[int]] = {}
        for row, ids in enumerate(entry.input_ids):
            waiting.setdefault(len(ids), []).append(row)
        lengths = [length for length, rows in waiting.items() for _ in rows]
        tokens, compute_s = sum(lengths), self.costs.expect_s(variant, lengths)
        self.check(tokens, entry.deadline, compute_s)
        lanes = self._lanes[variant]
        for length, rows in waiting.items():
            lane = lanes.get(length)
            if lane is None:
                lane = lanes[length] = Lane()
            lane.calls[entry] = rows
            lane.rows += len(rows)
        entry.waiting, entry.missing = waiting, len(entry.input_ids)
        self._calls[entry] = None
        if entry.deadline is not None:
            if len(self._deadlines) > 2 * len(self._calls):  # answered long before they expire
                self._deadlines = [one for one in self._deadlines if one[2] in self._calls]
                heapq.heapify(self._deadlines)
            heapq.heappush(self._deadlines, (entry.deadline, next(self._numbers), entry))
        self._wait(entry, tokens, compute_s)

    def next_batch(self) -> tuple[Batch | None, list[Entry]]:
        """The batch to run now, if any, and the entries whose deadline passed while they waited.

        What is cancelled, ended or expired leaves the queue without being computed.
        """
        expired = self._expire()
        batch = None
        while batch is None and self._calls:
            batch = self._gather(next(iter(self._calls)))
        return batch, expired

    def forget(self, entry: Entry) -> None:
        """Take an entry that has ended out of the queue."""
        lanes = self._lanes[entry.request.variant]
        for length, rows in entry.waiting.items():
            del lanes[length].calls[entry]
            self._thin(lanes, length, len(rows))
        entry.waiting = {}
        self._calls.pop(entry, None)
        self._wait(entry, -entry.waiting_tokens, -entry.waiting_s)

    def drain(self) -> list[Entry]:
        """Empty the queue; returns the entries still waited for."""
        waiting = list(self._calls)
        for entry in waiting:
            self.forget(entry)
        return [entry for entry in waiting if not entry.abandoned]

    def _expire(self) -> list[Entry]:
        """Take out all whose deadline has passed; returns them."""
        expired, now = [], self.clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            entry = heapq.heappop(self._deadlines)[2]
            if entry in self._calls:
                if not entry.abandoned:
                    expired.append(entry)
                self.forget(entry)
        return expired

    def _gather(self, oldest: Entry) -> Batch | None:
        """A batch with rows of the oldest call; None where that has been abandoned."""
        variant, length = oldest.request.variant, next(iter(oldest.waiting))
        lengths = self._widen(variant, length)
        room = self._most_rows(lengths[-1], variant)
        parts: dict[Entry, list[int]] = {}
        lengths.sort(key=lambda other: other != length)  # the oldest call's own length first
        for entry, at in self._waiting(variant, lengths):
            if not room:
                break
            if entry.abandoned:
                self.forget(entry)
            elif at in entry.waiting:
                taken = self._take(entry, at, room)
                parts.setdefault(entry, []).extend(taken)
                room -= len(taken)
        for entry in parts:
            self._to_the_back(entry)
        return Batch(variant, list(parts.items())) if parts else None

    def _widen(self, variant: Variant, length: int) -> list[int]:
        """The lengths to run with rows of `length`: of those beside it always the one that padding
        costs least for, while that is less than a run of its own."""
        lanes, cost = self._lanes[variant], self.costs.of(variant)
        known = sorted(lanes)
        low = bisect.bisect_left(known, length)
        high = low + 1
        rows, width = lanes[length].rows, length
        while rows < self._most_rows(width, variant):
            down_s = up_s = math.inf
            if low > 0:
                shorter = known[low - 1]
                down_s = lanes[shorter].rows * (cost.row_s(width) - cost.row_s(shorter))
            if high < len(known):
                up_s = rows * (cost.row_s(known[high]) - cost.row_s(width))
                if rows >= self._most_rows(known[high], variant):
                    up_s = math.inf
            if min(down_s, up_s) >= cost.run_s:
                break
            if down_s <= up_s:
                low -= 1
                rows += lanes[known[low]].rows
            else:
                width = known[high]
                rows += lanes[width].rows
                high += 1
        return known[low:high]

    def _waiting(self, variant: Variant, lengths: list[int]) -> Iterator[tuple[Entry, int]]:
        lanes = self._lanes[variant]
        for length in lengths:
            # A copy: what is taken leaves the lane, and the last to leave takes the lane along.
            for entry in list(lanes[length].calls) if length in lanes else ():
                yield entry, length

    def _take(self, entry: Entry, length: int, most: int) -> list[int]:
        """Rows of an entry to compute now, out of those that wait at one length."""
        variant = entry.request.variant
        lanes, waiting = self._lanes[variant], entry.waiting[length]
        taken, left = waiting[:most], waiting[most:]
        if left:
            entry.waiting[length] = lanes[length].calls[entry] = left
        else:
            del entry.waiting[length]
            del lanes[length].calls[entry]
        self._thin(lanes, length, len(taken))
        tokens = len(taken) * length
        self._wait(entry, -tokens, -entry.waiting_s * tokens / entry.waiting_tokens)
        return taken

    def _to_the_back(self, entry: Entry) -> None:
        """Let an entry that was served wait for its next turn with what is left of it."""
        del self._calls[entry]
        if entry.waiting:
            self._calls[entry] = None
            lanes = self._lanes[entry.request.variant]
            for length, rows in entry.waiting.items():
                del lanes[length].calls[entry]
                lanes[length].calls[entry] = rows

    def _thin(self, lanes: dict[int, Lane], length: int, rows: int) -> None:
        lanes[length].rows -= rows
        if not lanes[length].rows:
            del lanes[length]

    def _wait(self, entry: Entry, tokens: int, seconds: float) -> None:
        """Account for tokens that have begun to wait, or ceased to."""
        entry.waiting_tokens += tokens
        entry.waiting_s += seconds
        self.queued_tokens += tokens
        # What rounding leaves behind must not outlast the queue.
        self.queued_s = self.queued_s + seconds if self.queued_tokens else 0.0

    def _ahead_s(self, tokens: int) -> float:
        """Seconds of work ahead of a new call of so many tokens: a batch a turn, in turn."""
        share = max(1, math.ceil(tokens / self.max_batch_tokens)) * self.max_batch_tokens
        return sum(
            entry.waiting_s * min(1.0, share / entry.waiting_tokens) for entry in self._calls
        )

    def _most_rows(self, width: int, variant: Variant) -> int:
        """Rows of so many padded tokens that a batch may hold; one always."""
        most = self.max_batch_tokens // width
        if variant is Variant.FULL:
            most = min(most, MAX_ATTENTION_ELEMENTS // (self.attention_maps * width**2))
        return max(1, most)
