"""Calls by chance, up to ten times as many as can be answered, each with a deadline."""

import contextlib
import math
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.benchmarks.bench import UNBATCHED, Bench, Key, Phase
from tests.benchmarks.calls import REFUSALS, Call, read_trace
from tests.benchmarks.figures import Figures, percentile, recovery
from tests.benchmarks.process import Process
from tests.benchmarks.report import Result

TEXTS = 8  # a call: a generator in Python could not send ten times the capacity one by one
CALLERS, DEADLINE_S = 16, 1.0
FACTORS = (0.5, 0.9, 2.0, 5.0, 10.0)
PROBES_PER_S = 20.0
BEFORE_S, AFTER_S = 2.0, 3.0
LEAST_S = 3 * DEADLINE_S  # rates count from when the first deadline is over
SLACK_MS = 5.0
CAPACITY = "capacity, 16 callers"
SHOWN: tuple[str, ...] = (
    "offered_per_s",
    "goodput_per_s",
    "goodput_share",
    "p50_ms",
    "p99_ms",
    "refusals",
)
SHOWN += ("refusal_p99_ms", "probe_refusal_p99_ms", "unheard", "recovery_s", "rss_before_mb")
SHOWN += ("rss_mb", "late_p99_ms")


def run(bench: Bench) -> Result:
    """Ours and its peer, each against the capacity measured in the same round."""
    name, folder = bench.first
    phases: dict[Key, Phase] = {}
    with contextlib.ExitStack() as stack:
        systems = {
            "realce": bench.serve(folder),
            UNBATCHED: bench.peer("unbatched", folder),
        }
        for system, server in systems.items():
            stack.enter_context(server)
            bench.warm_up(server, per_call=TEXTS)
            flood = Flood(bench, server)
            phases[system, name, CAPACITY] = flood.measure_capacity
            for factor in FACTORS:
                phases[system, name, f"{factor:g} × capacity"] = partial(flood.offer, factor)
        result = Result("overload", bench.interleave(phases), SHOWN)
    result.notes.append(
        f"calls of {TEXTS} texts with a deadline of {DEADLINE_S:g} s, beside them a probe of one "
        f"text {PROBES_PER_S:g} times a second; recovery is when ten probes in a row are answered "
        "as fast as before"
    )
    return result


class Flood:
    """One server's capacity and what it does beyond it."""

    def __init__(self, bench: Bench, server: Process) -> None:
        self._bench, self._server = bench, server
        self._capacity = math.nan

    def measure_capacity(self) -> Figures:
        """Texts a second with callers who wait for their answers."""
        figures = self._bench.measure(self._server, "closed", callers=CALLERS, per_call=TEXTS)
        self._capacity = figures["texts_per_s"]
        return figures

    def offer(self, factor: float) -> Figures:
        """Calls at `factor` times the capacity, and a probe from before until after them."""
        bench, server = self._bench, self._server
        seconds = max(bench.seconds, LEAST_S)
        before = server.rss()
        rate = factor * self._capacity / TEXTS
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "probes.npz"
            lasting = BEFORE_S + seconds + AFTER_S
            probe = {"rate": PROBES_PER_S, "seconds": lasting, "deadline": DEADLINE_S}
            with bench.load(server, "open", trace=trace, **probe) as probing:
                load = {"rate": rate, "seconds": seconds, "deadline": DEADLINE_S, "per_call": TEXTS}
                with bench.load(server, "open", **load) as loading:
                    probing.begin()
                    time.sleep(BEFORE_S)
                    loading.begin()
                    summary = loading.finish()
                probing.finish()
            probes = sorted(read_trace(trace), key=lambda call: call.sent)
        figures = {k: v for k, v in summary.items() if isinstance(v, int | float)}
        figures |= judge(probes, summary["began"], summary["last_sent"])
        figures["goodput_per_s"] += figures["probe_goodput_per_s"]
        figures["goodput_share"] = figures["goodput_per_s"] / self._capacity
        figures["capacity_per_s"] = self._capacity
        return figures | {"rss_before_mb": before / 1e6, "rss_mb": server.rss() / 1e6}


def judge(probes: Sequence[Call], began: float, ended: float) -> Figures:
    """What probes saw of a load from `began` to `ended`, and how soon after it all was well.

    Well is within twice what 99 of 100 probes took before, and a little more.
    """
    calm = [call.seconds for call in probes if call.ended < began and call.code == "OK"]
    during = [call for call in probes if began <= call.sent <= ended]
    refused = [call.seconds for call in during if call.told and call.code in REFUSALS]
    normal_s = 2 * percentile(calm, 0.99) + SLACK_MS / 1e3
    seen = [(call.sent, call.seconds, call.code) for call in probes]
    good = sum(call.code == "OK" and call.seconds <= DEADLINE_S for call in during)
    return {
        "probe_refusal_p99_ms": percentile(refused, 0.99) * 1e3,
        "probe_goodput_per_s": good / (ended - began) if ended > began else math.nan,
        "recovery_s": recovery(seen, ended, normal_s),
    }
