"""What a network begins with, where it is not what its seed draws."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.bundle import GRAPH, MANIFEST, BundleError, read_bundle, sha256
from model.classifier import TextClassifier
from model.tokenizer import Tokenizer
from training.batches import Dataset
from training.config import ConfigError
from training.export import exported_weights
from training.train import BEST
from training.vectors import token_vectors


def begin_with(network: TextClassifier, start: Path) -> str:
    """Load the weights of an earlier stage or of a bundle, but for a head of other classes; returns
    what identifies them.

    Layers that the earlier stage had not are added silent, their residual branches at zero as in
    Fixup (Zhang, Dauphin and Ma 2019), so that the network begins as what it grew from.
    """
    path = start / (GRAPH if (start / MANIFEST).is_file() else BEST)
    try:
        weights = _weights(start)
        for number, layer in enumerate(network.encoder.stack()):
            place = f"encoder.layers.{number}."
            if not any(name.startswith(place) for name in weights):
                nn.init.zeros_(layer.attention.out_proj.weight)
                nn.init.zeros_(layer.feed_forward.down_proj.weight)
                weights |= {place + name: value for name, value in layer.state_dict().items()}
        if weights["head.bias"].shape != network.head.bias.shape:
            weights |= {f"head.{name}": value for name, value in network.head.state_dict().items()}
        network.load_state_dict(weights)
    except (OSError, RuntimeError, KeyError, BundleError) as error:
        raise ConfigError(f"{path}: no weights for this network: {error}") from error
    return f"-{sha256(path.read_bytes())[:16]}"


def drawn_back(network: TextClassifier, start: Path, share: float) -> None:
    """Let `share` of every weight be that of the start, as far as it is there: fine-tuned weights
    drawn back so forget less of what they were not shown (WiSE-FT, Wortsman et al. 2022)."""
    before = _weights(start)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name in before and before[name].shape == weight.shape:
                weight.lerp_(before[name].to(weight.device), share)


def _weights(start: Path) -> dict[str, Tensor]:
    """By name, of a run folder the best so far; of a bundle all but its linear part, which is
    fitted to the rows at hand."""
    if not (start / MANIFEST).is_file():
        best: dict[str, Tensor] = torch.load(start / BEST, map_location="cpu", weights_only=True)
        return best
    found = exported_weights(read_bundle(start).graph)
    return {name: value for name, value in found.items() if not name.startswith("linear.")}


def begin_with_vectors(
    network: TextClassifier,
    train: Dataset,
    unlabelled: list[str],
    tokenizer: Tokenizer,
    seed: int,
) -> None:
    """Give the embedding what co-occurrence knows; tokens that it does not know stay as drawn."""
    encodings = tokenizer.encode_batch(unlabelled, offsets=False)
    more = Dataset.encode(encodings, np.zeros((len(unlabelled), network.config.classes), "f4"))
    vectors, known = token_vectors(
        train.joined(more), network.config.vocab_size, network.config.d_model, seed
    )
    with torch.no_grad():
        network.embedding.weight[torch.from_numpy(known)] = torch.from_numpy(vectors[known])
