"""Attention: who looks at whom, and how much."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention as the paper writes it (Vaswani et al. 2017, equation 1), weights included.

    query [B, H, T, D]; key and value [B, H, S, D]; mask broadcastable to [B, H, T, S], True where
    a token may be looked at. Returns context [B, H, T, D] and weights [B, H, T, S], whose rows sum
    to 1 and which are exactly 0 where masked. Every row must have something to look at.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))  # [B, H, T, S]
    if mask is not None:
        # Added, not filled in: ONNX Runtime takes half as long for it.
        scores = scores + torch.where(mask, 0.0, -math.inf)
    # Half precision has too few digits to add up a long row.
    weights = scores.float().softmax(dim=-1).to(value.dtype)  # [B, H, T, S]
    return weights @ value, weights


def _fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """The context alone, by torch's own kernel, which never writes the weights down."""
    if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # In half precision a CPU takes twice as long for the way back through it.
        with torch.autocast("cpu", enabled=False):
            return _fused(query.float(), key.float(), value.float(), mask, dropout)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def rotary_angles(length: int, d_head: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [S, D] that turn position s by s·θ^(-2i/D) (Su et al. 2021, equation 15).

    The two halves of the features form the pairs, so both halves of a row are the same.
    """
    frequency = theta ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)  # [D/2]
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency  # [S, D/2]
    angle = torch.cat([angle, angle], dim=-1)  # [S, D]
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each feature pair of x [B, H, S, D] by its position's angle; cos and sin are [S, D]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


class MultiHeadAttention(nn.Module):
    """H heads of attention from `query` to `key_value`: self- and cross-attention are one thing.

    No biases: a constant that no token brings would have no owner in the account of the answer.
    """

    def __init__(self, d_model: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.d_head = d_model // heads
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self,
        query: Tensor,
        key_value: Tensor,
        mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        need_weights: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        query [B, T, d]; key_value [B, S, d]; mask broadcastable to [B, H, T, S], True where a token
        may be looked at; rotary as from `rotary_angles`, for self-attention (T = S). Returns
        context [B, T, d] and weights [B, H, T, S] as used, before dropout; None in their place
        where `need_weights` is False, which lets torch fuse the three steps.
        """
        q = self.split(self.q_proj(query))  # [B, H, T, D]
        k = self.split(self.k_proj(key_value))  # [B, H, S, D]
        v = self.split(self.v_proj(key_value))  # [B, H, S, D]
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            context, weights = scaled_dot_product_attention(q, k, v, mask)
            if dropout:
                context = F.dropout(weights, dropout) @ v
        else:
            context = _fused(q, k, v, mask, dropout)
        merged = context.transpose(1, 2).flatten(2)  # [B, T, d]
        return self.out_proj(merged), weights

    def split(self, x: Tensor) -> Tensor:
        """[B, S, d] to heads [B, H, S, D]."""
        return x.unflatten(-1, (self.heads, self.d_head)).transpose(1, 2)
