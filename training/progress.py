"""What the trainer sees while a run is under way."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EVERY_S = 0.5  # between two figures of a bar


class StepBar:
    """The bar of a run under way."""

    def __init__(self, bar: Progress, task: Any, console: Console) -> None:
        self._bar, self._task, self._console = bar, task, console
        self._steps, self._told_s = 0, -math.inf

    def advance(self, figures: Callable[[], Mapping[str, float]]) -> None:
        """One step more; `figures` as of now (a `Meter`'s), as often as someone can read them."""
        self._steps += 1
        self._bar.update(self._task, advance=1)
        said = not self._console.is_terminal and self._steps % 100 == 0
        if not said and time.monotonic() - self._told_s < EVERY_S:
            return
        self._told_s, now = time.monotonic(), figures()
        shown = (
            f"loss {now['loss']:.3f}  accuracy {now['train_accuracy']:.1%}  "
            f"{now['texts_per_s']:.0f} texts/s"
        )
        self._bar.update(self._task, figures=shown)
        if said:
            task = self._bar.tasks[0]
            left = f"{task.time_remaining / 60:.1f} min left" if task.time_remaining else ""
            self._console.print(f"step {task.completed:.0f}/{task.total:.0f}  {shown}  {left}")


class Display:
    """Speaks to the terminal: where `quiet`, only warnings; where `silent`, as in all ranks but
    the first, nothing."""

    def __init__(self, quiet: bool = False, silent: bool = False) -> None:
        self.console = Console(quiet=quiet or silent, stderr=True, soft_wrap=True)
        self._warnings = Console(quiet=silent, stderr=True, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, markup=False)

    def warn(self, text: str) -> None:
        """One line, also to those who asked for quiet."""
        self._warnings.print(f"warning: {text}", highlight=False, markup=False)

    @contextlib.contextmanager
    def steps(self, total: int, done: int) -> Iterator[StepBar]:
        """A bar over `total` steps of which `done` lie behind."""
        with self._bar("training", TextColumn("{task.fields[figures]}")) as bar:
            yield StepBar(
                bar, bar.add_task("", total=total, completed=done, figures=""), self.console
            )

    @contextlib.contextmanager
    def texts(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar over `total` texts; what is given counts those that are done."""
        with self._bar(what) as bar:
            yield functools.partial(bar.advance, bar.add_task("", total=total))

    def _bar(self, what: str, *more: ProgressColumn) -> Progress:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), *more)
        return Progress(
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=self.console.quiet,
        )

    def evaluation(self, entry: Mapping[str, float], better: bool) -> None:
        """The figures of one evaluation."""
        figures = "  ".join(
            f"{name.removeprefix('accuracy/')} {value:.2%}"
            for name, value in entry.items()
            if name.startswith("accuracy/")
        )
        loss = f"loss {entry['loss']:.4f}, " if entry["step"] else ""
        best = "  (best so far)" if better else ""
        self.say(f"step {entry['step']}: {loss}validation {figures}{best}")
