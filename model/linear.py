"""The linear part: what tokens and n-grams of tokens say by themselves."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.tokenizer import PAD_ID

ORDER = 3  # tokens of the longest n-gram
PRIME = 2**31 - 1
# Factors of the hash, below PRIME, drawn once: of a token, of what stands before it in pairs and in
# triples, and of an n-gram where it is to have its second row.
LAST, BEFORE, EARLIER = 668_265_263, 1_540_483_477, 1_103_515_245
AGAIN = 362_437_069
# Tokens from either end of a text, after each of which nearness to it counts e times less.
NEAR = 30.0
# The 16-bit tag by which a row tells that it is an n-gram's: in the n-gram's first row a number
# from 0 on, in its second from -2 down.
MARKS, NOBODY = 2**15 - 1, -1


def ngram_hashes(input_ids: Tensor) -> Tensor:
    """Numbers below `PRIME` of the pair and the triple that end in each token, [B, 2, S]. What
    would begin before the text begins with padding.

    A universal hash (Carter and Wegman 1979): nothing beyond 63 bits, and only what ONNX computes
    on signed integers.
    """
    # Not `F.pad`, which ONNX Runtime has for floats alone on a GPU: it would go by way of the CPU.
    wide = torch.cat([torch.zeros_like(input_ids[:, :1])] * 2 + [input_ids], dim=1)  # [B, 2 + S]
    before, earlier = wide[:, 1:-1], wide[:, :-2]  # [B, S]
    pair = (before * BEFORE + input_ids * LAST) % PRIME
    triple = (pair * EARLIER + earlier) % PRIME
    return torch.stack([pair, triple], dim=1)


def position_weight(before: Tensor, after: Tensor, ends: float) -> Tensor:
    """How much a token counts by the numbers of tokens before and after it […]: 1 in the
    middle of a long text, `ends` more at its end and half of that more at its beginning, where
    writers say what they think of it all (Taboada and Grieve 2004).
    """
    return 1 + ends * (torch.exp(-after / NEAR) + torch.exp(-before / NEAR) / 2)


class LinearPart(nn.Module):
    """Logistic regression over tokens and n-grams of up to three, as shares of tokens.

    "not good" is one feature here, which few examples teach; attention needs many. Added to the
    encoder's logits it is the wide half of a wide and deep network (Cheng et al. 2016). Its
    weights come from a convex fit, see `training.linear.classifier`.

    A feature that is in a text has its scale as its value, however often it occurs, times the mean
    `position_weight` of where it occurs, and a text's values have length 1. Each occurrence has its
    part of its feature, by its weight, and each token of an n-gram an equal part of the occurrence,
    so the shares sum over the text to the logits exactly.

    An n-gram falls on the row of its hash modulo the table's rows (Weinberger et al. 2009), but a
    row is not shared: `owner` keeps what is left of the hash of the one n-gram that it belongs to,
    as a quotient filter does (Bender et al. 2012). Another that falls on it may have a second row,
    where another hash of it falls (Azar et al. 1994), or else says nothing. Weights have a column
    less than there are classes: those of the last are minus the others' sum.

    Of several domains each has weights of its own, and a text those of all domains, each by how
    likely the text is of it, which its tokens tell: a mixture of linear experts (Jacobs et al.
    1991).
    """

    owner: Tensor

    def __init__(
        self, vocab_size: int, ngrams: int, classes: int, domains: int = 1, ends: float = 0.0
    ) -> None:
        super().__init__()
        self.vocab_size, self.ngrams, self.domains, self.ends = vocab_size, ngrams, domains, ends
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
        """Give each of these n-grams [N] the first of its two rows that is free, if one is; those
        named first choose first."""
        owner = self.owner[:, 0].tolist()
        for some in hashes.split(65_536):
            places, marks = (both.T.tolist() for both in self._places(some))
            for of_one in zip(places, marks, strict=True):
                for row, mark in zip(*of_one, strict=True):
                    if owner[row] in (NOBODY, mark):
                        owner[row] = mark
                        break
        self.owner[:, 0] = torch.tensor(owner, dtype=torch.int16)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Share of each token in each logit, [B, S, C], of input_ids [B, S]; attention_mask [B, S]
        is 1 on text. Padding holds exactly 0."""
        length = input_ids.size(1)
        mask = attention_mask.to(self.scale.weight.dtype)[:, None]  # [B, 1, S]
        rows = self.features(input_ids)  # [B, N, S]
        same = (rows[..., None] == rows[:, :, None]).to(mask.dtype)  # [B, N, S, S]
        there = torch.arange(1, length + 1, device=input_ids.device)  # [S]
        part = self._position_weights(there, mask)  # [B, 1, S]
        both = same @ torch.stack([mask, part], dim=-1)  # [B, N, S, 2]
        count = both[..., 0].clamp(min=1)  # [B, N, S]
        scale = self.scale(rows)[..., 0] / count
        norm = ((scale * both[..., 1]).square() / count * mask).sum(dim=(1, 2)).sqrt()  # [B]
        value = scale * part / norm.clamp(min=1e-6)[:, None, None]  # [B, N, S]
        # Before the second token stands one, before the third two: no one else to share with.
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
        places, marks = self._places(ngram_hashes(input_ids))  # [2, B, 2, S] each
        owned = F.embedding(places, self.owner)[..., 0].long() == marks
        first, second = torch.where(owned, self.vocab_size + places, PAD_ID)
        ngrams = torch.where(owned[0], first, second)  # [B, 2, S]
        return torch.cat([input_ids[:, None], ngrams], dim=1)

    def _position_weights(self, there: Tensor, mask: Tensor) -> Tensor:
        """How much each token counts, [B, 1, S], 0 of padding; there [S] counts from 1."""
        after = (mask.sum(dim=-1, keepdim=True) - there).clamp(min=0)  # [B, 1, S]
        return position_weight((there - 1).to(mask), after, self.ends) * mask

    def _likely(self, input_ids: Tensor, part: Tensor) -> Tensor:
        """How likely each text is of each domain, [B, K]: logistic regression over its tokens, of
        which each occurrence has an equal part, [B, S]."""
        norm = part.sum(dim=1, keepdim=True).sqrt()  # of as many ones as it has tokens
        said = ((part / norm)[:, None] @ self.domain(input_ids))[:, 0]  # [B, K]
        return (said + self.prior).softmax(dim=-1)

    def _places(self, hashes: Tensor) -> tuple[Tensor, Tensor]:
        """The two rows that each n-gram may have, [2, …] of hashes […], and what it would be known
        by in each."""
        both = torch.stack([hashes, hashes * AGAIN % PRIME])
        mark = both // self.ngrams % MARKS
        return both % self.ngrams, torch.stack([mark[0], NOBODY - 1 - mark[1]])
