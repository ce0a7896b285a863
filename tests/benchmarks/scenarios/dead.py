"""Work for callers who have gone: half of them hang up, at twice what can be answered."""

import math
import time
from typing import Any

from tests.benchmarks.bench import Bench, Key, Phase
from tests.benchmarks.figures import Figures
from tests.benchmarks.process import Process
from tests.benchmarks.report import Result
from tests.benchmarks.server import COUNTED, COUNTERS, padding

TEXTS, CALLERS = 8, 16
FACTOR, DEADLINE_S, CANCEL_SHARE, CANCEL_AFTER_S = 2.0, 1.0, 0.5, 0.2
IDLE_S = 1.0  # for what still runs once the last caller has gone
SHOWN: tuple[str, ...] = (
    "offered_per_s",
    "texts_per_s",
    "computed",
    "answered",
    "wasted_share",
    "padding_share",
)


def run(bench: Bench) -> Result:
    """Rows that reached the backend against rows that their callers received."""
    name, folder = bench.first
    with bench.measured(folder, "counting") as server:
        bench.warm_up(server, per_call=TEXTS)
        desertion = Desertion(bench, server)
        phases: dict[Key, Phase] = {
            ("realce", name, "capacity"): desertion.measure_capacity,
            ("realce", name, "2 × capacity, all stay"): lambda: desertion.offer(0.0),
            ("realce", name, "2 × capacity, half hang up"): lambda: desertion.offer(CANCEL_SHARE),
        }
        result = Result("dead", bench.interleave(phases), SHOWN)
    result.notes.append(
        f"calls of {TEXTS} texts, a deadline of {DEADLINE_S:g} s; those who hang up do so within "
        f"{2 * CANCEL_AFTER_S:g} s; what was answered is what callers received"
    )
    return result


class Desertion:
    """One server whose callers go."""

    def __init__(self, bench: Bench, server: Process) -> None:
        self._bench, self._server = bench, server
        self._capacity = math.nan

    def measure_capacity(self) -> Figures:
        """Texts a second with callers who wait for their answers."""
        figures = self._count("closed", callers=CALLERS)
        self._capacity = figures["texts_per_s"]
        return figures

    def offer(self, cancel_share: float) -> Figures:
        """Twice that by chance, of which a share hangs up."""
        return self._count(
            "open",
            rate=FACTOR * self._capacity / TEXTS,
            deadline=DEADLINE_S,
            cancel_share=cancel_share,
            cancel_after=CANCEL_AFTER_S,
        )

    def _count(self, mode: str, **flags: Any) -> Figures:
        before = self._server.ask(COUNTED)
        figures = self._bench.measure(self._server, mode, per_call=TEXTS, **flags)
        time.sleep(IDLE_S)
        after = self._server.ask(COUNTED)
        gained = {name: after[name] - before[name] for name in COUNTERS}
        computed, answered = gained["rows"], figures["texts_ok"]
        return (
            figures
            | padding(before, after)
            | {
                "computed": computed,
                "answered": answered,
                "engine_answered": gained["engine_answered"],
                "wasted_share": 1 - answered / computed if computed else math.nan,
            }
        )
