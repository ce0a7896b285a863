"""What a scenario came to: one table for people, one JSON object for programs."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.figures import Figures, medians, strict

WIDTH = 200  # characters, where no terminal says

# Heading and format of the figures that tables can show.
COLUMNS = {
    "texts_per_s": ("texts/s", ",.0f"),
    "times_unbatched": ("× unbatched", ".2f"),
    "of_empty": ("of empty method", ".0%"),
    "cpu_s_per_1000": ("CPU-s per 1,000", ".2f"),
    "over_raw": ("over raw", "+.2f"),
    "times_raw": ("× raw", ".2f"),
    "of_raw": ("of raw texts/s", ".0%"),
    "times_plain": ("× plain", ".2f"),
    "times_one": ("× one process", ".2f"),
    "p50_ms": ("p50 ms", ",.1f"),
    "p50_over_raw_ms": ("over raw ms", "+.1f"),
    "p50_over_paced_ms": ("over paced ms", "+.1f"),
    "p99_ms": ("p99 ms", ",.1f"),
    "times_alone": ("p99 × alone", ".1f"),
    "long_p99_ms": ("longest tenth p99 ms", ",.1f"),
    "offered_per_s": ("offered texts/s", ",.0f"),
    "goodput_per_s": ("on time texts/s", ",.0f"),
    "goodput_share": ("of capacity", ".0%"),
    "refusals": ("refused calls", ",.0f"),
    "refusal_p99_ms": ("refusal p99 ms", ",.1f"),
    "probe_refusal_p99_ms": ("by a probe", ",.1f"),
    "unheard": ("unanswered", ",.0f"),
    "recovery_s": ("recovery s", ".2f"),
    "calls": ("calls", ",.0f"),
    "computed": ("rows computed", ",.0f"),
    "answered": ("rows answered", ",.0f"),
    "wasted_share": ("wasted", ".1%"),
    "padding_share": ("padding", ".1%"),
    "bytes_per_text": ("bytes a text", ",.0f"),
    "tensor_bytes": ("of them tensors", ",.0f"),
    "bulk_per_s": ("bulk texts/s", ",.0f"),
    "ready_s": ("start to SERVING s", ".2f"),
    "import_s": ("import s", ".2f"),
    "cpu_s": ("CPU-s", ".2f"),
    "rss_before_mb": ("RSS before MB", ",.0f"),
    "rss_mb": ("RSS MB", ",.0f"),
    "growth": ("bytes a call", ",.1f"),
    "growth_low": ("95% from", ",.1f"),
    "growth_high": ("to", ",.1f"),
    "reload_s": ("a reload s", ".2f"),
    "failed": ("failed", ",.0f"),
    "growth_mb": ("MB a reload", ",.2f"),
    "growth_mb_low": ("95% from", ",.2f"),
    "growth_mb_high": ("to", ",.2f"),
    "logits": ("logits", ".1e"),
    "probabilities": ("probabilities", ".1e"),
    "evidence": ("evidence", ".1e"),
    "contributions": ("contributions", ".1e"),
    "pooling_attention": ("pooling attention", ".1e"),
    "attentions": ("attentions", ".1e"),
    "accuracy": ("accuracy", ".1%"),
    "cpu_ms": ("CPU-ms a text", ".2f"),
    "size_mb": ("MB", ",.1f"),
    "tokens_per_s": ("training tokens/s", ",.0f"),
    "times_torch": ("× torch", ".2f"),
    "late_p99_ms": ("generator late ms", ",.1f"),
}


@dataclass(slots=True)
class Row:
    """One system with one bundle under one load, over some rounds; `series` are for plots."""

    system: str
    bundle: str
    load: str
    rounds: list[Figures] = field(default_factory=list)
    series: dict[str, list[float]] = field(default_factory=dict)
    verdict: str = ""

    @property
    def median(self) -> Figures:
        """Of each figure over the rounds."""
        return medians(self.rounds)


@dataclass(slots=True)
class Result:
    """A scenario's rows, the figures of `COLUMNS` that its table shows, and what explains them."""

    scenario: str
    rows: list[Row]
    shown: Sequence[str]
    notes: list[str] = field(default_factory=list)

    def relate(
        self,
        name: str,
        figure: str,
        system: str,
        load: str = "",
        by: Callable[[float, float], float] = lambda one, base: one / base if base else math.nan,
    ) -> None:
        """Add figure `name`: a figure by that of `system`, within each round and bundle.

        The base is the system's row of the same load, or of `load` where that is given; rows
        without such a base stay as they are.
        """
        bases = {(row.bundle, row.load): row.rounds for row in self.rows if row.system == system}
        for row in self.rows:
            key = row.bundle, load or row.load
            for figures, base in zip(row.rounds, bases.get(key, ()), strict=False):
                if figure in figures and figure in base:
                    figures[name] = by(figures[figure], base[figure])


def show(result: Result, console: Console | None = None) -> None:
    """Print the table of medians."""
    rows = [(row, row.median) for row in result.rows]
    names = [
        name
        for name in result.shown
        if any(not math.isnan(median.get(name, math.nan)) for _, median in rows)
    ]
    verdicts = any(row.verdict for row in result.rows)
    most = max((len(row.rounds) for row in result.rows), default=0)
    table = Table(title=f"{result.scenario}, medians of {most} rounds")
    for heading in ("system", "bundle", "load"):
        table.add_column(heading, overflow="fold")  # the end of a path tells which it is
    for name in names:
        table.add_column(COLUMNS[name][0], justify="right")
    if verdicts:
        table.add_column("verdict")
    for row, median in rows:
        cells = [_cell(median.get(name, math.nan), COLUMNS[name][1]) for name in names]
        verdict = [row.verdict] if verdicts else []
        table.add_row(row.system, row.bundle, row.load, *cells, *verdict)
    if console is None:
        console = Console()
        if not console.is_terminal:  # into a file no line is too long
            console = Console(width=WIDTH)
    console.print(table)
    for note in result.notes:
        console.print(note, markup=False, highlight=False)


def write(result: Result, path: Path, context: Mapping[str, Any]) -> None:
    """Write all figures of all rounds as JSON, with where and how they were measured."""
    content = {
        "scenario": result.scenario,
        **context,
        "notes": result.notes,
        "rows": [
            {
                "system": row.system,
                "bundle": row.bundle,
                "load": row.load,
                "median": row.median,
                "rounds": row.rounds,
                "verdict": row.verdict,
                "series": row.series,
            }
            for row in result.rows
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(strict(content), indent=2, ensure_ascii=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")


def _cell(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)
