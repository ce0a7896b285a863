"""One text a call: 64 callers, and one caller alone."""

import contextlib
import operator
from functools import partial

from tests.benchmarks.bench import RAW, UNBATCHED, Bench, Key, Phase
from tests.benchmarks.report import Result

CALLERS = 64
CROWD, ALONE = "64 callers", "1 caller"
SHOWN: tuple[str, ...] = (
    "texts_per_s",
    "times_unbatched",
    "of_empty",
    "cpu_s_per_1000",
    "over_raw",
    "times_raw",
)
SHOWN += ("p50_ms", "p50_over_raw_ms", "p50_over_paced_ms", "p99_ms", "rss_mb")
EMPTY = "empty grpc.aio method"
PACED, PAUSE_S = f"{RAW}, paced", 1e-3


def run(bench: Bench) -> Result:
    """Ours and its peers against the raw loop, and without a backend against an empty method."""
    phases: dict[Key, Phase] = {}
    with contextlib.ExitStack() as stack:
        for name, folder in bench.bundles.items():
            systems = bench.systems(name, folder)
            if (name, folder) == bench.first:
                systems[EMPTY] = bench.peer("empty", folder)
            for system, server in systems.items():
                stack.enter_context(server)
                bench.warm_up(server)
                for load, callers in ((CROWD, CALLERS), (ALONE, 1)):
                    phases[system, name, load] = partial(
                        bench.measure, server, "closed", callers=callers
                    )
            phases[RAW, name, CROWD] = partial(bench.raw, "sorted", folder)
            phases[RAW, name, "as they come"] = partial(bench.raw, "arriving", folder)
            single = partial(bench.raw, "single", folder, threads=1)
            phases[RAW, name, ALONE] = single
            phases[PACED, name, ALONE] = partial(single, pause=PAUSE_S)
        result = Result("unary", bench.interleave(phases), SHOWN)
    result.relate("times_raw", "cpu_s_per_1000", RAW, CROWD)
    result.relate("over_raw", "cpu_s_per_1000", RAW, CROWD, by=operator.sub)
    result.relate("times_unbatched", "texts_per_s", UNBATCHED)
    result.relate("of_empty", "texts_per_s", EMPTY)
    result.relate("p50_over_raw_ms", "p50_ms", RAW, by=operator.sub)
    result.relate("p50_over_paced_ms", "p50_ms", PACED, by=operator.sub)
    result.notes.append(
        f"{RAW}: with {CROWD}, batches of one size sorted by length, a thread for each CPU; "
        f"with {ALONE}, one text at a time on one thread; paced: each {PAUSE_S * 1e3:g} ms after "
        "the last, as a caller's texts come"
    )
    return result
