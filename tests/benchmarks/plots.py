"""Plots of results, where matplotlib is installed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.report import Result, Row

SIZE = (8, 4.5)


def draw(result: Result, folder: Path) -> list[Path]:
    """Write the plots that the result has figures for; their files, none without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    paths = []
    for name, paint in PLOTS.items():
        figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
        if paint(result, axes):
            paths.append(folder / f"{result.scenario}-{name}.png")
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(paths[-1], dpi=150)
        pyplot.close(figure)
    return paths


def cpu_per_1000(result: Result, axes: Any) -> bool:
    """A bar for each row."""
    rows = [row for row in result.rows if row.median.get("cpu_s_per_1000", 0) > 0]
    names = [", ".join(filter(None, (row.system, row.bundle, row.load))) for row in rows]
    axes.barh(names[::-1], [row.median["cpu_s_per_1000"] for row in rows][::-1])
    axes.set_xlabel("server CPU-seconds per 1,000 answers")
    return bool(rows) and result.scenario != "overload"


def latency_against_load(result: Result, axes: Any) -> bool:
    """A line for each system and quantile."""
    curves = list(_open_loop(result))
    for number, (system, rows) in enumerate(curves):
        x = [row.median["offered_per_s"] for row in rows]
        for name, style in (("p50_ms", "-"), ("p99_ms", "--")):
            label = f"{system}, {name.removesuffix('_ms')}"
            y = [row.median[name] for row in rows]
            axes.plot(x, y, style, marker="o", color=f"C{number}", label=label)
    axes.set(xscale="log", yscale="log", xlabel="offered texts/s", ylabel="latency of answers, ms")
    return _legend(axes, curves)


def goodput_against_load(result: Result, axes: Any) -> bool:
    """A line for each system, and a dashed one for what it can do."""
    curves = list(_open_loop(result))
    for system, rows in curves:
        x = [row.median["offered_per_s"] for row in rows]
        y = [row.median["goodput_per_s"] for row in rows]
        (line,) = axes.plot(x, y, marker="o", label=system)
        capacity = rows[0].median.get("capacity_per_s")
        if capacity:
            axes.axhline(capacity, color=line.get_color(), linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="offered texts/s", ylabel="texts/s answered on time")
    axes.set_ylim(bottom=0)
    return _legend(axes, curves)


def memory(result: Result, axes: Any) -> bool:
    """A line for each system."""
    rows = [row for row in result.rows if "rss_mb" in row.series]
    for row in rows:
        axes.plot(row.series["seconds"], row.series["rss_mb"], label=row.system)
    axes.set(xlabel="seconds", ylabel="resident memory, MB")
    return _legend(axes, rows)


PLOTS: dict[str, Callable[[Result, Any], bool]] = {
    "cpu-per-1000": cpu_per_1000,
    "latency-against-load": latency_against_load,
    "goodput-against-load": goodput_against_load,
    "memory": memory,
}


def _open_loop(result: Result) -> Iterator[tuple[str, list[Row]]]:
    """Each system's rows of open load, by what was offered."""
    rows = [row for row in result.rows if "capacity_per_s" in row.median]
    for system in dict.fromkeys(row.system for row in rows):
        own = [row for row in rows if row.system == system]
        yield system, sorted(own, key=lambda row: row.median["offered_per_s"])


def _legend(axes: Any, lines: list[Any]) -> bool:
    if lines:
        axes.legend()
        axes.grid(alpha=0.3)
    return bool(lines)
