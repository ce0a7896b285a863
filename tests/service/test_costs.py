import pytest

from service.costs import CostTable, bucket
from service.types import Variant
from tests.fakes import FakeBackend


@pytest.mark.parametrize(
    ("shortest", "longest"), [(1, 8), (9, 16), (25, 32), (33, 40), (41, 50), (51, 62), (63, 78)]
)
def test_like_lengths_share_a_bucket(shortest, longest):
    assert bucket(shortest) == bucket(longest)
    assert bucket(longest + 1) == bucket(longest) + 1


def test_padding_in_a_bucket_of_long_texts_is_at_most_a_fifth():
    longest = dict(sorted((bucket(length), length) for length in range(33, 8193)))
    assert all((longest[bucket(n)] - n) / longest[bucket(n)] <= 0.2 for n in range(33, 8193))


def test_a_new_measurement_moves_what_is_known_by_a_tenth():
    costs = CostTable()
    costs.observe(Variant.PLAIN, rows=2, width=8, seconds=1.6)
    costs.observe(Variant.PLAIN, rows=1, width=8, seconds=8.8)
    assert costs.seconds_per_token(Variant.PLAIN, 1) == pytest.approx(0.9 * 0.1 + 0.1 * 1.1)


def test_an_unknown_width_costs_what_the_nearest_known_does():
    costs = CostTable()
    assert costs.seconds_per_token(Variant.PLAIN, 3) == 0.0
    costs.observe(Variant.PLAIN, rows=1, width=8, seconds=0.8)
    costs.observe(Variant.PLAIN, rows=1, width=64, seconds=128.0)
    assert costs.seconds_per_token(Variant.PLAIN, 2) == pytest.approx(0.1)
    assert costs.seconds_per_token(Variant.PLAIN, 99) == pytest.approx(2.0)
    assert costs.seconds_per_token(Variant.FULL, 1) == 0.0


def test_measuring_leaves_no_variant_unknown():
    costs, backend = CostTable(), FakeBackend()
    costs.measure(backend)
    assert all(costs.seconds_per_token(variant, 1) > 0 for variant in Variant)
    assert {(len(rows), len(rows[0])) for rows in backend.batches} == {(1, 16), (4, 64)}
