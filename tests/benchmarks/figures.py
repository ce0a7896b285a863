"""The arithmetic of measurements: percentiles, medians of rounds, a slope and how sure it is."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Figures = dict[str, float]

BLOCKS = 20
STUDENT = 2.101  # 97.5% quantile of Student's t with BLOCKS - 2 degrees of freedom
SETTLED_SHARE = 0.25  # the start of a run, in which pools and caches fill, says nothing of a leak


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of `values` do not exceed, interpolated; not a number of none."""
    return float(np.quantile(values, share)) if len(values) else math.nan


def medians(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure over the rounds that have it."""
    names = dict.fromkeys(name for one in rounds for name in one)
    return {
        name: statistics.median(known) if (known := _known(rounds, name)) else math.nan
        for name in names
    }


def per_thousand(amount: float, count: float) -> float:
    """`amount` for each thousand of `count`; not a number of none."""
    return amount / count * 1000 if count else math.nan


@dataclass(frozen=True, slots=True)
class Slope:
    """What y gains for each unit of x: the estimate and its 95% confidence interval."""

    estimate: float
    low: float
    high: float

    def verdict(self, tolerated: float) -> str:
        """ "grows" or "level" against a tolerated slope, "unclear" where the interval holds it."""
        if self.low > tolerated:
            return "grows"
        return "level" if self.high <= tolerated else "unclear"


def slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    """Least squares through the means of `BLOCKS` equal stretches of x, the start left out.

    Neighbouring samples of a process's memory are nearly the same sample, so an interval from all
    of them would be far too narrow; means of stretches are nearly independent. Raises `ValueError`
    where x does not reach into every stretch.
    """
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    if not len(xs) or xs.max() <= xs.min():
        raise ValueError("samples: all taken at one place")
    edges = np.linspace(xs.min() + SETTLED_SHARE * np.ptp(xs), xs.max(), BLOCKS + 1)
    stretch = np.searchsorted(edges, xs, side="right") - 1
    stretch[xs == xs.max()] = BLOCKS - 1
    members = [stretch == number for number in range(BLOCKS)]
    if not all(member.any() for member in members):
        raise ValueError(f"samples: {len(xs)} do not reach into all {BLOCKS} stretches")
    mean_x = np.array([xs[member].mean() for member in members])
    mean_y = np.array([ys[member].mean() for member in members])
    spread = mean_x - mean_x.mean()
    squares = float((spread**2).sum())
    estimate = float((spread * mean_y).sum()) / squares
    residuals = mean_y - mean_y.mean() - estimate * spread
    error = math.sqrt(float((residuals**2).sum()) / (BLOCKS - 2) / squares)
    return Slope(estimate, estimate - STUDENT * error, estimate + STUDENT * error)


def recovery(
    probes: Iterable[tuple[float, float, str]], since: float, normal_s: float, needed: int = 10
) -> float:
    """Seconds after `since` until `needed` probes in a row are OK within `normal_s`.

    Each probe is (when sent, seconds taken, code). Not a number if it never comes to that.
    """
    first, good = math.nan, 0
    for sent, seconds, code in probes:
        if sent < since:
            continue
        if code != "OK" or not seconds <= normal_s:
            good = 0
            continue
        if not good:
            first = sent
        good += 1
        if good == needed:
            return first - since
    return math.nan


def strict(value: Any) -> Any:
    """The same for JSON, which knows no NaN: None in its place."""
    if isinstance(value, Mapping):
        return {key: strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _known(rounds: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [one[name] for one in rounds if not math.isnan(one.get(name, math.nan))]
