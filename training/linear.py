"""The convex fit of the network's linear part."""

from typing import Self

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfTransformer
from torch import Tensor, nn

from model.config import ModelConfig
from model.linear import LinearPart
from model.tokenizer import PAD_ID
from training.batches import Dataset
from training.regression import fit_logistic


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
        part = LinearPart(config.vocab_size, config.pairs, config.classes)
        counts = _counts(dataset, part)
        scale = TfidfTransformer(sublinear_tf=True).fit(counts)
        of_class, bias = fit_logistic(scale.transform(counts), dataset.targets, strength)
        linear = cls(part, torch.from_numpy(bias).float()).requires_grad_(False)
        part.idf.weight[:, 0] = torch.from_numpy(scale.idf_)
        part.weight.weight[:] = torch.from_numpy(of_class.T)
        return linear

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [B, C] of input_ids and attention_mask [B, S]."""
        return self.part(input_ids, attention_mask).sum(dim=1) + self.bias


def _counts(dataset: Dataset, part: LinearPart) -> csr_array:
    """How often each row has each feature, [N, V + pairs]."""
    # All texts as one, with padding before each, which is what its first token's pair is with.
    ids = np.insert(dataset.ids.astype(np.int64), dataset.starts[:-1], PAD_ID)
    rows = part.features(torch.from_numpy(ids)[None])[0].T.numpy()  # [S, 2]
    features = rows[ids != PAD_ID].ravel()
    counts = csr_array(
        (np.ones(len(features), np.float32), features, 2 * dataset.starts),
        shape=(len(dataset), part.vocab_size + part.pairs),
    )
    counts.sum_duplicates()
    return counts
