"""Does memory grow with the bundles put in service, and does any call suffer from it?"""

import signal
import time

from tests.benchmarks.bench import Bench
from tests.benchmarks.growth import GROWS, beside_a_leak, grown
from tests.benchmarks.process import Process
from tests.benchmarks.report import Result, Row

CALLERS = 4
LONGEST_S = 20.0  # a reload
SETTLE_S = 0.3  # for the one before to be drained and let go of
TOLERATED_MB = 0.5  # a reload, that allocators may take; an engine is a hundred times that
EXPECTED = ("OK", "INVALID_ARGUMENT")  # of calls of all kinds
SHOWN: tuple[str, ...] = (
    "reload_s",
    "calls",
    "failed",
    "rss_before_mb",
    "rss_mb",
    "growth_mb",
    "growth_mb_low",
    "growth_mb_high",
)


def run(bench: Bench) -> Result:
    """The same bundle again and again, under calls of all kinds."""
    result = Result("reload", [], SHOWN)
    result.notes.append(
        f"beside {CALLERS} callers; growth is the slope of resident memory with its 95% interval, "
        f"{GROWS!r} where all of that is above {TOLERATED_MB} MB a reload"
    )
    return beside_a_leak(bench, result, f"{bench.options.reloads} reloads", "hoarding", watch)


def watch(bench: Bench, server: Process, row: Row) -> None:
    """Reload while calls come, sampling memory after each; fills the row."""
    times = bench.options.reloads
    bench.warm_up(server, mix=True)
    sizes, taken_s = [server.rss()], []
    with bench.load(server, "closed", callers=CALLERS, mix=True, seconds=LONGEST_S * times) as load:
        load.begin()
        for _ in range(times):
            taken_s.append(server.ask("reloaded", signal.SIGHUP, LONGEST_S)["reload_s"])
            time.sleep(SETTLE_S)
            sizes.append(server.rss())
        summary = load.finish(now=True)
    found = grown(range(len(sizes)), sizes, f"--reloads {times}")
    row.verdict = found.verdict(TOLERATED_MB * 1e6)
    row.series = {
        "reloads": [float(number) for number in range(len(sizes))],
        "rss_mb": [size / 1e6 for size in sizes],
    }
    row.rounds.append(
        {
            "reload_s": sum(taken_s) / times,
            "calls": summary["calls"],
            "failed": sum(n for code, n in summary["codes"].items() if code not in EXPECTED),
            "rss_before_mb": sizes[0] / 1e6,
            "rss_mb": sizes[-1] / 1e6,
            "growth_mb": found.estimate / 1e6,
            "growth_mb_low": found.low / 1e6,
            "growth_mb_high": found.high / 1e6,
        }
    )
