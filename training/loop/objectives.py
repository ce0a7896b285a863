"""Training objectives and the scores that validation rows give them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.tokenizer import MASK_ID
from training.data.batches import Dataset, TrainingBatch, collate, plan
from training.evaluation.metrics import predict
from training.pretraining.replacement import Replacer

SCORED_TOKENS = 16_384  # padded, at a time


class Outcome(NamedTuple):
    """What came of a batch: the loss, a scalar, and how many of `seen` answers were right."""

    loss: Tensor
    right: Tensor
    seen: int


class Objective(Protocol):
    """What a network learns; the loop knows no more of it."""

    def outcome(self, network: nn.Module, batch: TrainingBatch) -> Outcome:
        """Of this rank's part of a batch; losses sum over ranks."""
        ...

    def scores(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """The share of right answers on each validation set."""
        ...


@dataclass(frozen=True, slots=True)
class Classification:
    """Each text its class, a share of its tokens masked."""

    validation: Mapping[str, Dataset]
    token_dropout: float
    label_smoothing: float

    def outcome(self, network: nn.Module, batch: TrainingBatch) -> Outcome:
        """See `Objective`."""
        input_ids = drop_tokens(batch.input_ids, batch.attention_mask, self.token_dropout)
        logits = network(input_ids, batch.attention_mask).float()  # [B, C]
        loss = classification_loss(logits, batch.targets, batch.rows, self.label_smoothing)
        right = (logits.argmax(1) == batch.targets.argmax(1)).sum()
        return Outcome(loss, right, len(batch.targets))

    def scores(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """See `Objective`."""
        return {
            name: float((predict(network, rows, device).argmax(1) == rows.labels).mean())
            for name, rows in self.validation.items()
        }


@dataclass(frozen=True, slots=True)
class Detection:
    """Each token, whether it was there or another's place was taken: replaced token detection
    (Clark et al. 2020, section 2). Answers are tokens."""

    validation: Mapping[str, Dataset]
    replacer: Replacer
    rate: float

    def outcome(self, network: nn.Module, batch: TrainingBatch) -> Outcome:
        """See `Objective`; each text counts the mean of its tokens."""
        mask = batch.attention_mask
        written = self.replacer(batch.input_ids, mask, self.rate)  # [B, S]
        replaced = written != batch.input_ids
        logits = network(written, mask).float()  # [B, S]
        losses = F.binary_cross_entropy_with_logits(logits, replaced.float(), reduction="none")
        loss = ((losses * mask).sum(1) / mask.sum(1)).sum() / batch.rows
        right = (((logits > 0) == replaced) & mask.bool()).sum()
        return Outcome(loss, right, int(mask.sum()))

    @torch.inference_mode()
    def scores(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """See `Objective`; the same tokens are replaced each time."""
        training = network.training
        network.eval()
        shares = {}
        for name, dataset in self.validation.items():
            torch.manual_seed(0)  # each step seeds itself anew
            right = seen = 0
            for rows in plan(np.arange(len(dataset)), dataset.lengths, SCORED_TOKENS):
                input_ids, mask = (one.to(device) for one in collate(dataset, rows))
                targets = input_ids.new_zeros(len(rows), 0)
                outcome = self.outcome(
                    network, TrainingBatch(input_ids, mask, targets, rows=len(rows))
                )
                right, seen = right + int(outcome.right), seen + outcome.seen
            shares[name] = right / seen
        network.train(training)
        return shares


def drop_tokens(input_ids: Tensor, attention_mask: Tensor, rate: float) -> Tensor:
    """input_ids [B, S] with about `rate` of the text's tokens replaced by the mask token.

    The network so learns what a missing word looks like: it leans on no single word, and erasing
    words to test an explanation stays within what it has seen.
    """
    if rate == 0:
        return input_ids
    dropped = (torch.rand_like(input_ids, dtype=torch.float32) < rate) & attention_mask.bool()
    return input_ids.masked_fill(dropped, MASK_ID)


def classification_loss(logits: Tensor, targets: Tensor, rows: int, smoothing: float) -> Tensor:
    """Cross-entropy of logits and targets [B, C], summed over this rank's rows, over all ranks'."""
    return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing) / rows
