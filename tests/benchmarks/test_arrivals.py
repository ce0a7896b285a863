"""Arrivals by chance, and the same again."""

import numpy as np
import pytest

from tests.benchmarks.arrivals import cancellations, poisson


def test_arrivals_are_poisson():
    times = poisson(rate=200, seconds=100, seed=1)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert (gaps >= 0).all()
    assert times[-1] < 100
    # Exponential gaps: the deviation is the mean.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    # Counts of equal stretches: the variance is the mean.
    counts = np.histogram(times, bins=1000, range=(0, 100))[0]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.15)


def test_a_seed_repeats_them():
    assert np.array_equal(poisson(50, 10, seed=3), poisson(50, 10, seed=3))
    assert not np.array_equal(poisson(50, 10, seed=3), poisson(50, 10, seed=4))


def test_a_rate_too_low_for_the_time_has_few_or_none():
    assert len(poisson(0.001, 1, seed=0)) <= 1


def test_a_share_of_callers_hangs_up_within_twice_the_mean():
    waits = cancellations(10_000, share=0.5, after_s=0.2, seed=0)
    gone = waits[np.isfinite(waits)]
    assert len(gone) == pytest.approx(5_000, rel=0.05)
    assert gone.mean() == pytest.approx(0.2, rel=0.05)
    assert gone.max() <= 0.4
    assert np.isinf(cancellations(100, 0.0, 0.2, 0)).all()
