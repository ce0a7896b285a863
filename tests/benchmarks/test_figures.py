"""The arithmetic of measurements."""

import math

import numpy as np
import pytest

from tests.benchmarks.figures import medians, per_thousand, percentile, recovery, slope, strict


def test_percentiles_interpolate_and_are_nothing_of_nothing():
    assert percentile([1, 2, 3, 4, 5], 0.5) == 3
    assert percentile([0, 10], 0.99) == pytest.approx(9.9)
    assert math.isnan(percentile([], 0.5))


def test_medians_are_of_the_rounds_that_have_the_figure():
    rounds = [{"a": 1.0, "b": 5.0}, {"a": 9.0, "b": math.nan}, {"a": 2.0}]
    assert medians(rounds) == {"a": 2.0, "b": 5.0}
    assert math.isnan(medians([{"c": math.nan}])["c"])


def test_per_thousand():
    assert per_thousand(2.0, 4000) == 0.5
    assert math.isnan(per_thousand(2.0, 0))


def memory(growth: float, noise: float, *, start: float = 0.0) -> tuple[list[float], list[float]]:
    generator = np.random.default_rng(7)
    x = np.linspace(0, 100, 2000)
    y = 2e8 + growth * x + noise * generator.standard_normal(x.size)
    y += start * (1 - np.exp(-x / 5))  # pools that fill at the start
    return x.tolist(), y.tolist()


@pytest.mark.parametrize(
    ("growth", "verdict"), [(0.0, "level"), (2e5, "grows"), (-2e5, "level"), (1e4, "unclear")]
)
def test_slope_finds_growth_in_noise(growth, verdict):
    found = slope(*memory(growth, noise=1e6))
    assert found.low < growth < found.high
    assert found.verdict(tolerated=1e4) == verdict


def test_slope_overlooks_what_fills_at_the_start():
    assert slope(*memory(0.0, noise=1e5, start=3e7)).verdict(tolerated=1e5) == "level"


def test_slope_needs_samples_all_along():
    with pytest.raises(ValueError, match="do not reach"):
        slope([0, 100], [1, 2])
    with pytest.raises(ValueError, match="one place"):
        slope([5, 5], [1, 2])


def test_recovery_is_the_first_of_enough_good_probes():
    probes = [(0.1 * i, 0.5, "OK") for i in range(10)]  # before
    probes += [(1.0, 0.01, "UNAVAILABLE"), (1.1, 0.01, "OK"), (1.2, 0.9, "OK")]
    probes += [(1.3 + 0.1 * i, 0.01, "OK") for i in range(5)]
    assert recovery(probes, since=1.0, normal_s=0.05, needed=5) == pytest.approx(0.3)
    assert math.isnan(recovery(probes, since=1.0, normal_s=0.05, needed=6))


def test_json_has_none_for_what_is_no_number():
    assert strict({"a": [1.0, math.nan], "b": {"c": math.inf}}) == {
        "a": [1.0, None],
        "b": {"c": None},
    }
