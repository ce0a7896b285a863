"""What the trainer sees while a run is under way."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from training.train import Meter


class StepBar:
    """The bar of a run under way."""

    def __init__(self, bar: Progress, task: Any, console: Console) -> None:
        self._bar, self._task, self._console, self._steps = bar, task, console, 0

    def advance(self, meter: "Meter") -> None:
        """One step more; figures as of now."""
        now = meter.read()
        figures = (
            f"loss {now['loss']:.3f}  accuracy {now['train_accuracy']:.1%}  "
            f"{now['texts_per_s']:.0f} texts/s"
        )
        self._bar.update(self._task, advance=1, figures=figures)
        self._steps += 1
        if not self._console.is_terminal and self._steps % 100 == 0:
            task = self._bar.tasks[0]
            left = f"{task.time_remaining / 60:.1f} min left" if task.time_remaining else ""
            self._console.print(f"step {task.completed:.0f}/{task.total:.0f}  {figures}  {left}")


class Display:
    """Speaks to the terminal; silent where `quiet`, as in all ranks but the first."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, stderr=True, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, markup=False)

    @contextlib.contextmanager
    def steps(self, total: int, done: int) -> Iterator[StepBar]:
        """A bar over `total` steps of which `done` lie behind."""
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, disable=self.console.quiet) as bar:
            yield StepBar(
                bar, bar.add_task("", total=total, completed=done, figures=""), self.console
            )

    def evaluation(self, entry: Mapping[str, float], better: bool) -> None:
        """The figures of one evaluation."""
        figures = "  ".join(
            f"{name.removeprefix('accuracy/')} {value:.2%}"
            for name, value in entry.items()
            if name.startswith("accuracy/")
        )
        self.say(
            f"step {entry['step']}: loss {entry['loss']:.4f}, validation {figures}"
            f"{'  (best so far)' if better else ''}"
        )
