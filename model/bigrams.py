"""Embeddings of pairs: each token together with the one before it."""

import torch.nn.functional as F
from torch import Tensor, nn

PRIME = 2**31 - 1
BEFORE, AFTER = 1_540_483_477, 668_265_263  # factors of the hash, below PRIME, drawn once


def pair_rows(input_ids: Tensor, rows: int) -> Tensor:
    """Which of `rows` rows each token's pair has, [B, S]; the first token's pair is with padding.

    The hashing trick (Weinberger et al. 2009) with a universal hash (Carter and Wegman 1979):
    nothing beyond 63 bits, and only what ONNX computes on signed integers.
    """
    before = F.pad(input_ids, (1, 0))[:, :-1]
    return (before * BEFORE + input_ids * AFTER) % PRIME % rows


class BigramEmbedding(nn.Module):
    """A hashed table of token pairs (Joulin et al. 2017, section 2), widened to d_model.

    "not good" is one row here, which one linear step reads; attention would have to learn it from
    many examples. Pairs whose hashes meet share a row. A token looks at the one to its left only,
    so padding on the right changes nothing.
    """

    def __init__(self, rows: int, width: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.widen = nn.Linear(width, d_model, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, S] to [B, S, d]."""
        return self.widen(self.table(pair_rows(input_ids, self.table.num_embeddings)))
