import itertools

import pytest

from service.costs import Cost, CostTable
from service.types import Variant


class TimedBackend:
    """Takes as long as its cost says, on a clock of its own."""

    def __init__(self, cost: Cost, slow_first: float = 0.0) -> None:
        self.cost, self.slow_first, self.now, self.shapes = cost, slow_first, 0.0, []

    def run(self, input_ids, attention_mask, variant):
        rows, width = input_ids.shape
        if (rows, width, variant) not in self.shapes:
            self.now += self.slow_first
        self.shapes.append((rows, width, variant))
        self.now += self.cost.run_s + rows * self.cost.row_s(width)
        return {}


@pytest.mark.parametrize("max_tokens", [512, 256, 64])
@pytest.mark.parametrize(
    "cost", [Cost(3e-4, 2e-5, 1e-8), Cost(0.0, 1e-5, 0.0), Cost(1e-3, 0.0, 0.0)]
)
def test_the_cost_that_took_the_time_is_found(monkeypatch, cost, max_tokens):
    backend, costs = TimedBackend(cost, slow_first=0.5), CostTable()
    monkeypatch.setattr("service.costs.time.perf_counter", lambda: backend.now)
    costs.measure(backend, max_tokens)
    for variant in Variant:
        found = costs.of(variant)
        assert found.run_s == pytest.approx(cost.run_s, abs=1e-9)
        assert found.token_s == pytest.approx(cost.token_s, abs=1e-10)
        assert found.pair_s == pytest.approx(cost.pair_s, abs=1e-12)
    assert max(width for _, width, _ in backend.shapes) <= max_tokens


def test_where_texts_are_very_short_a_row_costs_what_it_took(monkeypatch):
    """Three shapes of eight tokens and fewer cannot tell three costs apart."""
    backend, costs = TimedBackend(Cost(3e-4, 2e-5, 1e-8)), CostTable()
    monkeypatch.setattr("service.costs.time.perf_counter", lambda: backend.now)
    costs.measure(backend, 8)
    found = costs.of(Variant.PLAIN)
    for rows, width in ((1, 8), (4, 2)):
        took = 3e-4 + rows * backend.cost.row_s(width)
        assert found.run_s + rows * found.row_s(width) == pytest.approx(took, rel=0.05)


def test_noise_makes_no_cost_negative(monkeypatch):
    ticks = itertools.chain([0, 9, 9, 18], itertools.repeat(20))  # only the first shape takes time
    monkeypatch.setattr("service.costs.time.perf_counter", lambda: next(ticks))
    costs = CostTable()
    costs.measure(TimedBackend(Cost()), 512)
    found = costs.of(Variant.PLAIN)
    assert min(found.run_s, found.token_s, found.pair_s) >= 0


def test_a_row_costs_by_its_tokens_and_their_pairs():
    assert Cost(run_s=9.0, token_s=2.0, pair_s=0.5).row_s(4) == 16.0


def test_what_was_not_measured_is_free():
    assert CostTable().of(Variant.FULL).row_s(512) == 0.0


TABLE = {Variant.PLAIN: Cost(run_s=9.0, token_s=0.1)}


def test_the_pace_is_that_of_all_lately_computed_and_of_the_latest_most():
    costs = CostTable(TABLE)
    costs.observe(Variant.PLAIN, lengths=[5, 15], taken_s=4.0)  # 2 s by themselves
    assert costs.pace(Variant.PLAIN) == pytest.approx(2.0)
    costs.observe(Variant.PLAIN, lengths=[10, 10], taken_s=2.0)
    assert costs.pace(Variant.PLAIN) == pytest.approx((0.9 * 4 + 2) / (0.9 * 2 + 2))
    assert costs.pace(Variant.FULL) == 1.0


def test_a_small_batch_that_took_long_says_little_beside_a_large_one():
    costs = CostTable(TABLE)
    costs.observe(Variant.PLAIN, lengths=[100], taken_s=10.0)
    costs.observe(Variant.PLAIN, lengths=[1], taken_s=1.0)  # ten times what it should
    assert costs.pace(Variant.PLAIN) == pytest.approx(1.1, abs=0.01)
    assert costs.expect_s(Variant.PLAIN, [10, 20]) == pytest.approx(3.3, abs=0.03)


def test_a_batch_without_known_cost_teaches_nothing():
    costs = CostTable()
    costs.observe(Variant.PLAIN, lengths=[5], taken_s=4.0)
    assert costs.pace(Variant.PLAIN) == 1.0
    assert costs.expect_s(Variant.PLAIN, [10, 20]) == 0.0
