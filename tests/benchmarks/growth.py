"""Does memory grow? Asked of ours, and of a server that leaks and must be caught."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.benchmarks.bench import Bench, say
from tests.benchmarks.figures import Slope, slope
from tests.benchmarks.process import Process, ProcessFailed
from tests.benchmarks.report import Result, Row

GROWS = "grows"

Watch = Callable[[Bench, Process, Row], None]


def beside_a_leak(bench: Bench, result: Result, load: str, leak: str, watch: Watch) -> Result:
    """Fill `result` with ours and with the backend `leak`, one long run of each.

    `watch` fills a row and its verdict.
    """
    name, folder = bench.first
    starts: tuple[Callable[[Path], Process], ...] = (
        bench.serve,
        partial(bench.measured, backend=leak),
    )
    for system, start in zip(("realce", f"realce, {leak}"), starts, strict=True):
        row = Row(system, name, load)
        say(f"{row.system}, {row.bundle}, {row.load}")
        with start(folder) as server:
            watch(bench, server, row)
        result.rows.append(row)
    if result.rows[-1].verdict != GROWS:
        result.notes.append("THE LEAK WAS NOT DETECTED: the other verdict is worth nothing")
    return result


def grown(x: Sequence[float], sizes: Sequence[int], flag: str) -> Slope:
    """The slope of `sizes` over x; `flag` is what to raise where there are too few."""
    try:
        return slope(x, sizes)
    except ValueError as error:
        raise ProcessFailed(f"{flag}: too few: {error}") from error
