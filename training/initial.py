"""What a network begins with, where it is not what its seed draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from model.bundle import GRAPH, MANIFEST, TOKENIZER, BundleError, read_bundle, sha256
from model.classifier import TextClassifier
from model.tokenizer import Tokenizer
from training.batches import Dataset
from training.config import ConfigError
from training.export import exported_weights
from training.train import BEST
from training.vectors import token_vectors


@dataclass(frozen=True, slots=True)
class Start:
    """What an earlier stage or a bundle gives a run to begin with; of several, their mean.

    Fine-tuned from one start, networks lie so near each other that the mean of their weights
    answers like their ensemble, at the cost of one (model soups, Wortsman et al. 2022).
    """

    where: str
    tokenizer: bytes
    weights: dict[str, Tensor]
    identity: str

    @classmethod
    def read(cls, places: Sequence[Path]) -> Self:
        """The start that run folders and bundles are, one at least.

        Raises `ConfigError` where one has no weights, or other ones than the first.
        """
        files = [place / (GRAPH if _is_bundle(place) else BEST) for place in places]
        weights, tokenizers, identity = [], [], ""
        for place, file in zip(places, files, strict=True):
            try:
                weights.append(_weights(place))
                tokenizers.append((place / TOKENIZER).read_bytes())
                identity += f"-{sha256(file.read_bytes())[:16]}"
            except (OSError, RuntimeError, KeyError, BundleError) as error:
                raise ConfigError(f"{file}: no weights to begin with: {error}") from error
        shapes = [{name: value.shape for name, value in one.items()} for one in weights]
        for file, shape, tokenizer in zip(files, shapes, tokenizers, strict=True):
            if tokenizer != tokenizers[0]:
                raise ConfigError(f"{file}: has another vocabulary than {files[0]}")
            if shape != shapes[0]:
                raise ConfigError(f"{file}: has other weights than {files[0]}")
        mean = {
            name: torch.stack([one[name] for one in weights]).mean(dim=0) for name in weights[0]
        }
        return cls(", ".join(map(str, files)), tokenizers[0], mean, identity)


def begin_with(network: TextClassifier, start: Start) -> None:
    """Load the weights of a start, but for a head of other classes. Raises `ConfigError`.

    Layers that it had not are added silent, their residual branches at zero as in Fixup (Zhang,
    Dauphin and Ma 2019), so that the network begins as what it grew from.
    """
    weights = dict(start.weights)
    for number, layer in enumerate(network.encoder.stack()):
        place = f"encoder.layers.{number}."
        if not any(name.startswith(place) for name in weights):
            nn.init.zeros_(layer.attention.out_proj.weight)
            nn.init.zeros_(layer.feed_forward.down_proj.weight)
            weights |= {place + name: value for name, value in layer.state_dict().items()}
    if "head.bias" in weights and weights["head.bias"].shape != network.head.bias.shape:
        weights |= {f"head.{name}": value for name, value in network.head.state_dict().items()}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"{start.where}: no weights for this network: {error}") from error


def drawn_back(network: TextClassifier, start: Start, share: float) -> None:
    """Let `share` of every weight be that of the start, as far as it is there: fine-tuned weights
    drawn back so forget less of what they were not shown (WiSE-FT, Wortsman et al. 2022)."""
    before = start.weights
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name in before and before[name].shape == weight.shape:
                weight.lerp_(before[name].to(weight.device), share)


def _is_bundle(place: Path) -> bool:
    return (place / MANIFEST).is_file()


def _weights(place: Path) -> dict[str, Tensor]:
    """By name, of a run folder the best so far; of a bundle all but its linear part, which is
    fitted to the rows at hand."""
    if not _is_bundle(place):
        best: dict[str, Tensor] = torch.load(place / BEST, map_location="cpu", weights_only=True)
        return best
    found = exported_weights(read_bundle(place).graph)
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
