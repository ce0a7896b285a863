import asyncio

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.batch import Batch, Entry
from service.costs import Cost, CostTable
from service.errors import DeadlineExceeded, InvalidRequest, Overloaded
from service.scheduler import LEAST_RETRY_S, Scheduler
from service.types import NO_VIEWS, Variant, View, ViewRequest
from tests.fakes import FakeClock

FULL = ViewRequest(frozenset({View.ATTENTIONS}), (0,), (0,))


def entry(*lengths: int, deadline: float | None = None, request: ViewRequest = NO_VIEWS) -> Entry:
    ids = [np.full(length, 7, dtype=np.int64) for length in lengths]
    return Entry(ids, request, deadline)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def scheduler(clock: FakeClock) -> Scheduler:
    return Scheduler(
        max_batch_tokens=64, max_queue_tokens=1000, attention_maps=4, clock=clock, costs=costs()
    )


def costs(run_s: float = 0.1) -> CostTable:
    """A token takes 10 ms, in the full variant 1 s; a run 10 tokens beside."""
    return CostTable({Variant.PLAIN: Cost(run_s, 0.01), Variant.FULL: Cost(run_s, 1.0)})


def rows_of(scheduler: Scheduler) -> list[tuple[Entry, list[int]]]:
    batch, _ = scheduler.next_batch()
    return batch.parts if batch else []


def every(scheduler: Scheduler) -> list[tuple[Entry, list[int]]]:
    return [part for batch in batches(scheduler) for part in batch.parts]


def batches(scheduler: Scheduler) -> list[Batch]:
    return [batch for batch in iter(lambda: scheduler.next_batch()[0], None) if batch]


def test_nothing_waits_nothing_runs(scheduler):
    assert scheduler.next_batch() == (None, [])


@pytest.mark.parametrize("wanted", [NO_VIEWS, FULL])
def test_a_row_alone_is_the_batch_that_choosing_would_make(wanted, scheduler, clock):
    for _ in range(2):
        alone = entry(8, deadline=clock.now + 5.0, request=wanted)
        scheduler.add(alone)
        batch, expired = scheduler.next_batch()
        assert (batch.variant, batch.parts, expired) == (wanted.variant, [(alone, [0])], [])
        assert (scheduler.queued_tokens, scheduler.queued_s, scheduler.queued_calls) == (0, 0.0, 0)
        assert (alone.waiting_tokens, alone.waiting_s) == (0, 0.0)
    clock.now += 6.0
    assert scheduler.next_batch() == (None, []), "what has begun no longer expires in the queue"


def test_like_lengths_run_together_oldest_first(scheduler):
    short, long, short_again = entry(8), entry(40), entry(8)
    for one in (short, long, short_again):
        scheduler.add(one)
    assert rows_of(scheduler) == [(short, [0]), (short_again, [0])]
    assert rows_of(scheduler) == [(long, [0])]
    assert scheduler.queued_tokens == 0


@pytest.mark.parametrize(
    ("first", "others", "together"),
    [
        (10, [10, 6], {10, 6}),  # padding 6 to 10 costs 4 tokens, half a run 5
        (10, [5], {10}),  # 5 tokens: no gain
        (10, [7, 7], {10}),  # twice 3 tokens
        (10, [14], {10, 14}),  # the first itself is padded by 4
        (10, [10, 13], {10}),  # two rows would be, by 3
        (10, [9, 8, 7, 6, 5], {10, 9, 8, 7, 6}),  # each weighed by itself
        (10, [9, 12], {10, 9, 12}),  # the cheaper first: 9 by 1 token, then both by 2
        (10, [8, 13], {10, 8}),  # 8 by 2 tokens; then two by 3 are too many
    ],
)
def test_padding_is_bought_where_it_is_cheaper_than_a_run(scheduler, first, others, together):
    scheduler.add(entry(first))
    for length in others:
        scheduler.add(entry(length))
    batch, _ = scheduler.next_batch()
    assert set(batch.lengths()) == together


def test_where_tokens_cost_nothing_a_run_is_saved(clock):
    scheduler = Scheduler(max_batch_tokens=64, max_queue_tokens=1000, attention_maps=4, clock=clock)
    scheduler.add(entry(8, 9, 9))
    assert [sorted(batch.lengths()) for batch in batches(scheduler)] == [[8, 9, 9]]


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


def test_a_queue_of_callers_who_have_all_gone_is_empty(scheduler):
    loop = asyncio.new_event_loop()
    gone = [entry(40), entry(40), entry(40)]
    for one in gone:
        scheduler.add(one)
        one.future = loop.create_future()
        one.future.cancel()
    assert scheduler.next_batch() == (None, [])
    assert scheduler.queued_tokens == 0
    loop.close()


def test_calls_are_begun_late_and_finished_soon(scheduler):
    calls = [entry(8, 40) for _ in range(4)]
    for one in calls:
        scheduler.add(one)
    # Three are at the front, two batches' worth; the fourth row of 8 would have fitted the first.
    order = [[who for who, _ in batch.parts] for batch in batches(scheduler)]
    assert order[:2] == [calls[:3], calls[:1]]


def test_a_full_queue_refuses_and_says_when_to_come_back(scheduler):
    scheduler.add(entry(900))
    with pytest.raises(Overloaded, match="900 of 1000 tokens") as refused:
        scheduler.add(entry(101))
    assert refused.value.retry_after_s == pytest.approx(9.0)
    assert scheduler.queued_tokens == 900


def test_a_call_that_can_never_fit_is_the_callers_fault(scheduler):
    with pytest.raises(InvalidRequest, match="1001 tokens in one call, the limit is 1000"):
        scheduler.add(entry(1001))


def test_what_cannot_meet_its_deadline_is_refused_at_once(scheduler):
    scheduler.add(entry(60))
    with pytest.raises(DeadlineExceeded, match=r"in 1\.300 s; the answer would take 0\.700 s by"):
        scheduler.add(entry(10, deadline=101.3))
    assert scheduler.queued_tokens == 60
    scheduler.add(entry(10, deadline=101.5))


def test_a_slow_spell_does_not_shut_out_calls_once_nothing_waits(scheduler):
    scheduler.costs.observe(Variant.PLAIN, lengths=[10], taken_s=200.0)
    scheduler.add(entry(10, deadline=101.0))
    assert scheduler.queued_tokens == 10


def test_a_slow_spell_makes_later_calls_look_longer(scheduler):
    scheduler.costs.observe(Variant.PLAIN, lengths=[100], taken_s=2.0)  # pace 2
    scheduler.add(entry(60))
    with pytest.raises(DeadlineExceeded, match=r"would take 1\.400 s"):
        scheduler.add(entry(10, deadline=101.3))


def test_slow_views_do_not_make_plain_calls_look_late(scheduler):
    scheduler.add(entry(10))
    scheduler.add(entry(10, deadline=100.5))
    with pytest.raises(DeadlineExceeded, match=r"would take 10\.200 s"):
        scheduler.add(entry(10, deadline=100.5, request=FULL))


def test_a_call_of_many_texts_holds_up_none_of_one(scheduler):
    many, one = entry(*[8] * 100), entry(8, deadline=103.0)  # 8 s, 1.28 s a turn
    scheduler.add(many)
    scheduler.add(one)
    assert rows_of(scheduler) == [(many, [0, 1, 2, 3, 4, 5, 6, 7])]
    assert rows_of(scheduler) == [(many, [8, 9, 10, 11, 12, 13, 14, 15])]
    # Its next turn is early, but fills up the batch of the other.
    assert rows_of(scheduler) == [(one, [0]), (many, [16, 17, 18, 19, 20, 21, 22])]


def test_the_next_turn_of_a_call_waits_from_when_the_one_before_is_computed(scheduler):
    many, (before, meanwhile, after) = entry(*[8] * 20), [entry(40) for _ in range(3)]
    scheduler.add(many)
    halves = [scheduler.next_batch()[0] for _ in range(2)]
    assert [half.parts for half in halves] == [[(many, [*range(8)])], [(many, [*range(8, 16)])]]
    scheduler.add(before)
    scheduler.done(halves[0])
    scheduler.add(meanwhile)
    scheduler.done(halves[1])
    scheduler.add(after)
    assert [who for who, _ in every(scheduler)] == [before, meanwhile, many, after]


def test_a_call_that_has_gone_has_no_further_turn(scheduler):
    many = entry(*[8] * 20)
    scheduler.add(many)
    turn, _ = scheduler.next_batch()
    scheduler.forget(many)
    scheduler.done(turn)
    assert scheduler.next_batch() == (None, [])


def test_a_call_begun_is_finished_before_the_next_up_to_two_batches_of_tokens(scheduler):
    many, one = entry(*range(8, 64, 7)), entry(100)
    scheduler.add(many)
    scheduler.add(one)
    order = [[(who, who.input_ids[row].size) for row in rows] for who, rows in every(scheduler)]
    assert order == [
        [(many, 8)],
        [(many, 15)],
        [(many, 22)],
        [(many, 29)],
        [(many, 36)],
        [(many, 43)],  # 153 tokens, of 128
        [(one, 100)],
        [(many, 50)],
        [(many, 57)],
    ]


@pytest.mark.parametrize(
    ("run_s", "rows"),
    [
        (0.05, [12, 12, 6]),  # 12 rows of 0.08 s are 0.96 s, of which 0.05 s is a twentieth
        (0.01, [2] * 15),
        (0.0, [1] * 30),
        (9.0, [30]),
    ],
)
def test_a_batch_ends_where_more_rows_save_next_to_nothing(clock, run_s, rows):
    scheduler = Scheduler(
        max_batch_tokens=999,
        max_queue_tokens=1000,
        attention_maps=4,
        clock=clock,
        costs=costs(run_s),
    )
    scheduler.add(entry(*[8] * 30))
    assert [batch.rows for batch in batches(scheduler)] == rows


def test_the_oldest_is_served_even_where_shorter_rows_would_fill_its_batch(clock):
    scheduler = Scheduler(
        max_batch_tokens=60, max_queue_tokens=1000, attention_maps=4, clock=clock, costs=costs(9.0)
    )
    oldest, others = entry(10), entry(*[9] * 8)
    scheduler.add(oldest)
    scheduler.add(others)
    assert rows_of(scheduler) == [(oldest, [0]), (others, [0, 1, 2, 3, 4])]


def test_two_calls_of_many_texts_take_turns(scheduler):
    first, second = entry(*[8] * 32), entry(*[8] * 32)
    scheduler.add(first)
    scheduler.add(second)
    order = [parts[0][0] for _ in range(8) for parts in [rows_of(scheduler)]]
    assert order == 2 * [first, first, second, second]


def test_a_passed_deadline_is_refused(scheduler):
    with pytest.raises(DeadlineExceeded, match="had passed"):
        scheduler.add(entry(1, deadline=99.0))


def test_emptying_the_queue_returns_who_still_waits_and_frees_the_room(scheduler):
    waiting, gone = entry(8, 40), entry(8)
    scheduler.add(waiting)
    scheduler.add(gone)
    scheduler.forget(gone)
    assert scheduler.drain() == [waiting]
    assert (scheduler.queued_tokens, scheduler.wait_s()) == (0, 0.0)
    assert scheduler.next_batch() == (None, [])


def test_forgetting_frees_the_room(scheduler):
    one = entry(900)
    scheduler.add(one)
    scheduler.forget(one)
    assert scheduler.queued_tokens == 0
    assert scheduler.next_batch() == (None, [])


class Queue(RuleBasedStateMachine):
    """Calls come, are cancelled, expire and are computed, in any order: none is lost or doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.scheduler = Scheduler(
            max_batch_tokens=64,
            max_queue_tokens=400,
            attention_maps=4,
            clock=self.clock,
            costs=costs(),
        )
        self.waiting: list[tuple[Entry, set[int]]] = []
        self.running: list[Batch] = []

    @rule(
        lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12),
        full=st.booleans(),
        left_s=st.none() | st.integers(-1, 8),
    )
    def call(self, lengths, full, left_s):
        deadline = None if left_s is None else self.clock.now + left_s
        one = entry(*lengths, deadline=deadline, request=FULL if full else NO_VIEWS)
        before = self.scheduler.queued_tokens
        try:
            self.scheduler.add(one)
        except (Overloaded, DeadlineExceeded, InvalidRequest):
            assert self.scheduler.queued_tokens == before
        else:
            self.waiting.append((one, set(range(len(lengths)))))

    @rule(seconds=st.integers(0, 4))
    def pass_time(self, seconds):
        self.clock.now += seconds

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        index = data.draw(st.integers(0, len(self.waiting) - 1))
        self.scheduler.forget(self.waiting.pop(index)[0])

    @rule()
    def compute(self):
        batch, expired = self.scheduler.next_batch()
        for one in expired:
            assert one.deadline <= self.clock.now
            self.waiting.remove(self.of(one))
        assert all(one.deadline is None or one.deadline > self.clock.now for one, _ in self.waiting)
        if batch is None:
            assert not self.waiting
            return
        self.running.append(batch)
        lengths = list(batch.lengths())
        assert len(lengths) == 1 or len(lengths) * max(lengths) <= 64
        for one, rows in batch.parts:
            assert one.request.variant is batch.variant
            assert one.deadline is None or one.deadline > self.clock.now
            left = self.of(one)[1]
            assert left.issuperset(rows)
            left.difference_update(rows)
            if not left:
                self.waiting.remove(self.of(one))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data):
        index = data.draw(st.integers(0, len(self.running) - 1))
        self.scheduler.done(self.running.pop(index))

    def of(self, wanted):
        """What the queue should hold of an entry; fails when that is nothing."""
        [found] = [(one, left) for one, left in self.waiting if one is wanted]
        return found

    @invariant()
    def the_queue_holds_what_waits(self):
        tokens = sum(len(one.input_ids[row]) for one, left in self.waiting for row in left)
        assert self.scheduler.queued_tokens == tokens <= 400
        assert self.scheduler.wait_s() >= -1e-9

    def teardown(self):
        for _ in range(sum(len(left) for _, left in self.waiting) + 1):
            self.compute()
        assert not self.waiting
        assert self.scheduler.queued_tokens == 0


TestQueue = Queue.TestCase


def test_attention_over_all_pairs_bounds_a_batch(clock, monkeypatch):
    monkeypatch.setattr("service.scheduler.MAX_ATTENTION_ELEMENTS", 2 * 4 * 8**2)
    scheduler = Scheduler(max_batch_tokens=64, max_queue_tokens=1000, attention_maps=4, clock=clock)
    scheduler.add(entry(*[8] * 5, request=FULL))
    assert [batch.rows for batch in batches(scheduler)] == [2, 2, 1]


def test_what_is_computed_side_by_side_waits_half_as_long(clock):
    one, two = (
        Scheduler(
            max_batch_tokens=64,
            max_queue_tokens=1000,
            attention_maps=4,
            clock=clock,
            costs=costs(),
            parallel=parallel,
        )
        for parallel in (1, 2)
    )
    for scheduler in (one, two):
        for _ in range(8):
            scheduler.add(entry(40))
    assert two.wait_s() == pytest.approx(one.wait_s() / 2)
    late = clock.now + 1.5 * one.wait_s()
    with pytest.raises(DeadlineExceeded):
        one.check(40, late, 0.5)
    two.check(40, late, 0.5)


async def test_a_lone_call_that_nobody_waits_for_is_not_computed(scheduler):
    left = entry(8)
    scheduler.add(left)
    left.future = asyncio.get_running_loop().create_future()
    left.future.cancel()
    assert scheduler.next_batch() == (None, [])
    assert scheduler.queued_tokens == 0


def test_a_queue_takes_just_what_it_holds(scheduler):
    scheduler.add(entry(*[50] * 20))
    assert scheduler.queued_tokens == 1000
    with pytest.raises(Overloaded, match="the queue is full: 1000 of 1000 tokens"):
        scheduler.add(entry(1))
    with pytest.raises(InvalidRequest, match="1001 tokens in one call, the limit is 1000"):
        scheduler.add(entry(*[50] * 20, 1))


def test_nobody_is_sent_back_for_no_time_at_all(clock):
    scheduler = Scheduler(max_batch_tokens=64, max_queue_tokens=8, attention_maps=4, clock=clock)
    scheduler.add(entry(8))
    with pytest.raises(Overloaded) as full:
        scheduler.add(entry(1))
    assert full.value.retry_after_s == LEAST_RETRY_S > 0
