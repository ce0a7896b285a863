"""When callers call and when they hang up: by chance, the same for the same seed."""

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]


def poisson(rate: float, seconds: float, seed: int) -> Seconds:
    """When calls arrive, in seconds from the start: a Poisson process of `rate` calls a second."""
    generator = np.random.default_rng(seed)
    times = np.empty(0)
    while not len(times) or times[-1] < seconds:
        gaps = generator.exponential(1 / rate, max(16, int(rate * seconds * 1.2)))
        times = np.concatenate([times, (times[-1] if len(times) else 0.0) + np.cumsum(gaps)])
    return times[times < seconds]


def cancellations(count: int, share: float, after_s: float, seed: int) -> Seconds:
    """After how many seconds each of `count` callers hangs up; infinity for those who stay.

    Those who hang up do so after `after_s` seconds on average, at any time up to twice that.
    """
    generator = np.random.default_rng((seed, 1))
    waits = generator.uniform(0, 2 * after_s, count)
    return np.where(generator.uniform(size=count) < share, waits, np.inf)
