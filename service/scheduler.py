"""What is computed next: a pure policy over a queue, with an injected clock.

Calls wait by turn. The front holds the oldest of them, as many rows as make one batch for each
thread and one to spare, and only rows at the front are computed: a call is begun late and then
finished soon, so that little is lost on callers who go. In its turn a call has two batches' worth
of rows there; once they are computed it queues again, behind all who have come meanwhile, so a call
of a thousand texts holds up none of one.

On a CPU a batch padded to its longest row costs more than no batch at all. So rows at the front lie
by their length, and a batch begins with the length of the call that has been there longest and
takes in the lengths beside it only as long as padding them costs less than a run of their own, by
the costs measured on this machine. It ends where more rows would save next to nothing.
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

PADDING_SHARE = 0.5  # of a run, that padding may cost: left out, a row would rarely run alone
RUN_SHARE = 0.05  # of a batch's time that its run itself may take: to save more is not worth a wait
TURN = 2  # batches' worth of rows: a call of a little more than one would else wait twice
LEAST_RUN_S = 1e-4  # what handing a batch to a thread and back costs, however fast the backend
HEADROOM = 0.5  # share of its time that a call may spend waiting, by estimate, to be let in
LEAST_RETRY_S = 0.01
MAX_ATTENTION_ELEMENTS = 1 << 25  # B·L·H·S·S of one batch: 128 MiB in float32


class Lane:
    """The rows of one length at the front: whose they are, by turn, and how many in all."""

    __slots__ = ("calls", "rows")

    def __init__(self) -> None:
        self.calls: dict[Entry, None] = {}
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
        self._queue: dict[Entry, None] = {}  # calls with rows that are not at the front, by turn
        self._front: dict[Entry, None] = {}  # calls with rows that are, by turn
        self._begun: dict[Entry, None] = {}  # calls with more rows than those of their turn
        self._front_batches = 0.0
        self._lanes: dict[Variant, dict[int, Lane]] = {variant: {} for variant in Variant}
        self._deadlines: list[tuple[float, int, Entry]] = []
        self._numbers = itertools.count()

    @property
    def queued_calls(self) -> int:
        """Calls that wait; one of more than its turn may count twice."""
        return len(self._queue) + len(self._front) + len(self._begun)

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
                retry_after_s=max(LEAST_RETRY_S, self.wait_s()),
            )
        if deadline is not None:
            left_s = deadline - self.clock()
            if left_s <= 0:
                raise DeadlineExceeded("the deadline had passed before work began")
            # What is computed and then comes too late is work lost to those who could be answered.
            most_s = left_s * HEADROOM
            if self.queued_s + compute_s <= most_s * self.parallel or not self.queued_tokens:
                return
            answer_s = (self._ahead_s(compute_s) + compute_s) / self.parallel
            if answer_s > most_s:
                raise DeadlineExceeded(
                    f"the deadline is in {left_s:.3f} s; the answer would take {answer_s:.3f} s "
                    "by estimate and may take twice that"
                )

    def add(self, entry: Entry) -> None:
        """Queue an entry, all its rows or none. Raises as `check` does."""
        lengths = [len(ids) for ids in entry.input_ids]
        tokens, compute_s = sum(lengths), self.costs.expect_s(entry.request.variant, lengths)
        self.check(tokens, entry.deadline, compute_s)
        entry.missing = len(lengths)
        # Like lengths have their turn together.
        entry.later.extend(sorted(range(len(lengths)), key=lengths.__getitem__))
        self._queue[entry] = None
        if entry.deadline is not None:
            if len(self._deadlines) > 2 * self.queued_calls + 2:  # answered long before they expire
                self._deadlines = [one for one in self._deadlines if one[2].waiting_tokens]
                heapq.heapify(self._deadlines)
            heapq.heappush(self._deadlines, (entry.deadline, next(self._numbers), entry))
        self._wait(entry, tokens, compute_s)

    def next_batch(self) -> tuple[Batch | None, list[Entry]]:
        """The batch to run now, if any, and the entries whose deadline passed while they waited.

        What is cancelled, ended or expired leaves the queue without being computed.
        """
        expired = self._expire()
        if (only := self._only_row()) is not None:
            return only, expired
        batch = None
        self._advance()
        while batch is None and (self._front or self._begun):
            while self._begun and self._front_batches < 1:  # rather a turn too early than half full
                self._queue_again(next(iter(self._begun)))
                self._advance()
            if self._front:
                batch = self._gather(next(iter(self._front)))
            self._advance()
        return batch, expired

    def done(self, batch: Batch) -> None:
        """A batch has been computed, whatever came of it: whose turn is over, but not their rows,
        queue again."""
        for entry, rows in batch.parts:
            entry.turn -= len(rows)
            if not entry.turn and entry in self._begun:
                self._queue_again(entry)

    def forget(self, entry: Entry) -> None:
        """Take an entry that has ended out of the queue."""
        lanes = self._lanes[entry.request.variant]
        for length, rows in entry.waiting.items():
            del lanes[length].calls[entry]
            self._thin(entry.request.variant, length, len(rows))
        entry.waiting = {}
        entry.later.clear()
        for calls in (self._queue, self._front, self._begun):
            calls.pop(entry, None)
        self._wait(entry, -entry.waiting_tokens, -entry.waiting_s)

    def drain(self) -> list[Entry]:
        """Empty the queue; returns the entries still waited for."""
        waiting = list(self._waiting())
        for entry in waiting:
            self.forget(entry)
        return [entry for entry in waiting if not entry.abandoned]

    def _only_row(self) -> Batch | None:
        """The batch of a call of one row where nothing else waits: there is nothing to choose."""
        if len(self._queue) != 1 or self._front or self._begun:
            return None
        (entry,) = self._queue
        if len(entry.later) != 1 or entry.abandoned:
            return None
        self._queue.clear()
        parts = [(entry, [entry.later.popleft()])]
        entry.turn = 1
        self._wait(entry, -entry.waiting_tokens, -entry.waiting_s)
        return Batch(entry.request.variant, parts)

    def _expire(self) -> list[Entry]:
        """Take out all whose deadline has passed; returns them."""
        expired, now = [], self.clock()
        while self._deadlines and self._deadlines[0][0] <= now:
            entry = heapq.heappop(self._deadlines)[2]
            if entry.waiting_tokens:
                if not entry.abandoned:
                    expired.append(entry)
                self.forget(entry)
        return expired

    def _advance(self) -> None:
        """Let calls come to the front, each for its turn, while there is room."""
        while self._queue and self._front_batches < self.parallel + 1:
            entry = next(iter(self._queue))
            del self._queue[entry]
            if entry.abandoned:
                self.forget(entry)
                continue
            batches, lanes = 0.0, self._lanes[entry.request.variant]
            while entry.later and batches < TURN:
                row = entry.later.popleft()
                length = len(entry.input_ids[row])
                lane = lanes.setdefault(length, Lane())
                lane.calls[entry] = None
                lane.rows += 1
                entry.waiting.setdefault(length, []).append(row)
                entry.turn += 1
                batches += self._share(length, entry.request.variant)
            self._front[entry] = None
            self._front_batches += batches
            if entry.later:
                self._begun[entry] = None

    def _queue_again(self, entry: Entry) -> None:
        del self._begun[entry]
        self._queue[entry] = None

    def _gather(self, oldest: Entry) -> Batch | None:
        """A batch with rows of the oldest call; None where that has been abandoned."""
        variant, length = oldest.request.variant, next(iter(oldest.waiting))
        lengths = self._widen(variant, length)
        room = self._most_rows(lengths[-1], variant)
        parts: dict[Entry, list[int]] = {}
        lengths.sort(key=lambda other: other != length)  # the oldest call's own length first
        for entry, at in self._at_front(variant, lengths):
            if not room:
                break
            if entry.abandoned:
                self.forget(entry)
            elif at in entry.waiting:
                taken = self._take(entry, at, room)
                parts.setdefault(entry, []).extend(taken)
                room -= len(taken)
        return Batch(variant, list(parts.items())) if parts else None

    def _widen(self, variant: Variant, length: int) -> list[int]:
        """The lengths to run with rows of `length`: of those beside it always the one that padding
        costs least for, while that is less than a run of its own."""
        lanes, cost = self._lanes[variant], self.costs.of(variant)
        known, run_s = sorted(lanes), self._run_s(variant)
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
            if min(down_s, up_s) >= PADDING_SHARE * run_s:
                break
            if down_s <= up_s:
                low -= 1
                rows += lanes[known[low]].rows
            else:
                width = known[high]
                rows += lanes[width].rows
                high += 1
        return known[low:high]

    def _at_front(self, variant: Variant, lengths: list[int]) -> Iterator[tuple[Entry, int]]:
        lanes = self._lanes[variant]
        for length in lengths:
            # A copy: what is taken leaves the lane, and the last to leave takes the lane along.
            for entry in list(lanes[length].calls) if length in lanes else ():
                yield entry, length

    def _take(self, entry: Entry, length: int, most: int) -> list[int]:
        """Rows of an entry to compute now, out of those at the front of one length."""
        lanes, rows = self._lanes[entry.request.variant], entry.waiting[length]
        taken, rows[:most] = rows[:most], []
        if not rows:
            del entry.waiting[length], lanes[length].calls[entry]
            if not entry.waiting:
                del self._front[entry]
        self._thin(entry.request.variant, length, len(taken))
        tokens = len(taken) * length
        self._wait(entry, -tokens, -entry.waiting_s * tokens / entry.waiting_tokens)
        return taken

    def _thin(self, variant: Variant, length: int, rows: int) -> None:
        """Account for rows of one length that have left the front."""
        lanes = self._lanes[variant]
        lanes[length].rows -= rows
        if not lanes[length].rows:
            del lanes[length]
        # What rounding leaves behind must not outlast the front.
        self._front_batches -= rows * self._share(length, variant)
        if not any(self._lanes.values()):
            self._front_batches = 0.0

    def _wait(self, entry: Entry, tokens: int, seconds: float) -> None:
        """Account for tokens that have begun to wait, or ceased to."""
        entry.waiting_tokens += tokens
        entry.waiting_s += seconds
        self.queued_tokens += tokens
        # What rounding leaves behind must not outlast the queue.
        self.queued_s = self.queued_s + seconds if self.queued_tokens else 0.0

    def _ahead_s(self, compute_s: float) -> float:
        """Seconds of work ahead of a new call that takes `compute_s` itself.

        Calls take turns: each of the others has as many turns before it as it needs itself.
        """
        most_s = {v: max(compute_s, self._turn_s(v) * self.costs.pace(v)) for v in Variant}
        return sum(min(entry.waiting_s, most_s[entry.request.variant]) for entry in self._waiting())

    def _waiting(self) -> dict[Entry, None]:
        """All calls with rows that are not yet computed."""
        return self._front | self._queue | self._begun

    def _turn_s(self, variant: Variant) -> float:
        """Seconds of the longest turn, that of short rows."""
        pays_s = self._run_s(variant) / RUN_SHARE
        return TURN * min(pays_s, self.max_batch_tokens * self.costs.of(variant).token_s)

    def _run_s(self, variant: Variant) -> float:
        """Seconds of a run, whatever is in it."""
        return max(self.costs.of(variant).run_s, LEAST_RUN_S)

    def _share(self, width: int, variant: Variant) -> float:
        """How much of a batch a row of so many padded tokens takes: one that is full holds 1."""
        row_s = self.costs.of(variant).row_s(width)
        share = max(width / self.max_batch_tokens, row_s * RUN_SHARE / self._run_s(variant))
        if variant is Variant.FULL:
            share = max(share, self.attention_maps * width**2 / MAX_ATTENTION_ELEMENTS)
        return share

    def _most_rows(self, width: int, variant: Variant) -> int:
        """Rows of so many padded tokens that a batch holds; one always."""
        return max(1, int(1 / self._share(width, variant) + 1e-9))
