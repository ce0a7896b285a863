import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from service.batch import Entry
from service.batcher import Batcher
from service.costs import Cost, CostTable
from service.errors import BackendFailed, DeadlineExceeded, Overloaded, Unavailable
from service.metrics import Metrics
from service.scheduler import Scheduler
from service.types import Variant, View, ViewRequest
from tests.fakes import NAN_ID, POISON_ID, FakeBackend, FakeClock


class Rig:
    """A batcher over a fake backend, and whether it has reported a failure."""

    def __init__(self, backend: FakeBackend | None = None, *, token_s: float = 1e-3) -> None:
        self.backend, self.clock, self.failures = backend or FakeBackend(), FakeClock(), 0
        self.scheduler = Scheduler(
            max_batch_tokens=64,
            max_queue_tokens=600,
            attention_maps=6,
            clock=self.clock,
            costs=CostTable(dict.fromkeys(Variant, Cost(run_s=1.0, token_s=token_s))),
        )
        self.metrics = Metrics()
        self.batcher = Batcher(
            self.backend,
            self.scheduler,
            self.fail,
            metrics=self.metrics,
            hang_s=30,
            clock=self.clock,
        )

    def fail(self) -> None:
        self.failures += 1

    def counted(self, name: str, **labels: str) -> float | None:
        """A sample of the metrics."""
        return self.metrics.registry.get_sample_value(f"realce_{name}", labels)

    def submit(self, *rows: Sequence[int], request: ViewRequest | None = None, deadline=None):
        return self.batcher.submit(
            Entry(
                [np.array(row, dtype=np.int64) for row in rows],
                request or ViewRequest(),
                deadline,
            )
        )

    async def hold(self, row: Sequence[int] = (1,)) -> list[asyncio.Future]:
        """Occupy the device; a prompt one with a row too long for the loop."""
        self.backend.open.clear()
        held = [self.submit(row)]
        await asyncio.to_thread(self.backend.entered.acquire)
        return held

    async def idle(self) -> None:
        """Wait until nothing is queued or running, and what came of it has been told."""
        async with asyncio.timeout(20):
            while not self.batcher.idle:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.001)


def said(entry: Entry) -> list[float]:
    """Each row's second logit, which is the sum of its ids."""
    return [entry.results[row].logits[1] for row in range(len(entry.input_ids))]


@pytest.fixture
async def rig():
    rig = Rig()
    yield rig
    rig.backend.open.set()
    rig.batcher.close()


async def test_rows_come_back_in_their_order(rig):
    answered = await rig.submit([1, 2], list(range(30)), [5])
    assert said(answered) == [3, 435, 5]


async def test_an_idle_device_starts_at_once_and_batches_grow_while_it_is_busy(rig):
    held = await rig.hold()
    waiting = [rig.submit([i, i]) for i in (3, 4, 5)]
    rig.backend.open.set()
    await asyncio.gather(*held, *waiting)
    assert rig.backend.batches == [[[1]], [[3, 3], [4, 4], [5, 5]]]


async def test_a_bad_row_fails_alone(rig):
    held = await rig.hold()
    calls = [rig.submit([i, 1]) for i in (2, POISON_ID, 3, NAN_ID, 4)]
    rig.backend.open.set()
    await asyncio.gather(*held)
    results = await asyncio.gather(*calls, return_exceptions=True)
    failed = [isinstance(result, BackendFailed) for result in results]
    assert failed == [False, True, False, True, False]
    assert [said(results[i]) for i in (0, 2, 4)] == [[3], [4], [5]]
    assert rig.failures == 0


async def test_a_bad_row_that_comes_alone_is_not_taken_for_a_dead_backend(rig):
    with pytest.raises(BackendFailed):
        await rig.submit([POISON_ID])
    await rig.idle()
    assert said(await rig.submit([2])) == [2]
    assert rig.failures == 0


@pytest.mark.parametrize("how", ["gone", "broken"])
async def test_a_dead_backend_fails_everyone_and_is_reported_once(rig, how):
    held = await rig.hold()
    waiting = rig.submit([2] * 30)
    setattr(rig.backend, how, True)
    rig.backend.open.set()
    results = await asyncio.gather(*held, waiting, return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 2
    assert rig.failures == 1
    with pytest.raises(Unavailable):
        rig.submit([1])


async def test_a_cancelled_call_is_not_computed_and_its_neighbours_are(rig):
    held = await rig.hold()
    cancelled, neighbour = rig.submit([9, 9]), rig.submit([2, 2])
    cancelled.cancel()
    rig.backend.open.set()
    await asyncio.gather(*held)
    assert said(await neighbour) == [4]
    assert rig.backend.batches[-1] == [[2, 2]]
    assert rig.scheduler.queued_tokens == 0


async def test_a_call_of_many_rows_keeps_all_threads_busy():
    backend = FakeBackend(parallel=2)
    rig = Rig(backend)
    backend.open.clear()
    call = rig.submit([5] * 40, [6] * 40)  # two batches
    for _ in range(2):
        await asyncio.to_thread(backend.entered.acquire)
    backend.open.set()
    assert said(await call) == [200, 240]
    rig.batcher.close()


async def test_a_hung_batch_is_noticed_and_nobody_waits_for_it(rig):
    (running,) = await rig.hold()
    queued = rig.submit([2])
    rig.clock.now += 30
    rig.batcher.beat()
    assert not running.done()
    rig.clock.now += 0.1
    rig.batcher.beat()
    results = await asyncio.gather(running, queued, return_exceptions=True)
    assert [str(result) for result in results] == ["the backend is gone"] * 2
    assert [type(result) for result in results] == [Unavailable] * 2
    assert rig.failures == 1
    with pytest.raises(Unavailable):
        rig.submit([1])
    rig.backend.open.set()  # too late
    await rig.idle()
    assert (rig.counted("answered_rows_total"), rig.failures) == (0, 1)


async def test_a_device_without_work_does_not_hang(rig):
    await rig.submit([1])
    await rig.idle()
    rig.clock.now += 1000
    rig.batcher.beat()
    assert said(await rig.submit([2])) == [2]


async def test_the_rest_of_a_failed_call_is_not_computed(rig):
    held = await rig.hold()
    call = rig.submit([POISON_ID], *[[5] * 40] * 5)
    rig.backend.open.set()
    await asyncio.gather(*held)
    with pytest.raises(BackendFailed):
        await call
    await rig.idle()
    assert [[5] * 40] not in rig.backend.batches
    assert rig.scheduler.queued_tokens == 0


@pytest.mark.parametrize("view", ["evidence", "contributions"])
async def test_an_account_that_is_not_finite_is_not_sent(rig, view, monkeypatch):
    run = rig.backend.run

    def broken(input_ids, mask, variant):
        outputs = run(input_ids, mask, variant)
        if view in outputs:
            outputs[view][input_ids[:, 0] == 9] = np.inf
        return outputs

    monkeypatch.setattr(rig.backend, "run", broken)
    request = ViewRequest(frozenset({View(view)}))
    held = await rig.hold()
    bad, good = rig.submit([9, 9], request=request), rig.submit([2, 2], request=request)
    rig.backend.open.set()
    await asyncio.gather(*held)
    with pytest.raises(BackendFailed):
        await bad
    assert np.isfinite((await good).results[0].views[View(view)]).all()


async def test_closing_leaves_no_caller_waiting_even_for_a_batch_that_never_ends(rig):
    (running,) = await rig.hold()
    queued = rig.submit([3])
    rig.batcher.close()
    for call in (running, queued):
        with pytest.raises(Unavailable, match="the server has stopped"):
            await call
    with pytest.raises(Unavailable, match="the server has stopped"):
        rig.submit([1])
    rig.backend.open.set()


async def test_threads_are_waited_for_but_not_one_that_hangs(rig, monkeypatch):
    (running,) = await rig.hold()
    rig.batcher.close()
    monkeypatch.setattr("service.batcher.JOIN_S", 0.01)
    await rig.batcher.wait_closed()
    assert any(thread.is_alive() for thread in rig.batcher._threads)
    with pytest.raises(Unavailable):
        await running
    monkeypatch.undo()
    rig.backend.open.set()
    await rig.batcher.wait_closed()
    assert not any(thread.is_alive() for thread in rig.batcher._threads)


async def test_a_call_that_expires_in_the_queue_is_told_so_and_not_computed(rig):
    held = await rig.hold()
    late = rig.submit([9, 9], deadline=101.0)
    rig.clock.now = 102.0
    rig.backend.open.set()
    await asyncio.gather(*held)
    with pytest.raises(DeadlineExceeded):
        await late
    assert [[9, 9]] not in rig.backend.batches


async def test_a_refused_call_leaves_no_trace(rig):
    held = await rig.hold()
    rig.submit([1] * 590)
    with pytest.raises(Overloaded):
        rig.submit([1] * 60)
    rig.backend.open.set()
    await asyncio.gather(*held)
    await rig.idle()
    assert rig.scheduler.queued_tokens == 0
    assert rig.counted("batch_rows_sum") == rig.counted("answered_rows_total") == 2


async def test_views_are_cut_to_their_row_layers_and_heads(rig):
    views = frozenset({View.ATTENTIONS, View.POOLING_ATTENTION, View.EVIDENCE})
    request = ViewRequest(views, layers=(1,), heads=(2, 0), dtype=np.float16)
    answered = await rig.submit([1, 1, 1], [2, 2], request=request)
    shapes = {view: array.shape for view, array in answered.results[1].views.items()}
    assert shapes == {
        View.ATTENTIONS: (1, 2, 2, 2),
        View.POOLING_ATTENTION: (3, 2),
        View.EVIDENCE: (2, 2),
    }
    # The shorter row is the first of [2, 2, 3, 3, 3]: layer 1 starts at 27, head 2 at 18 more.
    assert answered.results[1].views[View.ATTENTIONS][0].tolist() == [
        [[45, 46], [48, 49]],
        [[27, 28], [30, 31]],
    ]
    assert answered.results[1].views[View.ATTENTIONS].dtype == np.float16


class ThreadedBackend(FakeBackend):
    """Notes which thread ran each batch."""

    def __init__(self, **options: bool) -> None:
        super().__init__(**options)
        self.threads: list[threading.Thread] = []

    def run(self, input_ids, attention_mask, variant):
        self.threads.append(threading.current_thread())
        return super().run(input_ids, attention_mask, variant)


@pytest.mark.parametrize(
    ("prompt", "calls", "on_the_loop"),
    [
        (True, [[5]], [True]),
        (True, [[5] * 6], [False]),  # 6 ms: too long for others to wait
        (True, [[5], [6]], [True, False]),  # the second has company
        (False, [[5]], [False]),
    ],
)
async def test_the_loop_computes_a_short_call_alone_itself(prompt, calls, on_the_loop, monkeypatch):
    monkeypatch.setattr(CostTable, "observe", lambda *_: None)  # that the fake takes no time at all
    backend = ThreadedBackend(prompt=prompt)
    rig = Rig(backend)
    await asyncio.gather(*(rig.submit(row) for row in calls))
    assert [thread is threading.current_thread() for thread in backend.threads] == on_the_loop
    rig.batcher.close()


async def test_a_call_that_had_company_a_moment_ago_is_not_lone(monkeypatch):
    monkeypatch.setattr(CostTable, "observe", lambda *_: None)  # that the fake takes no time at all
    backend = ThreadedBackend(prompt=True)
    rig = Rig(backend)
    held = await rig.hold([5] * 40)
    company = rig.submit([6])
    backend.open.set()
    await asyncio.gather(*held, company)
    await rig.idle()
    backend.threads.clear()
    await rig.submit([7])
    await rig.idle()
    rig.clock.now += 1.0
    await rig.submit([8])
    assert [thread is threading.current_thread() for thread in backend.threads] == [False, True]
    rig.batcher.close()


async def test_what_takes_no_time_is_computed_at_once():
    backend = ThreadedBackend(prompt=True)
    rig = Rig(backend, token_s=1e-5)
    assert said(rig.submit([5]).result()) == [5]
    assert set(backend.threads) == {threading.current_thread()}
    rig.batcher.close()


async def test_the_loop_does_not_compute_beside_a_thread():
    backend = ThreadedBackend(prompt=True)
    rig = Rig(backend)
    held = await rig.hold([5] * 40)
    short = rig.submit([6])
    await asyncio.sleep(0.01)
    assert not short.done()
    backend.open.set()
    await asyncio.gather(*held, short)
    assert threading.current_thread() not in backend.threads
    rig.batcher.close()


async def test_a_bad_row_and_a_lost_device_end_on_the_loop_as_on_a_thread():
    backend = ThreadedBackend(prompt=True)
    rig = Rig(backend)
    with pytest.raises(BackendFailed):
        await rig.submit([POISON_ID])
    assert rig.failures == 0
    await asyncio.sleep(0)  # a call in the same turn of the loop would be company
    backend.gone = True
    with pytest.raises(Unavailable):
        await rig.submit([1])
    assert rig.failures == 1
    assert set(backend.threads) == {threading.current_thread()}


async def test_a_hung_batch_is_noticed_without_being_asked(rig):
    rig.batcher.close()
    rig.batcher = Batcher(rig.backend, rig.scheduler, rig.fail, hang_s=0.02, clock=rig.clock)
    (running,) = await rig.hold()
    rig.clock.now += 1
    async with asyncio.timeout(20):
        while not rig.failures:
            await asyncio.sleep(0.005)
    with pytest.raises(Unavailable):
        await running


async def test_looking_for_a_bad_row_is_no_hang(rig, monkeypatch):
    """Each half that is tried begins anew for the heartbeat."""
    held = await rig.hold()
    calls = [rig.submit([i, 1]) for i in (2, POISON_ID, 3, 4)]
    run = rig.backend.run

    def slow(*arguments):
        rig.clock.now += 20  # of 30
        rig.batcher.beat()
        return run(*arguments)

    monkeypatch.setattr(rig.backend, "run", slow)
    rig.backend.open.set()
    await asyncio.gather(*held)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(one, BackendFailed) for one in results] == [False, True, False, False]
    assert rig.failures == 0


async def test_what_a_batch_took_is_learnt_from(rig, monkeypatch):
    observed = []
    monkeypatch.setattr(CostTable, "observe", lambda _, *what: observed.append(what))
    await rig.submit([1, 2], [3])
    ((variant, lengths, seconds),) = observed
    assert (variant, sorted(lengths)) == (Variant.PLAIN, [1, 2])
    assert seconds > 0


async def test_a_call_of_many_turns_lets_others_in_between(rig):
    held = await rig.hold()
    long = rig.submit(*([1] * 32 for _ in range(12)))  # two rows a batch, two batches a turn
    short = [rig.submit([2] * 32) for _ in range(2)]
    rig.backend.open.set()
    await asyncio.gather(*held, long, *short)
    rows = [row[0] for batch in rig.backend.batches[1:] for row in batch]
    assert rows.index(2) < 8
    assert rows[-1] == 1
