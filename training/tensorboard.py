"""A run's figures for TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from training.config import ConfigError

TRAINING = ("loss", "train_accuracy", "learning_rate", "texts_per_s")
TEST = ("accuracy", "linear_accuracy", "accuracy_at_80", "macro_f1", "ece", "nll")


class Board:
    """Writes event files into a folder; each evaluation at its step, once, whatever happened.

    A run that goes on writes all its history anew and has TensorBoard forget what was there: so no
    point is there twice and none is missing, even if it was killed between checkpoint and board.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"--tensorboard {folder}: cannot be written: {error.strerror}"
            raise ConfigError(message) from error
        self.folder = folder
        self._writer: SummaryWriter | None = None
        self._written = 0
        self._step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def watch(self, history: Sequence[Mapping[str, float]]) -> None:
        """The evaluations so far; see `training.loop.trainer.Watch`."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder), purge_step=int(history[0]["step"]))
        for entry in history[self._written :]:
            self._step = int(entry["step"])
            for key in TRAINING:
                self._add(f"train/{key.removeprefix('train_')}", entry[key])
            for key, value in entry.items():
                if key.startswith("accuracy/"):
                    self._add(f"validation/{key}", value)
        self._written = len(history)
        self._writer.flush()

    def test(self, metrics: Mapping[str, Mapping[str, Any]]) -> None:
        """The final figures of each test set, as in the manifest, at the last evaluation's step."""
        for name, values in metrics.items():
            for key in TEST:
                if key in values:
                    self._add(f"test/{key}/{name}", values[key])

    def _add(self, tag: str, value: float) -> None:
        assert self._writer is not None
        self._writer.add_scalar(tag, value, self._step)
