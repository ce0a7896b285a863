"""The whole network: token ids in, logits and their account out."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model import attribution
from model.attention import MultiHeadAttention, rotary_angles
from model.config import ModelConfig
from model.encoder import Encoder, LayerTrace, TextDropout
from model.linear import LinearPart
from model.tokenizer import PAD_ID


class Explanation(NamedTuple):
    """A prediction with its account.

    logits [B, C]; evidence and contributions [B, S, C], each summing over S, plus the bias, to the
    logits; pooling_attention [B, H, S]; attentions [B, L, H, S, S]. Padding holds exactly 0 in
    evidence, contributions, pooling_attention and the last axis of attentions.
    """

    logits: Tensor
    evidence: Tensor
    contributions: Tensor
    pooling_attention: Tensor
    attentions: Tensor


class TextClassifier(nn.Module):
    """Encoder, learned-query pooling, linear head; beside them a linear part, if there is one.

    The pooling is cross-attention from one learned query (a slice of it per head) over the
    encoder's output: pooling by multi-head attention (Lee et al. 2019, Set Transformer, section
    3.2). Nothing non-linear stands between it and the logits, and the linear part adds to these,
    which is what makes the account exact.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model, padding_idx=PAD_ID)
        self.embedding_dropout = TextDropout(config.dropout)
        self.encoder = Encoder(config)
        self.query = nn.Parameter(torch.empty(1, 1, config.d_model))
        self.pooling = MultiHeadAttention(config.d_model, config.heads)
        self.head = nn.Linear(config.d_model, config.classes)
        cos, sin = rotary_angles(config.max_tokens, config.d_head, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.cos: Tensor
        self.sin: Tensor
        self._initialise()
        # After the others are drawn: it says nothing until it is fitted.
        self.linear = (
            LinearPart(
                config.vocab_size, config.ngrams, config.classes, config.domains, config.ends
            )
            if config.ngrams
            else None
        )

    def _initialise(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)
        # Residual branches start small, so that depth does not grow the stream (GPT-2).
        for layer in self.encoder.stack():
            scale = 0.02 / (2 * self.config.layers) ** 0.5
            nn.init.normal_(layer.attention.out_proj.weight, std=scale)
            nn.init.normal_(layer.feed_forward.down_proj.weight, std=scale)
        nn.init.normal_(self.embedding.weight, std=1 / self.config.d_model**0.5)
        nn.init.zeros_(self.embedding.weight[PAD_ID])
        nn.init.zeros_(self.head.bias)

    @property
    def parameter_count(self) -> int:
        """Numbers that training fits."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [B, C] of input_ids [B, S]; attention_mask [B, S] is 1 on text, 0 on padding."""
        mask = attention_mask.bool()[:, None, None, :]  # [B, 1, 1, S]
        states = self.states(input_ids, attention_mask)
        query = self.query.expand(input_ids.size(0), -1, -1)
        pooled, _ = self.pooling(query, states, mask, need_weights=False)  # [B, 1, d]
        logits: Tensor = self.head(pooled[:, 0])
        if self.linear is not None:
            logits = logits + self.linear(input_ids, attention_mask).sum(dim=1)
        return logits

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Each token in its context, [B, S, d]."""
        mask = attention_mask.bool()[:, None, None, :]
        states, _ = self.encoder(self._embed(input_ids), mask, self._rotary(input_ids))
        return states

    def explain(self, input_ids: Tensor, attention_mask: Tensor) -> Explanation:
        """Logits and everything that led to them, from the same weights as `forward`."""
        mask = attention_mask.bool()[:, None, None, :]
        states, traces = self.encoder(
            self._embed(input_ids), mask, self._rotary(input_ids), trace=True
        )
        query = self.query.expand(input_ids.size(0), -1, -1)
        pooled, looked = self.pooling(query, states, mask)  # [B, 1, d], [B, H, 1, S]
        value = self.pooling.split(self.pooling.v_proj(states))  # [B, H, S, D]
        evidence = attribution.evidence(looked, value, self.direction())  # [B, S, C]
        contributions = evidence
        for layer, trace in [*zip(self.encoder.stack(), traces, strict=True)][::-1]:
            contributions = attribution.propagate(contributions, layer.attention, trace)
        logits = self.head(pooled[:, 0])
        if self.linear is not None:  # what a token says by itself has nowhere to be carried
            said = self.linear(input_ids, attention_mask)  # [B, S, C]
            logits, evidence = logits + said.sum(dim=1), evidence + said
            contributions = contributions + said
        return Explanation(
            logits=logits,
            evidence=evidence,
            contributions=contributions,
            pooling_attention=looked[:, :, 0],
            attentions=self._stacked(traces, input_ids),
        )

    def direction(self) -> Tensor:
        """The linear head as each pooling head's values meet it, [C, H, D]."""
        through = self.head.weight @ self.pooling.out_proj.weight  # [C, d]
        return through.unflatten(1, (self.config.heads, self.config.d_head))

    def _stacked(self, traces: list[LayerTrace], input_ids: Tensor) -> Tensor:
        if traces:
            return torch.stack([trace.weights for trace in traces], dim=1)
        size, length = input_ids.shape
        return self.query.new_zeros(size, 0, self.config.heads, length, length)

    def _embed(self, input_ids: Tensor) -> Tensor:
        return self.embedding_dropout(self.embedding(input_ids))  # [B, S, d]

    def _rotary(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        length = input_ids.size(1)
        return self.cos[:length], self.sin[:length]
