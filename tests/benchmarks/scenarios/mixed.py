"""Texts of all lengths, and bulk beside single texts."""

import math
from functools import partial
from typing import Any

from tests.benchmarks.bench import LEAD_S, Bench, Key, Load, Phase
from tests.benchmarks.figures import Figures
from tests.benchmarks.process import Process
from tests.benchmarks.report import Result
from tests.benchmarks.server import COUNTED, padding

CALLERS, TEXTS, WINDOW = 16, 64, 2
UNARY_SHARE = 0.2  # of the capacity
LONGER = 2  # than other phases: a fifth of the calls make poor percentiles
CAPACITY, ALONE = "capacity, 16 callers", "unary at a fifth of it"
SHOWN: tuple[str, ...] = (
    "texts_per_s",
    "bulk_per_s",
    "p50_ms",
    "p99_ms",
    "times_alone",
    "long_p99_ms",
)
SHOWN += ("padding_share", "late_p99_ms")


def run(bench: Bench) -> Result:
    """Single texts alone, beside bulk calls and beside a bulk stream."""
    name, folder = bench.first
    with bench.measured(folder, "counting") as server:
        bench.warm_up(server, lengths="wide")
        mixture = Mixture(bench, server)
        phases: dict[Key, Phase] = {
            ("realce", name, CAPACITY): mixture.measure_capacity,
            ("realce", name, ALONE): mixture.unary,
            ("realce", name, "… beside bulk calls"): partial(mixture.beside, "closed", callers=2),
            ("realce", name, "… beside a bulk stream"): partial(
                mixture.beside, "stream", callers=1, window=WINDOW
            ),
        }
        result = Result("mixed", bench.interleave(phases), SHOWN)
    result.relate("times_alone", "p99_ms", "realce", ALONE)
    result.notes.append(f"texts of 1 to 512 words, bulk in calls of {TEXTS}")
    return result


class Mixture:
    """One server under texts of all lengths."""

    def __init__(self, bench: Bench, server: Process) -> None:
        self._bench, self._server = bench, server
        self._capacity = math.nan
        self._seconds = LONGER * bench.seconds

    def measure_capacity(self) -> Figures:
        """Texts a second with callers who wait for their answers."""
        before = self._server.ask(COUNTED)
        figures = self._bench.measure(self._server, "closed", callers=CALLERS, lengths="wide")
        self._capacity = figures["texts_per_s"]
        return figures | padding(before, self._server.ask(COUNTED))

    def unary(self, beside: Load | None = None) -> Figures:
        """Single texts by chance, at a rate that leaves room."""
        before, rate = self._server.ask(COUNTED), UNARY_SHARE * self._capacity
        load = {"rate": rate, "lengths": "wide", "seconds": self._seconds}
        figures = self._bench.measure(self._server, "open", beside=beside, **load)
        return figures | padding(before, self._server.ask(COUNTED))

    def beside(self, mode: str, **flags: Any) -> Figures:
        """The same, beside bulk that always wants more; the figures are those of the single."""
        bench, lasting = self._bench, self._seconds + 2 * LEAD_S
        bulk = {"lengths": "wide", "per_call": TEXTS, "seconds": lasting}
        with bench.load(self._server, mode, **bulk, **flags) as beside:
            figures = self.unary(beside)
            return figures | {"bulk_per_s": beside.finish()["texts_per_s"]}
