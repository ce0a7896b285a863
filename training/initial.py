"""Initial weights other than random ones: an earlier run's, a bundle's, or token vectors."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Self

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from model.bundle import GRAPH, MANIFEST, TOKENIZER, BundleError, read_bundle, sha256
from model.classifier import TextClassifier
from model.faults import faults
from training.config import ConfigError
from training.data.batches import Dataset
from training.loop.trainer import BEST
from training.origin import ORIGIN, Origin
from training.pretraining.vectors import token_vectors
from training.progress import Display
from training.release.export import exported_weights

# Parts that each run fits by itself: to the rows at hand, or to tell replaced tokens.
OWN = ("linear.", "detector.")


@dataclass(frozen=True, slots=True)
class Start:
    """What the run folder of an earlier stage, or a bundle, gives a run to begin with.

    `weights` by name, of a run folder the best so far, but for what a run has of its own (`OWN`);
    `identity` tells one start from another; `origin` is None of a run folder before version 2.5.
    """

    path: Path
    tokenizer: bytes
    weights: dict[str, Tensor]
    identity: str
    origin: Origin | None

    @classmethod
    def read(cls, place: Path) -> Self:
        """Raises `ConfigError` where there are no weights."""
        is_bundle = (place / MANIFEST).is_file()
        path = place / (GRAPH if is_bundle else BEST)
        try:
            if is_bundle:
                bundle = read_bundle(place)
                found = exported_weights(bundle.graph)
                identity = bundle.manifest.files[GRAPH]
                origin: Origin | None = Origin.of_bundle(bundle)
            else:
                found = torch.load(path, map_location="cpu", weights_only=True)
                identity = sha256(path.read_bytes())
                origin = Origin.kept(place)
            weights = {name: of for name, of in found.items() if not name.startswith(OWN)}
            return cls(path, (place / TOKENIZER).read_bytes(), weights, identity[:16], origin)
        except (OSError, RuntimeError, EOFError, UnpicklingError, BundleError) as error:
            raise ConfigError(f"{path}: no weights to begin with: {error}") from error
        except ValidationError as error:
            raise ConfigError(f"{place / ORIGIN}: {faults(error)}") from error

    def with_labels(self, labels: Sequence[str], display: Display) -> Self:
        """The same, its head in the order of these labels; without one where they are others, which
        is said."""
        if self.origin is None or self.origin.labels == tuple(labels):
            return self
        head = {name: of for name, of in self.weights.items() if name.startswith("head.")}
        weights = {name: of for name, of in self.weights.items() if name not in head}
        if set(self.origin.labels) == set(labels):
            order = [self.origin.labels.index(label) for label in labels]
            weights |= {name: of[order] for name, of in head.items()}
        elif head:
            same = len(self.origin.labels) == len(labels)
            renamed = " ".join(f"--label VALUE={label}" for label in self.origin.labels)
            display.warn(
                f"{self.path.parent} answers {_listed(self.origin.labels)}, not "
                f"{_listed(labels)}: the head begins anew"
                + (f"; name the labels as there, {renamed}, to keep it" if same else "")
            )
        return dataclasses.replace(self, weights=weights)


def _listed(labels: Sequence[str]) -> str:
    return " and ".join(map(repr, labels))


def begin_with(network: TextClassifier, start: Start) -> None:
    """Load the weights of a start, but for a head that is of other classes or not there. Raises
    `ConfigError`.

    Layers that it had not are added silent, their residual branches at zero as in Fixup (Zhang,
    Dauphin and Ma 2019), so that the network begins as what it grew from.
    """
    weights, heads = dict(start.weights), network.config.heads
    if start.origin is not None and start.origin.heads != heads:
        raise ConfigError(
            f"network.heads={heads}: {start.path} has {start.origin.heads}, and its weights are "
            "for these"
        )
    for number, layer in enumerate(network.encoder.stack()):
        place = f"encoder.layers.{number}."
        if not any(name.startswith(place) for name in weights):
            nn.init.zeros_(layer.attention.out_proj.weight)
            nn.init.zeros_(layer.feed_forward.down_proj.weight)
            weights |= {place + name: value for name, value in layer.state_dict().items()}
    head = weights.get("head.bias")
    if head is None or head.shape != network.head.bias.shape:
        weights |= {f"head.{name}": value for name, value in network.head.state_dict().items()}
    has, needs = (
        {name: list(of.shape) for name, of in states.items()}
        for states in (weights, network.state_dict())
    )
    for name in (*needs, *has):
        if has.get(name) != needs.get(name):
            raise ConfigError(
                f"{start.path}: no weights for this network: {name} is {has.get(name, 'not there')}"
                f", and is to be {needs.get(name, 'left out')}"
            )
    network.load_state_dict(weights)


def interpolate(network: TextClassifier, start: Start, share: float) -> None:
    """Let `share` of every weight be that of the start, as far as it is there: fine-tuned weights
    drawn back so forget less of what they were not shown (WiSE-FT, Wortsman et al. 2022)."""
    before = start.weights
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name in before and before[name].shape == weight.shape:
                weight.lerp_(before[name].to(weight.device), share)


def begin_with_vectors(network: TextClassifier, texts: Dataset, seed: int) -> None:
    """Give the embedding what co-occurrence knows; tokens that it does not know stay as drawn."""
    vectors, known = token_vectors(texts, network.config.vocab_size, network.config.d_model, seed)
    with torch.no_grad():
        network.embedding.weight[torch.from_numpy(known)] = torch.from_numpy(vectors[known])
