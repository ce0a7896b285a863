"""One process or several on one port: when does another event loop pay?"""

import contextlib
import os
from functools import partial

from service.ort_backend import cpu_quota
from tests.benchmarks.bench import Bench, Key, Phase
from tests.benchmarks.report import Result

CALLERS = 64
CHANNELS = 16  # the kernel shares connections, not calls, among the processes
TEXTS, BULK_CALLERS = 256, 8  # of each load's calls of many
SHOWN = ("texts_per_s", "times_one", "cpu_s_per_1000", "p50_ms", "p99_ms", "rss_mb")
ONE = "1 process"


def run(bench: Bench) -> Result:
    """Every bundle by one process, and by one for each CPU but two at least."""
    phases: dict[Key, Phase] = {}
    loads = max(1, len(os.sched_getaffinity(0)) // 2)  # more than one generator can ask for
    with contextlib.ExitStack() as stack:
        for name, folder in bench.bundles.items():
            for count in (1, max(2, cpu_quota())):
                server = stack.enter_context(bench.serve(folder, "--workers", str(count)))
                bench.warm_up(server, callers=CALLERS, channels=CHANNELS)
                load = partial(bench.measure, server, "closed", channels=CHANNELS)
                system = ONE if count == 1 else f"{count} processes"
                phases[system, name, f"{CALLERS} callers"] = partial(load, callers=CALLERS)
                phases[system, name, f"calls of {TEXTS}"] = partial(
                    load, callers=BULK_CALLERS, per_call=TEXTS, loads=loads
                )
        result = Result("workers", bench.interleave(phases), SHOWN)
    result.relate("times_one", "texts_per_s", ONE)
    result.notes.append(
        f"{CALLERS} callers of one text; calls of {TEXTS} by {loads} loads of {BULK_CALLERS} "
        f"callers; each load on {CHANNELS} connections; CPU of all processes"
    )
    return result
