"""Networks that nobody trained, for what must hold of any weights."""

import torch

from model.classifier import TextClassifier
from model.config import ModelConfig


def random_network(**shape: int) -> TextClassifier:
    """A network of a shape, no weight of which is still where it begins; the same every time."""
    torch.manual_seed(0)
    network = TextClassifier(ModelConfig(vocab_size=60, **shape)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network
