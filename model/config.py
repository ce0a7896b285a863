"""The network's shape, as numbers that can be checked."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelConfig(BaseModel):
    """Sizes of a `TextClassifier`. Frozen; impossible values are refused with field and reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(ge=4, description="Rows of the embedding, special tokens included.")
    classes: int = Field(ge=2, description="C, the number of labels.")
    d_model: int = Field(192, ge=8, description="Width of the encoder.")
    layers: int = Field(3, ge=0, description="L, encoder layers; 0: a bag of tokens.")
    heads: int = Field(6, ge=1, description="H, heads in each layer and in the pooling.")
    d_ff: int = Field(512, ge=8, description="Width inside the gated feed-forward.")
    max_tokens: int = Field(512, ge=8, le=8192, description="Longest text, in tokens.")
    ngrams: int = Field(
        0,
        ge=0,
        description="Rows of the linear part's table of n-grams; 0: no linear part.",
    )
    domains: int = Field(
        1,
        ge=1,
        description="K, kinds of text to which the linear part's features say each its own.",
    )
    ends: float = Field(
        0.0,
        ge=0,
        le=100,
        description="How much more the linear part hears of a text's last word than of its middle; "
        "of its first, half as much more.",
    )
    rope_theta: float = Field(10_000.0, gt=1, description="Base of the rotary angles.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout on residual branches.")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on attention weights.")

    @property
    def d_head(self) -> int:
        """D, the width of one head."""
        return self.d_model // self.heads

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError(f"heads={self.heads} must divide d_model={self.d_model}")
        if self.d_head % 2:
            raise ValueError(
                f"d_model/heads={self.d_head} must be even: rotary angles turn pairs of features"
            )
        return self
