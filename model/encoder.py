"""Pre-norm Transformer encoder: tokens in, tokens in context out."""

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import MultiHeadAttention
from model.config import ModelConfig


class TextDropout(nn.Dropout):
    """Dropout of features of a whole text: all its tokens share one mask.

    Variational dropout (Gal and Ghahramani 2016); and drawing S times fewer random numbers took a
    sixth off a training step on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, d] to [B, S, d]."""
        if not self.training or self.p == 0:
            return x
        return x * F.dropout(x.new_ones(x.size(0), 1, x.size(2)), self.p)


class FeedForward(nn.Module):
    """Gated feed-forward, GEGLU (Shazeer 2020, equation 6), without biases."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=False)
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, d] to [B, S, d], each token by itself."""
        return self.down_proj(F.gelu(self.gate_proj(x)) * self.up_proj(x))


class LayerTrace(NamedTuple):
    """What one layer's attention did, for the account of the answer.

    weights [B, H, S, S]; residual [B, S, d], the stream that entered the layer; normed [B, S, d],
    what the values were made of; mixed [B, S, d], residual plus attention.
    """

    weights: Tensor
    residual: Tensor
    normed: Tensor
    mixed: Tensor


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each on a residual branch with its norm before it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model, bias=False)
        self.attention = MultiHeadAttention(config.d_model, config.heads, config.attention_dropout)
        self.feed_forward_norm = nn.LayerNorm(config.d_model, bias=False)
        self.feed_forward = FeedForward(config.d_model, config.d_ff)
        self.dropout = TextDropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor], trace: bool
    ) -> tuple[Tensor, LayerTrace | None]:
        """[B, S, d] to [B, S, d]; mask [B, 1, 1, S]. The trace is kept only when asked for."""
        normed = self.attention_norm(x)
        context, weights = self.attention(normed, normed, mask, rotary, need_weights=trace)
        mixed = x + self.dropout(context)
        out = mixed + self.dropout(self.feed_forward(self.feed_forward_norm(mixed)))
        return out, None if weights is None else LayerTrace(weights, x, normed, mixed)


class Encoder(nn.Module):
    """L layers and a last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.d_model, bias=False)

    def stack(self) -> Iterator[EncoderLayer]:
        """The layers, first to last."""
        yield from cast("Iterator[EncoderLayer]", self.layers)

    def forward(
        self, x: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor], trace: bool = False
    ) -> tuple[Tensor, list[LayerTrace]]:
        """[B, S, d] to [B, S, d], with one trace a layer, first to last, when asked for."""
        traces = []
        for layer in self.stack():
            x, layer_trace = layer(x, mask, rotary, trace)
            if layer_trace is not None:
                traces.append(layer_trace)
        return self.norm(x), traces
