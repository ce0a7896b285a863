"""Does memory grow with the calls answered?"""

import time
from typing import Any

from tests.benchmarks.bench import Bench
from tests.benchmarks.growth import GROWS, beside_a_leak, grown
from tests.benchmarks.process import Process
from tests.benchmarks.report import Result, Row
from tests.benchmarks.server import LEAKED_BYTES

CALLERS = 16
LEAST_CALLS_PER_S = 50.0  # slower than that, the run ends before all calls were made
SAMPLE_S = 0.1
TOLERATED = 100.0  # bytes a call, that allocators and caches may take: 20 MB in 200,000 calls
SHOWN: tuple[str, ...] = (
    "calls",
    "texts_per_s",
    "rss_before_mb",
    "rss_mb",
    "growth",
    "growth_low",
    "growth_high",
)


def run(bench: Bench) -> Result:
    """Calls of all kinds."""
    result = Result("memory", [], SHOWN)
    result.notes.append(
        f"the leak is {LEAKED_BYTES} bytes a row; growth is the slope of resident memory with its "
        f"95% interval, {GROWS!r} where all of that is above {TOLERATED:g} bytes a call"
    )
    return beside_a_leak(bench, result, f"{bench.options.calls} calls", "leaking", watch)


def watch(bench: Bench, server: Process, row: Row) -> None:
    """Send the calls while sampling memory; fills the row."""
    load: dict[str, Any] = {"callers": CALLERS, "mix": True, "most": bench.options.calls}
    load["seconds"] = bench.options.calls / LEAST_CALLS_PER_S
    bench.warm_up(server, mix=True)
    times, sizes = [], [server.rss()]
    with bench.load(server, "closed", **load) as loading:
        loading.begin()
        started = time.monotonic()
        times.append(0.0)
        while loading.running():
            time.sleep(SAMPLE_S)
            times.append(time.monotonic() - started)
            sizes.append(server.rss())
        summary = loading.finish()
    calls_per_s = summary["calls"] / times[-1]
    found = grown(times, sizes, f"--calls {bench.options.calls}")
    row.verdict = found.verdict(TOLERATED * calls_per_s)
    row.series = {"seconds": times, "rss_mb": [size / 1e6 for size in sizes]}
    row.rounds.append(
        {
            "calls": summary["calls"],
            "texts_per_s": summary["texts_per_s"],
            "rss_before_mb": sizes[0] / 1e6,
            "rss_mb": sizes[-1] / 1e6,
            "growth": found.estimate / calls_per_s,
            "growth_low": found.low / calls_per_s,
            "growth_high": found.high / calls_per_s,
        }
    )
