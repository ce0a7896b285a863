"""What came of calls: one record each, and what a run of them amounts to."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.figures import percentile

REFUSALS = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED")
ADDED = ("calls", "texts", "texts_ok", "refusals", "unheard")  # over loads, as rates are
LONG_SHARE = 0.9  # a call is long if its request is larger than those of this share


@dataclass(slots=True)
class Call:
    """One call: when it was due and sent (monotonic seconds), how long it took, what came of it.

    `told` is True where the server itself failed it; a deadline that passes without a word from
    the server, or a lost connection, is the library's own finding.
    """

    due: float
    sent: float
    seconds: float
    code: str
    texts: int
    told: bool = False
    request_bytes: int = 0
    answer_bytes: int = 0

    @property
    def ended(self) -> float:
        """When it was over."""
        return self.sent + self.seconds


def summary(calls: Sequence[Call], deadline_s: float | None = None) -> dict[str, Any]:
    """What a run came to.

    Rates are over the steady part of the run: from the first answer, or from when the first
    deadline was over, to the last call sent; of a run too short for that, over all of it. Goodput
    counts the texts of calls that were OK within the deadline. A refusal is a failure that the
    server told of: the queue is full, too many wait, the time will not do, or it is not serving.
    Latencies are of calls that were OK.
    """
    codes = Counter(one.code for one in calls)
    answered = [one for one in calls if one.code == "OK"]
    good = [one for one in answered if deadline_s is None or one.seconds <= deadline_s]
    refused = [one.seconds * 1e3 for one in calls if one.told and one.code in REFUSALS]
    latencies = [one.seconds * 1e3 for one in answered]
    texts_ok = sum(one.texts for one in answered)
    bound = percentile([one.request_bytes for one in calls], LONG_SHARE)
    long = [one.seconds * 1e3 for one in answered if one.request_bytes > bound]
    late = [(one.sent - one.due) * 1e3 for one in calls]
    began = min((one.sent for one in calls), default=math.nan)
    last = max((one.sent for one in calls), default=math.nan)
    start = began + deadline_s if deadline_s else min((o.ended for o in answered), default=began)
    steady = _Window(start, last)
    if not deadline_s and start >= last:  # every caller made one call
        steady = _Window(math.nextafter(began, -math.inf), max(one.ended for one in calls))
    return {
        "calls": len(calls),
        "texts": sum(one.texts for one in calls),
        "texts_ok": texts_ok,
        "began": began,
        "last_sent": last,
        "offered_per_s": steady.rate((one.sent, one.texts) for one in calls),
        "texts_per_s": steady.rate((one.ended, one.texts) for one in answered),
        "goodput_per_s": steady.rate((one.ended, one.texts) for one in good),
        "p50_ms": percentile(latencies, 0.5),
        "p99_ms": percentile(latencies, 0.99),
        "long_p99_ms": percentile(long, 0.99),
        "refusals": len(refused),
        "refusal_p50_ms": percentile(refused, 0.5),
        "refusal_p99_ms": percentile(refused, 0.99),
        "unheard": sum(not one.told for one in calls if one.code == "DEADLINE_EXCEEDED"),
        "bytes_per_text": sum(one.answer_bytes for one in answered) / max(texts_ok, 1),
        "late_p99_ms": percentile(late, 0.99),
        "codes": dict(codes.most_common()),
    }


def together(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summaries of loads side by side as one: counts and rates add up, of the rest the largest
    stands for all, and they began with the first."""
    whole: dict[str, Any] = {}
    for name in summaries[0]:
        values = [one[name] for one in summaries]
        if name == "codes":
            whole[name] = dict(sum(map(Counter, values), Counter()))
        elif name in ADDED or name.endswith("_per_s"):
            whole[name] = sum(values)
        else:
            whole[name] = min(values) if name == "began" else max(values)
    return whole


def write_trace(path: Path, calls: Sequence[Call]) -> None:
    """Every call, as one array a field."""
    names = [field.name for field in dataclasses.fields(Call)]
    columns: dict[str, Any] = {
        name: np.array([getattr(one, name) for one in calls]) for name in names
    }
    np.savez_compressed(path, **columns)


def read_trace(path: Path) -> Iterator[Call]:
    """What `write_trace` wrote."""
    with np.load(path) as columns:
        names = [field.name for field in dataclasses.fields(Call)]
        for values in zip(*(columns[name].tolist() for name in names), strict=True):
            yield Call(*values)


@dataclass(frozen=True, slots=True)
class _Window:
    start: float
    end: float

    def rate(self, amounts: Iterator[tuple[float, int]]) -> float:
        """The sum of the amounts whose time is after the start and up to the end, by second."""
        if not self.end > self.start:
            return math.nan
        inside = sum(amount for at, amount in amounts if self.start < at <= self.end)
        return inside / (self.end - self.start)
