"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write under; what is there then takes the place of `path`.

    Until then, and where writing fails or is killed, `path` stays as it was. Raises `OSError`.
    """
    fresh = path.with_name(f".{path.name}.new-{os.getpid()}")
    try:
        yield fresh
        with fresh.open("rb") as file:
            os.fsync(file.fileno())  # a power cut after the renaming must not leave half of it
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
