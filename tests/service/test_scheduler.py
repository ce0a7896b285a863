import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import DeadlineExceeded, InvalidRequest, Overloaded
from service.scheduler import Entry, Scheduler, bucket
from service.types import View, ViewRequest
from tests.fakes import FakeClock

FULL = ViewRequest(frozenset({View.ATTENTIONS}), (0,), (0,))


def entry(*lengths: int, deadline: float | None = None, request: ViewRequest | None = None) -> Entry:
    ids = [np.full(length, 7, dtype=np.int64) for length in lengths]
    return Entry(ids, request or ViewRequest(), deadline)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def scheduler(clock: FakeClock) -> Scheduler:
    return Scheduler(max_batch_tokens=64, max_queue_tokens=1000, attention_maps=4, clock=clock)


def rows_of(scheduler: Scheduler) -> list[tuple[Entry, list[int]]]:
    batch, _ = scheduler.next_batch()
    return batch.parts if batch else []


def test_nothing_waits_nothing_runs(scheduler):
    assert scheduler.next_batch() == (None, [])


def test_like_lengths_run_together_oldest_first(scheduler):
    short, long, short_again = entry(8), entry(40), entry(8)
    for one in (short, long, short_again):
        scheduler.add(one)
    assert rows_of(scheduler) == [(short, [0]), (short_again, [0])]
    assert rows_of(scheduler) == [(long, [0])]
    assert scheduler.queued_tokens == 0


def test_a_long_text_is_not_overtaken_for_ever(scheduler):
    long = entry(40)
    scheduler.add(entry(8))
    scheduler.add(long)
    rows_of(scheduler)
    scheduler.add(entry(8))
    assert rows_of(scheduler) == [(long, [0])]


def test_a_batch_holds_no_more_padded_tokens_than_the_budget(scheduler):
    one = entry(*[16] * 6)
    scheduler.add(one)
    assert rows_of(scheduler) == [(one, [0, 1, 2, 3])]  # 4 · 16 = 64
    assert rows_of(scheduler) == [(one, [4, 5])]


def test_a_row_beyond_the_budget_runs_alone(scheduler):
    one = entry(100)
    scheduler.add(one)
    assert rows_of(scheduler) == [(one, [0])]


def test_views_do_not_mix_with_plain_rows(scheduler):
    plain, full = entry(8), entry(8, request=FULL)
    scheduler.add(plain)
    scheduler.add(full)
    assert rows_of(scheduler) == [(plain, [0])]
    assert rows_of(scheduler) == [(full, [0])]


def test_arrays_are_padded_to_the_longest(scheduler):
    scheduler.add(entry(2, 3))
    batch, _ = scheduler.next_batch()
    input_ids, mask = batch.arrays()
    assert input_ids.tolist() == [[7, 7, 0], [7, 7, 7]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_the_cancelled_and_the_expired_are_not_computed(scheduler, clock):
    loop = asyncio.new_event_loop()
    cancelled, late, live = entry(8), entry(8, deadline=101.0), entry(8, deadline=200.0)
    cancelled.future = loop.create_future()
    for one in (cancelled, late, live):
        scheduler.add(one)
    cancelled.future.cancel()
    clock.now = 102.0
    batch, expired = scheduler.next_batch()
    assert batch.parts == [(live, [0])]
    assert expired == [late]
    assert scheduler.queued_tokens == 0
    loop.close()


def test_a_full_queue_refuses_and_says_when_to_come_back(scheduler):
    scheduler.observe(tokens=100, seconds=1.0)
    scheduler.add(entry(900))
    with pytest.raises(Overloaded, match="900 of 1000 tokens") as refused:
        scheduler.add(entry(101))
    assert refused.value.retry_after_s == pytest.approx(9.0)
    assert scheduler.queued_tokens == 900


def test_a_call_that_can_never_fit_is_the_callers_fault(scheduler):
    with pytest.raises(InvalidRequest, match="1001 tokens in one call, the limit is 1000"):
        scheduler.add(entry(1001))


def test_what_cannot_meet_its_deadline_is_refused_at_once(scheduler):
    scheduler.observe(tokens=100, seconds=1.0)
    scheduler.add(entry(300))
    with pytest.raises(DeadlineExceeded, match=r"in 3\.000 s, the answer would take 3\.100 s"):
        scheduler.add(entry(10, deadline=103.0))
    scheduler.add(entry(10, deadline=104.0))


def test_a_passed_deadline_is_refused(scheduler):
    with pytest.raises(DeadlineExceeded, match="had passed"):
        scheduler.add(entry(1, deadline=99.0))


def test_forgetting_frees_the_room(scheduler):
    one = entry(900)
    scheduler.add(one)
    scheduler.forget(one)
    assert scheduler.queued_tokens == 0
    assert scheduler.next_batch() == (None, [])


@given(
    st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=12), max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_every_row_runs_once_in_a_batch_within_budget(calls, full):
    scheduler = Scheduler(
        max_batch_tokens=64, max_queue_tokens=100_000, attention_maps=4, clock=FakeClock()
    )
    entries = [
        entry(*lengths, request=FULL if wants else None)
        for lengths, wants in zip(calls, full, strict=False)
    ]
    for one in entries:
        scheduler.add(one)
    seen = []
    while (batch := scheduler.next_batch()[0]) is not None:
        lengths = list(batch.lengths())
        assert len(lengths) == 1 or len(lengths) * max(lengths) <= 64
        assert len({bucket(length) for length in lengths}) == 1
        assert len({one.request.variant for one, _ in batch.parts}) == 1
        seen += [(id(one), row) for one, rows in batch.parts for row in rows]
    assert sorted(seen) == sorted((id(one), row) for one in entries for row in range(len(one.input_ids)))
    assert scheduler.queued_tokens == 0
