"""The convex fit of the network's linear part."""

from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array
from sklearn.preprocessing import normalize
from torch import Tensor, nn

from model.config import ModelConfig
from model.linear import ORDER, LinearPart
from model.tokenizer import PAD_ID
from training.batches import Dataset
from training.regression import fit_logistic

# Seen once more in each class than it was, so that what is rare counts little.
SMOOTHING = 1.0


class LinearClassifier(nn.Module):
    """A linear part that answers by itself: its shares' sum and a bias [C]."""

    def __init__(self, part: LinearPart, bias: Tensor) -> None:
        super().__init__()
        self.part = part
        self.bias = nn.Parameter(bias)

    @classmethod
    def fit(cls, dataset: Dataset, config: ModelConfig, strength: float) -> Self:
        """The weights with the least penalised loss over the rows.

        `strength` is the inverse of the penalty (C).
        """
        part = LinearPart(config.vocab_size, config.ngrams, config.classes)
        present = presence(dataset, part)
        scale = telling(present, dataset.targets)
        values = normalize(present.multiply(scale).tocsr(), copy=False)
        of_class, bias = fit_logistic(values, dataset.targets, strength)
        linear = cls(part, torch.from_numpy(bias).float()).requires_grad_(False)
        part.scale.weight[:, 0] = torch.from_numpy(scale)
        part.weight.weight[:] = torch.from_numpy(of_class.T)
        return linear

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [B, C] of input_ids and attention_mask [B, S]."""
        return self.part(input_ids, attention_mask).sum(dim=1) + self.bias


def presence(dataset: Dataset, part: LinearPart) -> csr_array:
    """Which features each row has: 1 where it does, [N, F]."""
    # All texts as one, with padding before each, which is what its first n-grams begin with.
    begin = np.repeat(dataset.starts[:-1], ORDER - 1)
    ids = np.insert(dataset.ids.astype(np.int64), begin, PAD_ID)
    rows = part.features(torch.from_numpy(ids)[None])[0].T.numpy()  # [S, N]
    found = rows[ids != PAD_ID].ravel()
    present = csr_array(
        (np.ones(len(found), np.float32), found, ORDER * dataset.starts),
        shape=(len(dataset), part.vocab_size + part.ngrams),
    )
    present.sum_duplicates()
    present.data[:] = 1
    return present


def telling(present: csr_array, targets: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """How much each feature tells of the class, [F], from present [N, F] and targets [N, C];
    a class without rows is left out.

    The log of its frequency in each class, of these the standard deviation over the classes, and of
    that the square root. Of two classes the deviation is half of the log-count ratio of Wang and
    Manning 2012, section 2.1: what is as frequent in one class as in another has next to no value,
    and so no weight worth having. The root leaves more to the fit: of texts of several kinds, what
    tells in one need not tell in another.
    """
    seen = present.T @ targets[:, targets.any(axis=0)] + SMOOTHING  # [F, C]
    deviation = np.log(seen / seen.sum(axis=0)).std(axis=1)
    return np.sqrt(deviation).astype(np.float32)
