"""A run's rows as ids of its own tokenizer."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist
from torch import nn

from model.bundle import TOKENIZER
from model.tokenizer import Tokenizer
from training.config import ConfigError, RunConfig
from training.data.batches import Dataset
from training.data.rows import Rows
from training.evaluation.calibration import alike
from training.evaluation.metrics import Labels, Logits, Weights, predict
from training.linear.classifier import Domains, Languages
from training.loop.trainer import Ranks, Trainer
from training.splits import Splits

# Enough to learn a vocabulary; more only take longer. Of long texts the beginning will do.
TOKENIZER_CHARACTERS, TOKENIZER_TEXT = 20_000_000, 1000


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a run trains on and chooses with, as ids of its own tokenizer.

    `linear` are those rows of `train` that linear models learn from, their targets by weight, and
    `domains` and `languages` theirs.
    """

    tokenizer: Tokenizer
    train: Dataset
    linear: Dataset
    domains: Domains | None
    languages: Languages
    validation: dict[str, Dataset]

    @property
    def truth(self) -> Labels:
        """The classes of the validation rows, all sets end to end."""
        return np.concatenate([rows.labels for rows in self.validation.values()])

    @property
    def weights(self) -> Weights:
        """What each of these rows counts: each set as much as the next."""
        return alike([len(rows) for rows in self.validation.values()])

    def logits(self, network: nn.Module, where: Ranks) -> Logits:
        """What a network says of these rows."""
        sets = self.validation.values()
        return np.concatenate([predict(network, rows, where.device) for rows in sets])


def encode_splits(
    config: RunConfig, splits: Splits, run: Path, where: Ranks, given: bytes | None = None
) -> Encoded:
    """Learn the tokenizer, unless one is given or the run has begun with one, and read the rows."""
    tokenizer = _tokenizer(config, splits.train, run, where, given)
    validation = {name: encode(rows, tokenizer) for name, rows in splits.validation.items()}
    train = encode(splits.train, tokenizer)
    counted = splits.linear > 0
    return Encoded(
        tokenizer=tokenizer,
        train=train,
        linear=train.weighted(splits.linear),
        domains=None if splits.domains is None else splits.domains[counted],
        languages=splits.train.languages[counted],
        validation=validation,
    )


def corpus(splits: Splits, encoded: Encoded) -> Dataset:
    """The rows to train on, then the unlabelled texts, with no share of any class."""
    texts = splits.unlabelled
    nothing = np.zeros((len(texts), len(splits.labels)), dtype=np.float32)
    more = Dataset.encode(encoded.tokenizer.encode_batch(texts, offsets=False), nothing)
    return encoded.train.joined(more)


def encode(rows: Rows, tokenizer: Tokenizer) -> Dataset:
    """Rows as token ids."""
    return Dataset.encode(tokenizer.encode_batch(rows.texts, offsets=False), rows.targets)


def _tokenizer(
    config: RunConfig, rows: Rows, run: Path, where: Ranks, given: bytes | None
) -> Tokenizer:
    """The run's tokenizer, kept in the run folder by the first process."""
    path, max_tokens = run / TOKENIZER, config.network.max_tokens
    begun = path.exists() and Trainer.begun(run)
    if begun and given not in (None, path.read_bytes()):
        raise ConfigError(
            f"--run-dir {run}: what was begun there has another vocabulary; choose another folder, "
            "or another --name, or delete it"
        )
    if where.first and not begun:
        if given is None:
            sample = _sample(rows, np.random.default_rng(config.train.seed))
            pieces = config.train.vocab_size
            try:
                learnt = Tokenizer.train(sample, vocab_size=pieces, max_tokens=max_tokens)
            except ValueError as error:
                raise ConfigError(f"train.vocab_size={pieces}: {error}") from error
            given = learnt.to_json()
        path.write_bytes(given)
    if where.world_size > 1:
        dist.barrier()
    return Tokenizer.from_json(path.read_bytes(), max_tokens=max_tokens)


def _sample(
    rows: Rows, generator: np.random.Generator, characters: int = TOKENIZER_CHARACTERS
) -> Iterator[str]:
    """Texts to learn a vocabulary from, of each language as many characters: or else the language
    with the longer texts gets most of the pieces, and the other's words are cut to bits."""
    languages = sorted(set(rows.languages))
    for language in languages:
        left = characters // len(languages)
        for i in generator.permutation(np.flatnonzero(rows.languages == language)):
            if left <= 0:
                break
            text = rows.texts[i][:TOKENIZER_TEXT]
            left -= len(text)
            yield text
