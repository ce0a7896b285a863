"""Keeps the device busy, and is the one owner of every future.

There is no timer: with a free slot a batch leaves at once, and batches grow only while the device
is busy. One batch beyond those running stands ready, so that the device never waits for the loop.
"""

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import structlog

from model.tokenizer import UNK_ID
from service.backend import Backend, BackendGone, Outputs
from service.batch import Batch, Entry
from service.errors import BackendFailed, DeadlineExceeded, RealceError, Unavailable
from service.scheduler import Scheduler
from service.types import Variant
from service.views import cut

log = structlog.get_logger("realce.batcher")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a batch: computed in `seconds`, or an error."""

    batch: Batch
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
        self._refusal: Unavailable | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, entry: Entry) -> "asyncio.Future[Entry]":
        """Queue an entry; the future gives it back filled. Raises as `Scheduler.add` does."""
        if self._refusal:
            raise Unavailable(str(self._refusal))
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
        self._refuse_all("the server has stopped")
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        while self._running <= self._backend.parallel and not self._refusal:
            batch, expired = self._scheduler.next_batch()
            for entry in expired:
                self._end(entry, DeadlineExceeded("the deadline passed in the queue"))
            if batch is None:
                break
            self._running += 1
            run = loop.run_in_executor(self._threads, self._work, batch)
            run.add_done_callback(functools.partial(self._settle, batch))
        if self._running == 0:
            self._idle.set()

    def _work(self, batch: Batch) -> list[Outcome]:
        """In a worker thread: run a batch; if all of it fails, see whether anything would run."""
        batch = batch.waited_for()
        outcomes = self._run(batch) if batch.parts else []
        if outcomes and all(outcome.error is not None for outcome in outcomes):
            ids = np.full((1, 1), UNK_ID, dtype=np.int64)
            try:
                self._backend.run(ids, np.ones_like(ids), Variant.PLAIN)
            except Exception as error:
                gone = BackendGone(f"{type(error).__name__}: {error}")
                return [Outcome(batch, error=gone)]
        return outcomes

    def _run(self, batch: Batch) -> list[Outcome]:
        """Run a batch; halve one that fails until the bad row is alone."""
        started = time.perf_counter()
        try:
            input_ids, mask = batch.arrays()
            outputs = self._backend.run(input_ids, mask, batch.variant)
            for name in ("logits", "evidence", "contributions"):
                if name in outputs and not np.isfinite(outputs[name]).all():
                    raise FloatingPointError(f"{name} are not finite")
            self._fill(batch, outputs)
        except Exception as error:
            if isinstance(error, BackendGone) or batch.rows == 1:
                return [Outcome(batch, error=error)]
            return [outcome for half in batch.halves() for outcome in self._run(half)]
        return [Outcome(batch, time.perf_counter() - started)]

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

    def _settle(self, batch: Batch, run: "asyncio.Future[list[Outcome]]") -> None:
        """On the loop: answer those who are complete, fail those who failed, go on."""
        self._running -= 1
        if run.cancelled():  # it stood ready when the batcher closed
            for entry, _ in batch.parts:
                self._end(entry, Unavailable("the server has stopped"))
        else:
            for outcome in run.result():
                self._take(outcome)
        self._dispatch()

    def _take(self, outcome: Outcome) -> None:
        batch = outcome.batch
        self.computed_rows += batch.rows
        if outcome.error is None:
            costs = self._scheduler.costs
            costs.observe(batch.variant, batch.rows, batch.width, outcome.seconds)
            self._answer(batch)
        elif isinstance(outcome.error, BackendGone):
            for entry, _ in batch.parts:
                self._end(entry, Unavailable("the backend is gone"))
            self._give_up(outcome.error)
        else:
            self._fail(batch, outcome.error)

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

    def _give_up(self, error: BackendGone) -> None:
        if self._refusal:
            return
        log.critical("backend_gone", detail=str(error)[:200])
        self._refuse_all("the backend is gone")
        self._on_failure()

    def _refuse_all(self, reason: str) -> None:
        """Refuse from now on, and fail what waits."""
        self._refusal = Unavailable(reason)
        for entry in self._scheduler.drain():
            self._end(entry, Unavailable(reason))
        if self._running == 0:
            self._idle.set()

    def _end(self, entry: Entry, error: RealceError) -> None:
        self._scheduler.forget(entry)
        if entry.future is not None and not entry.future.done():
            entry.future.set_exception(error)
