"""One run: what it goes by, and the folder in which it is kept and goes on."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from filelock import FileLock, Timeout

from model.classifier import TextClassifier
from model.config import ModelConfig
from training.config import ConfigError, RunConfig
from training.data.batches import TrainingBatches
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

    def trainer(self, network: TextClassifier, identity: str) -> Trainer:
        """The loop over these rows; its checkpoints in `folder` are known by `identity`."""
        train = self.config.train
        batches = TrainingBatches(
            dataset=self.encoded.train,
            source_of_row=self.splits.train.sources,
            source_epochs=[source.epochs for source in self.splits.sources],
            source_stages=[source.stage for source in self.splits.sources],
            max_batch_tokens=train.max_batch_tokens,
            crop_tokens=train.crop_tokens,
            seed=train.seed,
            rank=self.where.rank,
            world_size=self.where.world_size,
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, blocking=False) if where.first else contextlib.nullcontext()
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock)
            held = stack.pop_all()
    except Timeout as error:
        raise ConfigError(f"--run-dir {folder}: another process is training there") from error
    except OSError as error:
        raise ConfigError(f"--run-dir {folder}: cannot be written: {error.strerror}") from error
    with held:
        yield
