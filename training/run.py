"""One run: what it goes by, and the folder in which it is kept and goes on."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout

from model.classifier import TextClassifier
from model.config import ModelConfig
from training.config import ConfigError, RunConfig
from training.data.batches import Dataset, TrainingBatches
from training.encoding import Encoded, encode_splits
from training.loop.objectives import Classification
from training.loop.trainer import Ranks, Trainer
from training.progress import Display
from training.splits import Splits, prepare

LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class Run:
    """A configuration and the rows that it names, read and encoded. `folder` keeps what a killed
    run needs to go on."""

    config: RunConfig
    splits: Splits
    encoded: Encoded
    folder: Path
    where: Ranks
    display: Display

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        config: RunConfig,
        base: Path,
        folder: Path,
        where: Ranks,
        display: Display,
        tokenizer: bytes | None = None,
    ) -> Iterator[Self]:
        """Read the rows, `base` being the folder that their paths start from, and encode them by
        `tokenizer` or one that is learnt from them. Until the end of it `folder` is this run's.
        """
        with run_folder(folder, where):
            splits = prepare(config, base, display)
            encoded = encode_splits(config, splits, folder, where, tokenizer)
            yield cls(config, splits, encoded, folder, where, display)

    @property
    def shape(self) -> ModelConfig:
        """The shape of the network, its linear part to come."""
        return ModelConfig(
            vocab_size=self.encoded.tokenizer.vocab_size,
            classes=len(self.splits.labels),
            **self.config.network.model_dump() | {"ngrams": 0},
        )

    def network(self) -> TextClassifier:
        """The network as its seed draws it."""
        torch.manual_seed(self.config.train.seed)
        return TextClassifier(self.shape)

    def batches(
        self,
        dataset: Dataset,
        source_of_row: npt.NDArray[np.int64],
        epochs: Sequence[float],
        stages: Sequence[int],
    ) -> TrainingBatches:
        """This process's batches of a dataset [N], as large as configured; `source_of_row` [N]
        says whose `epochs` and `stages` are each row's."""
        train, where = self.config.train, self.where
        return TrainingBatches(
            dataset=dataset,
            source_of_row=source_of_row,
            source_epochs=epochs,
            source_stages=stages,
            max_batch_tokens=train.max_batch_tokens,
            crop_tokens=train.crop_tokens,
            seed=train.seed,
            rank=where.rank,
            world_size=where.world_size,
        )

    def trainer(self, network: TextClassifier, identity: str) -> Trainer:
        """The loop over these rows; its checkpoints in `folder` are known by `identity`."""
        train, sources = self.config.train, self.splits.sources
        batches = self.batches(
            self.encoded.train,
            self.splits.train.sources,
            epochs=[source.epochs for source in sources],
            stages=[source.stage for source in sources],
        )
        objective = Classification(
            self.encoded.validation, train.token_dropout, train.label_smoothing
        )
        fingerprint = f"{identity}-{self.splits.digest}"
        return Trainer(network, batches, objective, train, fingerprint, self.folder, self.where)


@contextlib.contextmanager
def run_folder(folder: Path, where: Ranks) -> Iterator[None]:
    """Around a run: its folder is there, can be written and is no other process's.

    Two runs in one would each go on from, and release, what the other wrote. Raises `ConfigError`.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if where.first:
                held.enter_context(FileLock(folder / LOCK, blocking=False))
        except Timeout as error:
            raise ConfigError(f"--run-dir {folder}: another process is training there") from error
        except OSError as error:
            raise ConfigError(f"--run-dir {folder}: cannot be written: {error.strerror}") from error
        yield
