"""The linear part: what tokens and n-grams of tokens say by themselves."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.tokenizer import PAD_ID

ORDER = 3  # tokens of the longest n-gram
PRIME = 2**31 - 1
# Factors of the hash, below PRIME, drawn once: of a token, and of what stands before it in pairs
# and in triples.
LAST, BEFORE, EARLIER = 668_265_263, 1_540_483_477, 1_103_515_245
MARKS, NOBODY = 2**15, -1  # what an owner is known by, in 16 bits


def ngram_hashes(input_ids: Tensor) -> Tensor:
    """Numbers below `PRIME` of the pair and the triple that end in each token, [B, 2, S]. What
    would begin before the text begins with padding.

    A universal hash (Carter and Wegman 1979): nothing beyond 63 bits, and only what ONNX computes
    on signed integers.
    """
    before, earlier = (F.pad(input_ids, (n, 0))[:, :-n] for n in (1, 2))
    pair = (before * BEFORE + input_ids * LAST) % PRIME
    triple = (pair * EARLIER + earlier) % PRIME
    return torch.stack([pair, triple], dim=1)


class LinearPart(nn.Module):
    """Logistic regression over tokens and n-grams of up to three, as shares of tokens.

    "not good" is one feature here, which few examples teach; attention needs many. Added to the
    encoder's logits it is the wide half of a wide and deep network (Cheng et al. 2016). Its
    weights come from a convex fit, see `training.linear`.

    A feature that is in a text has its scale as its value, however often it occurs, and a text's
    values have length 1. Each occurrence has an equal part of its feature, and each token of an
    n-gram an equal part of the occurrence, so the shares sum over the text to the logits exactly.

    An n-gram's row is its hash modulo the table's rows (Weinberger et al. 2009), but a row is not
    shared: `owner` keeps what is left of the hash of the one n-gram that it belongs to, as a
    quotient filter does (Bender et al. 2012), and the others that fall on it say nothing. Weights
    have a column less than there are classes: those of the last are minus the others' sum.

    Of several domains each has weights of its own, and a text those of all domains, each by how
    likely the text is of it, which its tokens tell: a mixture of linear experts (Jacobs et al.
    1991).
    """

    owner: Tensor

    def __init__(self, vocab_size: int, ngrams: int, classes: int, domains: int = 1) -> None:
        super().__init__()
        self.vocab_size, self.ngrams, self.domains = vocab_size, ngrams, domains
        self.weight, self.scale = (
            nn.Embedding.from_pretrained(torch.zeros(vocab_size + ngrams, width), freeze=False)
            for width in (domains * (classes - 1), 1)
        )
        if domains > 1:
            self.domain = nn.Embedding.from_pretrained(
                torch.zeros(vocab_size, domains), freeze=False
            )
            self.prior = nn.Parameter(torch.zeros(domains))
        # A column, as the lookup takes it: what an exporter may reshape beforehand loses its name.
        self.register_buffer("owner", torch.full((ngrams, 1), NOBODY, dtype=torch.int16))

    def own(self, hashes: Tensor) -> None:
        """Give each of these n-grams [N] its row; where several fall on one, the first has it."""
        rows, first = np.unique(hashes % self.ngrams, return_index=True)
        self.owner[rows, 0] = self._mark(hashes[first]).to(torch.int16)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Share of each token in each logit, [B, S, C], of input_ids [B, S]; attention_mask [B, S]
        is 1 on text. Padding holds exactly 0."""
        length = input_ids.size(1)
        mask = attention_mask.to(self.scale.weight.dtype)[:, None]  # [B, 1, S]
        rows = self.features(input_ids)  # [B, N, S]
        same = (rows[..., None] == rows[:, :, None]).to(mask.dtype)  # [B, N, S, S]
        count = (same @ mask[..., None])[..., 0].clamp(min=1)  # [B, N, S]
        scale = self.scale(rows)[..., 0]
        norm = (scale.square() / count * mask).sum(dim=(1, 2)).sqrt()  # [B]
        value = scale / count * mask / norm.clamp(min=1e-6)[:, None, None]  # [B, N, S]
        # Before the second token stands one, before the third two: no one else to share with.
        there = torch.arange(1, length + 1, device=input_ids.device)  # [S]
        size = torch.stack([there.clamp(max=n) for n in range(1, ORDER + 1)])  # [N, S]
        weight = self.weight(rows)  # [B, N, S, K · (C - 1)]
        if self.domains > 1:
            likely = self._likely(input_ids, mask[:, 0] / count[:, 0])  # [B, K]
            of_domain = weight.unflatten(-1, (self.domains, -1))  # [B, N, S, K, C - 1]
            weight = (likely[:, None, None, :, None] * of_domain).sum(dim=3)
        shares = (value / size)[..., None] * weight  # [B, N, S, C - 1]
        ahead = F.pad(shares, (0, 0, 0, ORDER - 1))  # [B, N, S + 2, C - 1]
        said = shares.sum(dim=1)  # [B, S, C - 1]
        for n in range(1, ORDER):  # n-grams that end n tokens further on
            said = said + ahead[:, n:, n : n + length].sum(dim=1)
        return torch.cat([said, -said.sum(dim=-1, keepdim=True)], dim=-1)

    def features(self, input_ids: Tensor) -> Tensor:
        """The rows of the tokens and of the n-grams that end in them, [B, N, S]; that of padding,
        which has no scale, where an n-gram has none."""
        hashes = ngram_hashes(input_ids)  # [B, 2, S]
        rows = hashes % self.ngrams
        owned = F.embedding(rows, self.owner)[..., 0].long() == self._mark(hashes)
        ngrams = torch.where(owned, self.vocab_size + rows, PAD_ID)
        return torch.cat([input_ids[:, None], ngrams], dim=1)

    def _likely(self, input_ids: Tensor, part: Tensor) -> Tensor:
        """How likely each text is of each domain, [B, K]: logistic regression over its tokens, of
        which each occurrence has an equal part, [B, S]."""
        norm = part.sum(dim=1, keepdim=True).sqrt()  # of as many ones as it has tokens
        said = ((part / norm)[:, None] @ self.domain(input_ids))[:, 0]  # [B, K]
        return (said + self.prior).softmax(dim=-1)

    def _mark(self, hashes: Tensor) -> Tensor:
        return hashes // self.ngrams % MARKS
