"""Keeps the device busy, and is the one owner of every future.

There is no timer: with a free slot a batch leaves at once, and batches grow only while the device
is busy. One batch beyond those running stands ready, so that the device never waits for the loop.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import structlog

from model.tokenizer import UNK_ID
from service.backend import Backend, BackendGone, Outputs
from service.errors import BackendFailed, DeadlineExceeded, RealceError, Unavailable
from service.scheduler import Batch, Entry, Scheduler
from service.types import Variant
from service.views import cut

log = structlog.get_logger("realce.batcher")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a batch: padded `tokens` computed in `seconds`, or an error."""

    batch: Batch
    tokens: int = 0
    seconds: float = 0.0
    error: Exception | None = None


class Batcher:
    """Runs what the scheduler chooses on a backend's threads.

    `computed_rows` counts rows that reached the backend, `answered_rows` those whose caller was
    still there. `on_failure` is called once, on the loop, when the backend is gone for good.
    """

    def __init__(
        self, backend: Backend, scheduler: Scheduler, on_failure: Callable[[], None]
    ) -> None:
        self.computed_rows = 0
        self.answered_rows = 0
        self._backend, self._scheduler, self._on_failure = backend, scheduler, on_failure
        self._threads = ThreadPoolExecutor(backend.parallel, thread_name_prefix="realce-device")
        self._running = 0
        self._failed = False
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, entry: Entry) -> "asyncio.Future[Entry]":
        """Queue an entry; the future gives it back filled. Raises as `Scheduler.add` does."""
        if self._failed:
            raise Unavailable("the backend is gone")
        entry.future = asyncio.get_running_loop().create_future()
        self._scheduler.add(entry)
        self._idle.clear()
        self._dispatch()
        return entry.future

    async def idle(self) -> None:
        """Wait until nothing is queued or running."""
        await self._idle.wait()

    def close(self) -> None:
        """Fail what still waits and let go of the threads."""
        self._fail_all(Unavailable("the server has stopped"))
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        while self._running <= self._backend.parallel and not self._failed:
            batch, expired = self._scheduler.next_batch()
            for entry in expired:
                self._end(entry, DeadlineExceeded("the deadline passed in the queue"))
            if batch is None:
                break
            self._running += 1
            run = loop.run_in_executor(self._threads, self._run, batch)
            run.add_done_callback(self._settle)
        if self._running == 0:
            self._idle.set()

    def _run(self, batch: Batch) -> list[Outcome]:
        """In a worker thread: run a batch; halve one that fails until the bad row is alone."""
        started = time.perf_counter()
        try:
            input_ids, mask = batch.arrays()
            outputs = self._backend.run(input_ids, mask, batch.variant)
            if not np.isfinite(outputs["logits"]).all():
                raise FloatingPointError("logits are not finite")
            self._fill(batch, outputs)
        except Exception as error:
            if isinstance(error, BackendGone) or batch.rows == 1:
                return [Outcome(batch, error=error)]
            return [outcome for half in batch.halves() for outcome in self._run(half)]
        return [Outcome(batch, input_ids.size, time.perf_counter() - started)]

    def _fill(self, batch: Batch, outputs: Outputs) -> None:
        """Hand each row's outputs to its entry; rows are disjoint, so threads do not meet."""
        at = 0
        for entry, rows in batch.parts:
            assert entry.logits is not None
            assert entry.probabilities is not None
            end = at + len(rows)
            entry.logits[rows] = outputs["logits"][at:end]
            entry.probabilities[rows] = outputs["probabilities"][at:end]
            if entry.request.views:
                for position, row in enumerate(rows, start=at):
                    length = len(entry.input_ids[row])
                    entry.views[row] = cut(outputs, position, length, entry.request)
            at = end

    def _settle(self, run: "asyncio.Future[list[Outcome]]") -> None:
        """On the loop: answer those who are complete, fail those who failed, go on."""
        self._running -= 1
        if not run.cancelled():
            outcomes = run.result()
            for outcome in outcomes:
                self.computed_rows += outcome.batch.rows
                if outcome.error is None:
                    self._scheduler.observe(outcome.tokens, outcome.seconds)
                    self._answer(outcome.batch)
                elif isinstance(outcome.error, BackendGone):
                    for entry, _ in outcome.batch.parts:
                        self._end(entry, Unavailable("the backend is gone"))
                    self._give_up(outcome.error)
                else:
                    self._fail(outcome.batch, outcome.error)
            if all(outcome.error is not None for outcome in outcomes):
                self._probe()
        self._dispatch()

    def _answer(self, batch: Batch) -> None:
        for entry, rows in batch.parts:
            entry.missing -= len(rows)
            if entry.future is None or entry.future.done():
                continue
            self.answered_rows += len(rows)
            if entry.missing == 0:
                entry.ended = True
                entry.future.set_result(entry)

    def _fail(self, batch: Batch, error: Exception) -> None:
        log.error("row_failed", error=type(error).__name__, detail=str(error)[:200])
        for entry, _ in batch.parts:
            self._end(entry, BackendFailed("the model failed on a text of this call"))

    def _probe(self) -> None:
        """Nothing of a batch succeeded: is it the rows, or the backend itself?"""

        def run() -> None:
            ids = np.full((1, 1), UNK_ID, dtype=np.int64)
            self._backend.run(ids, np.ones_like(ids), Variant.PLAIN)

        def settle(probe: "asyncio.Future[None]") -> None:
            if not probe.cancelled() and (error := probe.exception()) is not None:
                self._give_up(error)

        probe = asyncio.get_running_loop().run_in_executor(self._threads, run)
        probe.add_done_callback(settle)

    def _give_up(self, error: BaseException) -> None:
        if self._failed:
            return
        self._failed = True
        log.critical("backend_gone", error=type(error).__name__, detail=str(error)[:200])
        self._fail_all(Unavailable("the backend is gone"))
        self._on_failure()

    def _fail_all(self, error: RealceError) -> None:
        for entry in self._scheduler.drain():
            self._end(entry, error)
        self._idle.set()

    def _end(self, entry: Entry, error: RealceError) -> None:
        self._scheduler.forget(entry)
        if entry.future is not None and not entry.future.done():
            entry.future.set_exception(error)
