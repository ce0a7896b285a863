"""Bundles to serve: the embedded one, a folder, or one of any size with random weights."""

import re
from pathlib import Path

from model.bundle import About, read_bundle, read_manifest, write_bundle
from model.config import ModelConfig
from service.settings import EMBEDDED_BUNDLE

SIZE = re.compile(r"(\d+)x(\d+)")  # layers x width
HEAD_WIDTH = 32


class MissingTorch(RuntimeError):
    """Random bundles are exported by the project's own training code, which needs torch."""


def find(name: str, cache: Path) -> Path:
    """The folder of a bundle: "embedded", a size as in "4x256" (made in `cache`), or a path.

    Raises `BundleError` where a path leads to none, and `MissingTorch`.
    """
    if name == "embedded":
        return EMBEDDED_BUNDLE
    if not SIZE.fullmatch(name):
        folder = Path(name).resolve()
        read_manifest(folder)  # what is none is told now, not after minutes of measuring
        return folder
    # With another tokenizer it would be another bundle.
    _, fingerprint = read_manifest(EMBEDDED_BUNDLE)
    folder = (cache / f"{name}-{fingerprint[:8]}").resolve()
    if not folder.is_dir():
        write_random(folder, *map(int, name.split("x")))
    return folder


def write_random(folder: Path, layers: int, width: int) -> None:
    """A bundle of the served form, of that size, with the embedded tokenizer and random weights."""
    try:
        import torch

        from model.classifier import TextClassifier
        from training.release.export import OPSET, export
    except ImportError as error:
        raise MissingTorch(f"{folder.name}: {error.name} is missing; make train") from error
    embedded = read_bundle(EMBEDDED_BUNDLE)
    manifest = embedded.manifest
    config = ModelConfig(
        vocab_size=manifest.config.vocab_size,
        classes=manifest.config.classes,
        d_model=width,
        layers=layers,
        heads=max(1, width // HEAD_WIDTH),
        d_ff=2 * width,
        max_tokens=manifest.max_tokens,
        dropout=0.0,
    )
    torch.manual_seed(0)
    network = TextClassifier(config)
    about = About(
        name=f"random-{folder.name}",
        version="1",
        labels=manifest.labels,
        languages=manifest.languages,
        config=config,
        bias=tuple(network.head.bias.tolist()),
        temperature=1.0,
        opset=OPSET,
        license="Apache-2.0",
    )
    graph = export(network, 1.0, half_weights=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_bundle(folder, graph=graph, tokenizer=embedded.tokenizer, about=about, report={})
