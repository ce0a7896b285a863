"""Many texts a call: 64 in each, as calls and as a stream."""

import contextlib
import operator
from functools import partial

from tests.benchmarks.bench import RAW, UNBATCHED, Bench, Key, Phase
from tests.benchmarks.report import Result

TEXTS = 64
CALLS, STREAM = "calls of 64, 4 callers", "stream of 64s"
SHOWN: tuple[str, ...] = (
    "texts_per_s",
    "times_unbatched",
    "of_raw",
    "cpu_s_per_1000",
    "over_raw",
    "times_raw",
    "p50_ms",
)


def run(bench: Bench) -> Result:
    """Ours and its peer against the raw loop, and without a backend for what is around it."""
    phases: dict[Key, Phase] = {}
    with contextlib.ExitStack() as stack:
        for name, folder in bench.bundles.items():
            for system, server in bench.systems(name, folder).items():
                stack.enter_context(server)
                bench.warm_up(server, per_call=TEXTS)
                phases[system, name, CALLS] = partial(
                    bench.measure, server, "closed", callers=4, per_call=TEXTS
                )
                if system.startswith("realce"):
                    phases[system, name, STREAM] = partial(
                        bench.measure, server, "stream", callers=1, per_call=TEXTS
                    )
            phases[RAW, name, CALLS] = partial(bench.raw, "sorted", folder)
        result = Result("bulk", bench.interleave(phases), SHOWN)
    result.relate("of_raw", "texts_per_s", RAW, CALLS)
    result.relate("times_raw", "cpu_s_per_1000", RAW, CALLS)
    result.relate("over_raw", "cpu_s_per_1000", RAW, CALLS, by=operator.sub)
    result.relate("times_unbatched", "texts_per_s", UNBATCHED, CALLS)
    result.notes.append(
        f"{RAW}: batches of one size sorted by length over all texts, a thread a CPU"
    )
    return result
