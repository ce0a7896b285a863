"""Keeps the device busy, and is the one owner of every future.

There is no timer: a device thread that is free takes the best batch there is at that moment, so
batches grow exactly while all threads are busy. The loop queues and answers; the threads choose,
compute and fill. What is little enough the loop computes itself, where a hand-over to a thread and
back would take longer or find nobody else to serve meanwhile.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import structlog

from model.tokenizer import UNK_ID
from service.backend import Backend, BackendGone, Outputs
from service.batch import Batch, Entry
from service.errors import BackendFailed, DeadlineExceeded, RealceError, Unavailable
from service.metrics import Metrics
from service.scheduler import Scheduler
from service.types import Result, Variant
from service.views import cut

# Seconds of work that the loop does itself, if the backend is prompt and idle: what takes no longer
# than handing it over, and of a lone call what others who come meanwhile can wait for.
LITTLE_S, LONE_S = 2e-4, 5e-3
ALONE_S = 0.02  # without company, after which a call counts as lone: a shorter gap is chance
LOOP = -1  # the loop among the threads
JOIN_S = 1.0  # that a thread has to end in, longer than a batch takes

log = structlog.get_logger("realce.batcher")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a batch: begun at `began` of the clock, computed in `seconds`; or an error."""

    batch: Batch
    began: float = 0.0
    seconds: float = 0.0
    error: Exception | None = None


class Batcher:
    """Runs what the scheduler chooses on a backend's threads.

    `metrics` counts what has come of rows. `on_failure` is called once, on the loop, when the
    backend is gone for good: lost, or busy with one batch for more than `hang_s` seconds of
    `clock`.
    """

    def __init__(
        self,
        backend: Backend,
        scheduler: Scheduler,
        on_failure: Callable[[], None],
        *,
        metrics: Metrics | None = None,
        hang_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._backend, self._scheduler, self._on_failure = backend, scheduler, on_failure
        self._hang_s, self._clock = hang_s, clock
        self._loop = asyncio.get_running_loop()
        self._refusal: Unavailable | None = None
        self._dispatching = False
        self._company_at = -math.inf  # when last a call came while another was under way
        # Guards the scheduler and what is running; held for microseconds.
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._running: dict[int, tuple[Batch, float]] = {}  # by thread, with when it began
        # A hung device must not keep the process from ending.
        self._threads = [
            threading.Thread(
                target=self._device, args=(number,), name=f"realce-device-{number}", daemon=True
            )
            for number in range(backend.parallel)
        ]
        for thread in self._threads:
            thread.start()
        self._heartbeat = self._loop.call_later(hang_s / 4, self._beat)

    def check(self, tokens: int, deadline: float | None, compute_s: float) -> None:
        """See `Scheduler.check`."""
        with self._lock:
            self._scheduler.check(tokens, deadline, compute_s)

    def submit(self, entry: Entry) -> "asyncio.Future[Entry]":
        """Queue an entry; the future gives it back filled. Raises as `Scheduler.add` does."""
        if self._refusal:
            raise Unavailable(str(self._refusal))
        entry.future, entry.queued_at = self._loop.create_future(), self._clock()
        with self._lock:
            if self._dispatching or self._running or self._scheduler.queued_tokens:
                self._company_at = entry.queued_at
            self._scheduler.add(entry)
            little = self._is_at_most(LITTLE_S)
            lone = not little and self._is_alone() and self._is_at_most(LONE_S)
        if not little and not self._dispatching:
            self._dispatching = True  # whoever comes in the same turn of the loop is company
            self._loop.call_soon(self._dispatch)
        if little or lone:
            self._run_all()
        return entry.future

    def forget(self, entry: Entry) -> None:
        """Nobody waits for an entry any more: what has not begun of it is not computed."""
        with self._lock:
            self._scheduler.forget(entry)

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait."""
        return self._scheduler.queued_tokens

    @property
    def idle(self) -> bool:
        """Is nothing queued and nothing running?"""
        with self._lock:
            return not self._running and not self._scheduler.queued_tokens

    def beat(self) -> None:
        """Give up on a backend that has been busy with one batch for too long."""
        now = self._clock()
        with self._lock:
            began = [since for _, since in self._running.values()]
        if began and now - min(began) > self._hang_s:
            self._give_up(BackendGone(f"a batch has been running for {now - min(began):.1f} s"))

    def close(self) -> None:
        """Fail what waits or runs and let go of the threads."""
        self._refuse_all("the server has stopped")

    async def wait_closed(self) -> None:
        """Wait until the threads have ended; not for one that hangs."""
        # Not a method of ours: a pool's thread lets go of what it ran after telling that it has.
        await asyncio.to_thread(_join, self._threads)

    def _beat(self) -> None:
        self.beat()
        if not self._refusal:
            self._heartbeat = self._loop.call_later(self._hang_s / 4, self._beat)

    def _dispatch(self) -> None:
        """On the loop, once all calls of this turn are queued: see that they are computed."""
        self._dispatching = False
        with self._lock:
            if self._scheduler.queued_tokens:
                self._work.notify()

    def _is_alone(self) -> bool:
        """Was there no company lately, and is there none now?"""
        return self._clock() - self._company_at > ALONE_S

    def _is_at_most(self, seconds: float) -> bool:
        """May the loop itself compute what waits, in about that time?"""
        prompt = self._backend.prompt and not self._running
        return prompt and self._scheduler.queued_s <= seconds

    def _run_all(self) -> None:
        """On the loop: compute what waits."""
        while self._scheduler.queued_tokens:
            with self._lock:
                batch, expired = self._take(LOOP)
            self._settle(self._compute(batch, LOOP) if batch else [], expired)

    def _take(self, number: int) -> tuple[Batch | None, list[Entry]]:
        """The best batch, now running on thread `number`, and who has come too late."""
        batch, expired = self._scheduler.next_batch()
        if batch is not None:
            self._running[number] = (batch, self._clock())
        return batch, expired

    def _device(self, number: int) -> None:
        """A device thread: take a batch, run it, hand what came of it to the loop."""
        while not self._refusal:
            with self._lock:
                batch, expired = self._take(number)
                if self._scheduler.queued_tokens:
                    self._work.notify()  # a call of many rows wakes one thread after another
                elif not batch and not expired and not self._refusal:
                    self._work.wait()
            outcomes = self._compute(batch, number) if batch else []
            if outcomes or expired:
                try:
                    self._loop.call_soon_threadsafe(self._settle, outcomes, expired)
                except RuntimeError:  # the loop is gone, and with it everybody who waited
                    return

    def _compute(self, batch: Batch, number: int) -> list[Outcome]:
        """Run a batch; if all of it fails, see whether anything would run."""
        try:
            outcomes = self._run(batch, number)
            if all(outcome.error is not None for outcome in outcomes):
                ids = np.full((1, 1), UNK_ID, dtype=np.int64)
                try:
                    self._backend.run(ids, np.ones_like(ids), Variant.PLAIN)
                except Exception as error:
                    gone = BackendGone(f"{type(error).__name__}: {error}")
                    return [Outcome(batch, error=gone)]
            for outcome in outcomes:
                if outcome.error is not None:  # the loop may hear of it too late for the next batch
                    for entry, _ in outcome.batch.parts:
                        self.forget(entry)
            return outcomes
        finally:
            with self._lock:
                del self._running[number]
                self._scheduler.done(batch)

    def _run(self, batch: Batch, number: int) -> list[Outcome]:
        """Run a batch; halve one that fails until the bad row is alone."""
        began, started = self._clock(), time.perf_counter()
        try:
            input_ids, mask = batch.arrays()
            outputs = self._backend.run(input_ids, mask, batch.variant)
            for name in ("logits", "evidence", "contributions"):
                if name in outputs and not np.isfinite(outputs[name]).all():
                    raise FloatingPointError(f"{name} are not finite")
            _fill(batch, outputs)
        except Exception as error:
            if isinstance(error, BackendGone) or batch.rows == 1:
                return [Outcome(batch, error=error)]
            outcomes = []
            for half in batch.halves():
                with self._lock:  # a batch of its own to the heartbeat
                    self._running[number] = (batch, self._clock())
                outcomes += self._run(half, number)
            return outcomes
        return [Outcome(batch, began, time.perf_counter() - started)]

    def _settle(self, outcomes: Iterable[Outcome], expired: Iterable[Entry]) -> None:
        """On the loop: answer those who are complete, fail those who failed or came too late."""
        for entry in expired:
            self._end(entry, DeadlineExceeded("the deadline passed in the queue"))
        for outcome in outcomes:
            batch, lengths = outcome.batch, list(outcome.batch.lengths())
            self._metrics.batch(lengths)
            if outcome.error is None:
                self._metrics.compute_s.observe(outcome.seconds)
                self._scheduler.costs.observe(batch.variant, lengths, outcome.seconds)
                self._answer(outcome)
            elif isinstance(outcome.error, BackendGone):
                self._end_all(batch, Unavailable("the backend is gone"))
                self._give_up(outcome.error)
            else:
                self._metrics.failed_rows.inc(batch.rows)
                self._end_all(batch, BackendFailed("the model failed on a text of this call"))
                log.error(
                    "row_failed",
                    error=type(outcome.error).__name__,
                    detail=str(outcome.error)[:200],
                )

    def _answer(self, outcome: Outcome) -> None:
        for entry, rows in outcome.batch.parts:
            entry.missing -= len(rows)
            entry.begun_at = max(entry.begun_at, outcome.began)
            if entry.future is None or entry.future.done():
                continue
            self._metrics.answered_rows.inc(len(rows))
            if entry.missing == 0:
                self._metrics.queue_s.observe(entry.begun_at - entry.queued_at)
                entry.future.set_result(entry)

    def _give_up(self, error: BackendGone) -> None:
        if self._refusal:
            return
        self._refuse_all("the backend is gone")
        self._on_failure()
        log.critical("backend_gone", detail=str(error)[:200])

    def _refuse_all(self, reason: str) -> None:
        """Refuse from now on, and fail what waits or runs; the threads end."""
        self._refusal = Unavailable(reason)
        self._heartbeat.cancel()
        with self._lock:
            waiting = self._scheduler.drain()
            running = [batch for batch, _ in self._running.values()]
            self._work.notify_all()
        for entry in waiting:
            self._end(entry, Unavailable(reason))
        for batch in running:
            self._end_all(batch, Unavailable(reason))

    def _end_all(self, batch: Batch, error: RealceError) -> None:
        for entry, _ in batch.parts:
            self._end(entry, error)

    def _end(self, entry: Entry, error: RealceError) -> None:
        self.forget(entry)
        if entry.future is not None and not entry.future.done():
            entry.future.set_exception(error)


def _join(threads: Iterable[threading.Thread]) -> None:
    for thread in threads:
        thread.join(JOIN_S)


def _fill(batch: Batch, outputs: Outputs) -> None:
    """Hand each row's outputs to its entry; rows are disjoint, so threads do not meet."""
    scores = zip(outputs["logits"].tolist(), outputs["probabilities"].tolist(), strict=True)
    rows = ((entry, row) for entry, taken in batch.parts for row in taken)
    for at, ((entry, row), said) in enumerate(zip(rows, scores, strict=True)):
        views = cut(outputs, at, len(entry.input_ids[row]), entry.request)
        entry.results[row] = Result(*said, views)
