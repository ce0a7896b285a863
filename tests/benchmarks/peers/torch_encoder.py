"""The same sizes of network out of torch's own parts, as tutorials write it."""

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.tokenizer import PAD_ID


class TorchClassifier(nn.Module):
    """torch.nn.TransformerEncoder with learned positions, pooled by torch.nn.MultiheadAttention.

    As many parameters as ours in each layer: its feed-forward has two matrices to our three.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.d_model, padding_idx=PAD_ID)
        self.positions = nn.Embedding(config.max_tokens, config.d_model)
        layer = nn.TransformerEncoderLayer(
            config.d_model,
            config.heads,
            dim_feedforward=config.d_ff * 3 // 2,
            dropout=config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
            bias=False,
        )
        self.encoder = nn.TransformerEncoder(
            layer, config.layers, norm=nn.LayerNorm(config.d_model), enable_nested_tensor=False
        )
        self.query = nn.Parameter(torch.randn(1, 1, config.d_model))
        self.pooling = nn.MultiheadAttention(
            config.d_model, config.heads, bias=False, batch_first=True
        )
        self.head = nn.Linear(config.d_model, config.classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [B, C] of input_ids and attention_mask [B, S]."""
        padding = attention_mask == 0
        places = torch.arange(input_ids.size(1), device=input_ids.device)
        states = self.encoder(
            self.embedding(input_ids) + self.positions(places), src_key_padding_mask=padding
        )
        query = self.query.expand(input_ids.size(0), -1, -1)
        pooled, _ = self.pooling(query, states, states, padding, need_weights=False)
        logits: Tensor = self.head(pooled[:, 0])
        return logits
