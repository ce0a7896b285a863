"""Which settings suit the rows: runs that differ in a few knobs, judged on validation alone."""

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import tomli_w
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from training.config import ConfigError, RunConfig, overlaid
from training.encoding import Encoded, corpus, encode_splits
from training.initial import begin_with_vectors
from training.loop.trainer import Ranks, Watch
from training.progress import Display
from training.run import Run, run_folder
from training.search import Knobs, Search
from training.splits import Splits, prepare

TRIALS = 20  # where neither trials nor minutes are named
SMALLEST_VOCABULARY = 64


def space(config: RunConfig) -> dict[str, BaseDistribution]:
    """The knobs and their ranges, around the values of `config`, which every range holds."""
    train, dropout = config.train, config.network.dropout
    pieces = train.vocab_size
    sizes = sorted({max(SMALLEST_VOCABULARY, pieces // 2), pieces, pieces * 2})
    return {
        "train.learning_rate": FloatDistribution(
            train.learning_rate / 5, train.learning_rate * 5, log=True
        ),
        "train.token_dropout": FloatDistribution(0.0, max(0.3, train.token_dropout)),
        "network.dropout": FloatDistribution(0.0, max(0.3, dropout)),
        "train.label_smoothing": FloatDistribution(0.0, max(0.15, train.label_smoothing)),
        "train.weight_decay": FloatDistribution(0.0, max(0.2, train.weight_decay)),
        "train.vocab_size": CategoricalDistribution(sizes),
    }


def knobs(config: RunConfig, names: list[str]) -> Knobs:
    """What `config` says of the knobs so named."""
    values = {}
    for name in names:
        section, key = name.split(".")
        values[name] = getattr(getattr(config, section), key)
    return values


class Runs:
    """Training runs over the same rows, which are read once, and tokenised once a vocabulary."""

    def __init__(
        self, config: RunConfig, splits: Splits, run: Path, where: Ranks, display: Display
    ) -> None:
        self.config, self.splits, self.run = config, splits, run
        self.where, self.display = where, display
        self._begun: dict[int, tuple[Encoded, dict[str, Any]]] = {}

    def score(self, knobs: Knobs, watch: Watch) -> float:
        """Best mean accuracy over the validation sets with these knobs: the run that `fit` makes
        of the same config. One that was cut short goes on from its checkpoint."""
        config = overlaid(self.config, knobs)
        encoded, weights = self._begin(config)
        identity = config.fingerprint
        folder = self.run / "trial" / identity
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.parent.iterdir():
            if other != folder:  # its trial is over: whoever wants the weights fits them
                shutil.rmtree(other)
        run = Run(config, self.splits, encoded, folder, self.where, self.display)
        network = run.network()
        network.load_state_dict(weights)
        history = run.trainer(network, identity).fit(self.display, watch)
        return max(entry["score"] for entry in history)

    def _begin(self, config: RunConfig) -> tuple[Encoded, dict[str, Any]]:
        """Rows as token ids, and the weights that every run of this vocabulary begins with."""
        size = config.train.vocab_size
        if size not in self._begun:
            folder = self.run / f"vocabulary-{size}"
            folder.mkdir(parents=True, exist_ok=True)
            encoded = encode_splits(config, self.splits, folder, self.where)
            run = Run(config, self.splits, encoded, folder, self.where, self.display)
            network = run.network()
            if config.train.token_vectors:
                begin_with_vectors(network, corpus(self.splits, encoded), config.train.seed)
            self._begun[size] = encoded, deepcopy(network.state_dict())
        return self._begun[size]


def tune(
    config: RunConfig,
    base: Path,
    run: Path,
    out: Path,
    device: torch.device,
    display: Display,
    trials: int | None = None,
    minutes: float | None = None,
) -> Search:
    """Search and write into `out` the run of the best score, a TOML file for `fit`.

    `run` keeps what an interrupted search needs to go on. Test rows are read for one purpose: not
    to be trained on. `trials` and `minutes` limit as in `Search.run`; with neither, 20 trials.
    """
    if trials is not None and trials < 1:
        raise ConfigError(f"--trials {trials}: must be at least 1")
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"--minutes {minutes:g}: must be more than 0")
    if config.train.epochs == 0:
        raise ConfigError("train.epochs=0 trains nothing: no setting is better than another")
    if out.is_dir() or not out.parent.is_dir():
        raise ConfigError(f"--out {out}: must be a file in a folder that is there")
    where = Ranks(0, 1, device)
    with run_folder(run, where):
        splits = prepare(config, base, display)
        ranges = space(config)
        search = Search(
            run,
            identity=f"{config.fingerprint}-{splits.digest}",
            space=ranges,
            first=knobs(config, list(ranges)),
            seed=config.train.seed,
        )
        runs = Runs(config, splits, run, where, display)
        if trials is None and minutes is None:
            trials = TRIALS
        search.run(runs.score, display, trials, None if minutes is None else minutes * 60)
        shutil.rmtree(run / "trial", ignore_errors=True)
    best = search.best
    text = (
        f"# Best of {len(search.finished)} trials of `realce-train tune`: trial {best.number}, "
        f"validation score {best.value:.4f}.\n{to_toml(overlaid(config, best.params))}"
    )
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}") from error
    display.say(f"wrote {out}")
    return search


def to_toml(config: RunConfig) -> str:
    """A file that `load_config` reads as the same run: what was set, and no default."""
    return tomli_w.dumps(_plain(config.model_dump(exclude_unset=True)))


def _plain(value: Any) -> Any:
    """TOML has no null. A key that is None was so by default, but for a label's: that is false."""
    match value:
        case dict():
            return {
                key: {label: name or False for label, name in one.items()}
                if key == "labels" and isinstance(one, dict)
                else _plain(one)
                for key, one in value.items()
                if one is not None
            }
        case list() | tuple():
            return [_plain(one) for one in value]
        case _:
            return value
