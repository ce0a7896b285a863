"""What is tried next: a study of knobs and scores that goes on where it stopped."""

import csv
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.box import SIMPLE_HEAD
from rich.table import Table

from training.config import ConfigError
from training.files import replacing
from training.loop.trainer import Watch
from training.progress import Display

STARTUP_TRIALS = 5  # are drawn at random and never stopped early: something to compare with
IMPORTANCE_TRIALS = 4  # complete ones; fewer say nothing about what mattered
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "cut short",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}

Knobs = dict[str, Any]  # values by their key in the config, as in "train.learning_rate"
Attempt = Callable[[Knobs, Watch], float]  # tries knobs out, gives the score; higher is better


class Search:
    """Tree-structured Parzen estimator (Bergstra et al. 2011) with the median rule for stopping.

    `folder` keeps the study in study.journal and its table in trials.csv; one process at a time.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        space: Mapping[str, BaseDistribution],
        first: Knobs,
        seed: int,
    ) -> None:
        """A study over `space` that tries `first` first.

        Raises `ConfigError` where `folder` holds a study of another `identity` or a damaged one.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.first, self.seed = dict(space), first, seed
        self.table_path = folder / "trials.csv"
        journal = folder / "study.journal"
        _drop_torn_line(journal)
        try:
            self.study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(journal))),
                study_name="tune",
                direction="maximize",
                pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=1),
                load_if_exists=True,
            )
        except (KeyError, ValueError) as error:
            raise ConfigError(f"{journal}: damaged: {error}") from error
        found = self.study.user_attrs.get("identity", identity)
        if found != identity:
            raise ConfigError(
                f"{journal}: belongs to another configuration or other data ({found}, this search "
                f"is {identity}); choose another run folder with --run-dir, or delete it"
            )
        self.study.set_user_attr("identity", identity)

    @property
    def finished(self) -> list[FrozenTrial]:
        """Trials that came to their end, or that the median rule ended."""
        return self.study.get_trials(deepcopy=False, states=FINISHED)

    @property
    def best(self) -> FrozenTrial:
        """The complete trial of the highest score; the earlier one of two."""
        return self.study.best_trial

    def run(
        self,
        attempt: Attempt,
        display: Display,
        trials: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """Try out until `trials` are finished, those of earlier starts included, or `seconds` are
        over since this start; None: no such limit. A trial under way is not cut by the clock."""
        ends = None if seconds is None else time.monotonic() + seconds
        for cut in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            display.say(f"trial {cut.number} was cut short; its knobs are tried again")
            self.study.tell(cut.number, state=TrialState.FAIL)
        while trials is None or len(self.finished) < trials:
            trial = self._ask()
            display.say(f"trial {trial.number}: {spoken(trial.params)}")
            try:
                score = attempt(trial.params, _watch(trial))
            except optuna.TrialPruned:
                self.study.tell(trial, state=TrialState.PRUNED)
                display.say(f"trial {trial.number}: stopped, worse than half of those before it")
            else:
                self.study.tell(trial, score)
                display.say(
                    f"trial {trial.number}: {score:.2%}, best {self.best.value:.2%} "
                    f"in trial {self.best.number}"
                )
            self.write_table()
            if ends is not None and time.monotonic() >= ends:
                break
        self.write_table()

    def _ask(self) -> Trial:
        finished = len(self.finished)
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if not finished and not waiting:
            self.study.enqueue_trial(self.first)
        # Each trial seeds its own draws: a search that goes on draws what it would have drawn, and
        # a trial that was cut short comes again.
        self.study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=STARTUP_TRIALS, seed=(self.seed * 1_000_003 + finished) % 2**32
        )
        return self.study.ask(self.space)

    def importances(self) -> dict[str, float]:
        """Share of each knob in what made scores differ (PED-ANOVA, Watanabe et al. 2023), the
        largest first; empty while too few trials are complete."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(complete) < IMPORTANCE_TRIALS or len({trial.value for trial in complete}) == 1:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few trials are not worth a warning here
            return optuna.importance.get_param_importances(self.study)

    def write_table(self) -> None:
        """Every trial's knobs and score as CSV; without a score: cut before an evaluation."""
        with (
            replacing(self.table_path) as fresh,
            fresh.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["trial", "state", "score", "evaluations", *self.space])
            for trial in self.study.get_trials(deepcopy=False):
                evaluations = len(trial.intermediate_values)
                knobs = [trial.params.get(name) for name in self.space]
                writer.writerow(
                    [trial.number, WORDS[trial.state], score_of(trial), evaluations, *knobs]
                )

    def table(self, most: int = 5) -> Table:
        """For the terminal: the best trials."""
        table = Table(
            title="best trials, by validation score", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        table.add_column("trial", justify="right")
        table.add_column("state")
        for column in ("score", *map(_short, self.space)):
            table.add_column(column.replace("_", "\n"), justify="right")  # narrow, to fit a line
        ranked = sorted(self.finished, key=lambda one: (-(score_of(one) or 0.0), one.number))
        for trial in ranked[:most]:
            score = f"{score_of(trial) or 0.0:.2%}"
            knobs = [_figure(trial.params[name]) for name in self.space]
            table.add_row(str(trial.number), WORDS[trial.state], score, *knobs)
        return table


def score_of(trial: FrozenTrial) -> float | None:
    """The score of a complete trial; of another the best that it came to, None: nothing yet."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    return max(trial.intermediate_values.values(), default=None)


def spoken(knobs: Knobs) -> str:
    """Knobs in a line, fractions cut to two digits."""
    return ", ".join(f"{_short(name)} {_figure(value)}" for name, value in knobs.items())


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2g}"


def _drop_torn_line(journal: Path) -> None:
    """Cut off a line that was being written when the power or the disk's room ended."""
    if journal.is_file():
        content = journal.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(journal, content.rfind(b"\n") + 1)


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _watch(trial: Trial) -> Watch:
    reported = 0

    def watch(history: Sequence[Mapping[str, float]]) -> None:
        nonlocal reported
        for number in range(reported, len(history)):
            trial.report(history[number]["score"], number)
        reported = len(history)
        if trial.should_prune():
            raise optuna.TrialPruned

    return watch
