"""From fitted weights to a bundle: exported, proven, described, written."""

import datetime
import importlib.metadata
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.bundle import About, Bundle, write_bundle
from model.classifier import TextClassifier
from model.tokenizer import Tokenizer
from training.progress import Display
from training.release.export import check_parity, export
from training.release.report import model_card


def release(
    out: Path,
    network: TextClassifier,
    tokenizer: Tokenizer,
    facts: Mapping[str, Any],
    *,
    half_weights: bool,
    settings: Mapping[str, Any],
    warnings: Sequence[str],
    plots: Mapping[str, bytes],
    display: Display,
) -> Bundle:
    """Write the bundle into `out`.

    `facts` are the fields of `About` that neither the network nor the writing of it tells;
    `settings` and `warnings` go into the model card, `plots` beside it. Raises `ExportError` where
    the graph does not answer as the network does.
    """
    network.cpu()
    temperature = facts["temperature"]
    graph = export(network, temperature, half_weights=half_weights)
    parity = check_parity(graph, network, temperature)
    display.say(
        f"exported: differs from torch by {parity.worst:.1e} at most, "
        f"account complete to {parity.completeness:.1e}"
    )
    about = About(
        **facts,
        config=network.config,
        bias=tuple(network.head.bias.tolist()),
        opset=graph.opset_import[0].version,
        code=code_identity(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    card = model_card(about, settings, network.parameter_count, warnings)
    written = {"model_card.md": card, **plots}
    bundle = write_bundle(out, graph=graph, tokenizer=tokenizer, about=about, report=written)
    display.say(f"wrote {out} ({bundle.fingerprint[:12]})")
    return bundle


def code_identity() -> str:
    """Version of this code and, in a checkout of it, its commit, and whether it was changed."""
    version = importlib.metadata.version("realce")
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # not of whoever installed it
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = ".changed" if _git("status", "--porcelain", "--untracked-files=no") else ""
    except (OSError, subprocess.CalledProcessError):
        return version
    return f"{version}+{commit}{changed}"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
