"""Networks that nobody trained, for what must hold of any weights."""

import torch

from model.classifier import TextClassifier
from model.config import ModelConfig
from model.linear import LinearPart, ngram_hashes
from model.tokenizer import PAD_ID

VOCABULARY = 60


def own_pairs(part: LinearPart) -> None:
    """Give the table to pairs of tokens, as many as have rows of their own."""
    tokens = torch.arange(part.vocab_size)
    part.own(ngram_hashes(torch.cartesian_prod(tokens, tokens))[:, 0, 1])


def random_network(**shape: int) -> TextClassifier:
    """A network of a shape, no weight of which is still where it begins; the same every time."""
    torch.manual_seed(0)
    network = TextClassifier(ModelConfig(vocab_size=VOCABULARY, **shape)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        if network.linear is not None:
            own_pairs(network.linear)
            network.linear.scale.weight[PAD_ID] = 0
    return network
