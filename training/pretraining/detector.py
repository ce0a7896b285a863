"""The network while it learns from texts alone."""

from torch import Tensor, nn

from model.classifier import TextClassifier
from model.config import ModelConfig


class Detector(TextClassifier):
    """The same network asked of every token instead of the text: was it replaced?

    The discriminator of ELECTRA (Clark et al. 2020, section 2). Embedding and layers learn; the
    pooling and the head wait for labels as they were drawn.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.detector = nn.Sequential(
            nn.Linear(config.d_model, config.d_model), nn.GELU(), nn.Linear(config.d_model, 1)
        )
        for waiting in (self.query, *self.pooling.parameters(), *self.head.parameters()):
            waiting.requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [B, S] of input_ids and attention_mask [B, S]."""
        logits: Tensor = self.detector(self.states(input_ids, attention_mask))
        return logits[..., 0]
