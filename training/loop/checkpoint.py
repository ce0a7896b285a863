"""A run on disk, such that going on is the same as never having stopped."""

import contextlib
import pickle
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from training.files import replacing


class CheckpointError(ValueError):
    """The checkpoint cannot be used; the message names the file and the reason."""


@dataclass(slots=True)
class Progress:
    """Where a run stands. Random numbers need no state: each step seeds its own."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_score: float = -1.0
    evaluations_without_gain: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint(
    path: Path, fingerprint: str, progress: Progress, states: dict[str, Any]
) -> None:
    """Write all of a run to `path`, whole or not at all."""
    write_whole(path, {"fingerprint": fingerprint, "progress": asdict(progress), "states": states})


def load_checkpoint(path: Path, fingerprint: str) -> tuple[Progress, dict[str, Any]]:
    """Read back what `save_checkpoint` wrote under the same configuration."""
    with reading(path):
        content = torch.load(path, map_location="cpu", weights_only=True)
        found, progress, states = (content[k] for k in ("fingerprint", "progress", "states"))
    if found != fingerprint:
        raise CheckpointError(
            f"{path}: belongs to another configuration or other data ({found}, this run is "
            f"{fingerprint}); choose another run folder with --run-dir, or delete it"
        )
    return Progress(**progress), states


@contextlib.contextmanager
def reading(path: Path, advice: str = "") -> Iterator[None]:
    """Around the reading of what `write_whole` wrote: raises `CheckpointError` where it is broken,
    with what to do about it, if anything."""
    try:
        yield
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: damaged: {error}{advice}") from error


def write_whole(path: Path, content: dict[str, Any]) -> None:
    """Write numbers and tensors to `path`: what was there stays until all that is new is there.

    Raises `CheckpointError` where there is no room for it, or no right to write.
    """
    try:
        with replacing(path) as fresh:
            torch.save(content, fresh)
    except (OSError, RuntimeError) as error:  # the latter is torch's own for a full disk
        raise CheckpointError(f"{path}: cannot be written: {error}") from error
