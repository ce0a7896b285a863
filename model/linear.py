"""The linear part: what tokens and pairs of tokens say by themselves."""

import torch
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


class LinearPart(nn.Module):
    """Logistic regression over tf-idf of tokens and of pairs of neighbours, as shares of tokens.

    "not good" is one feature here, which few examples teach; attention needs many. Added to the
    encoder's logits it is the wide half of a wide and deep network (Cheng et al. 2016). Its
    weights come from a convex fit, see `training.linear`.

    A feature that occurs f times in a text weighs (1 + ln f) · idf, and the text's weights have
    length 1 (Manning, Raghavan and Schütze 2008, section 6.4). Each occurrence has an equal part of
    its feature, and each token of a pair half of the pair's, so the shares sum over the text to the
    logits exactly.
    """

    def __init__(self, vocab_size: int, pairs: int, classes: int) -> None:
        super().__init__()
        self.vocab_size, self.pairs = vocab_size, pairs
        self.weight, self.idf = (
            nn.Embedding.from_pretrained(torch.zeros(vocab_size + pairs, width), freeze=False)
            for width in (classes, 1)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Share of each token in each logit, [B, S, C], of input_ids [B, S]; attention_mask [B, S]
        is 1 on text. Padding holds exactly 0."""
        mask = attention_mask.to(self.idf.weight.dtype)  # [B, S]
        rows = self.features(input_ids)  # [B, 2, S]
        same = (rows[..., None] == rows[:, :, None]).to(mask.dtype)  # [B, 2, S, S]
        count = (same @ mask[:, None, :, None])[..., 0].clamp(min=1)  # [B, 2, S]
        # What an occurrence has of its feature's tf-idf, before the text's length is known.
        part = (1 + count.log()) / count * self.idf(rows)[..., 0]  # [B, 2, S]
        length = (count * part.square() * mask[:, None]).sum(dim=(1, 2)).sqrt()  # [B]
        part = part * mask[:, None] / length.clamp(min=1e-6)[:, None, None]
        shares = part[..., None] * self.weight(rows)  # [B, 2, S, C]
        token, half = shares[:, 0], shares[:, 1] / 2
        # The first token's pair has no one before it to share with.
        alone = torch.cat([half[:, :1], torch.zeros_like(half[:, 1:])], dim=1)
        return token + half + F.pad(half[:, 1:], (0, 0, 0, 1)) + alone

    def features(self, input_ids: Tensor) -> Tensor:
        """The rows of each token and of its pair, [B, 2, S]."""
        paired = self.vocab_size + pair_rows(input_ids, self.pairs)
        return torch.stack([input_ids, paired], dim=1)
