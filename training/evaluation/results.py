"""The table of runs: a row for each test set of each bundle, kept beside the configs."""

import csv
from pathlib import Path

from model.bundle import Manifest

# A column, and the metric that it shows.
METRICS = {
    "accuracy": "accuracy",
    "accuracy_at_80": "accuracy_at_80",
    "macro_f1": "macro_f1",
    "calibration_error": "ece",
    "linear_accuracy": "linear_accuracy",
}
RUN = ("created", "code", "name", "version", "seed", "layers", "d_model", "ngrams", "vocab_size")
COLUMNS = (*RUN, "set", "rows", *METRICS)


class ResultsError(ValueError):
    """The file cannot be the table of runs; the message names it and says why."""


def append(path: Path, manifest: Manifest, seed: int) -> None:
    """Add a bundle's rows to the CSV file `path`, made where there is none.

    Shares have four digits; what was not measured is empty. Raises `ResultsError`.
    """
    check(path)
    config = manifest.config.model_dump()
    about = manifest.model_dump() | config | {"seed": seed}
    run = [about[name] for name in RUN]
    rows = [] if _begun(path) else [list(COLUMNS)]
    for name, values in manifest.metrics.items():
        shown = [f"{values[one]:.4f}" if one in values else "" for one in METRICS.values()]
        rows.append([*run, name, values["rows"], *shown])
    try:
        with path.open("a", newline="", encoding="utf-8") as file:
            if not _ends_a_line(path):
                file.write("\n")
            csv.writer(file, lineterminator="\n").writerows(rows)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from error


def check(path: Path) -> None:
    """Raise `ResultsError` for a file that is there and is no such table, or that cannot be made:
    before a long run."""
    if not path.parent.is_dir():
        raise ResultsError(f"{path}: there is no folder {path.parent}")
    if not _begun(path):
        return
    try:
        with path.open(encoding="utf-8") as file:
            head = file.readline().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: cannot be read: {error}") from error
    if head != ",".join(COLUMNS):
        raise ResultsError(f"{path}: its columns are {head[:200]!r}, not {','.join(COLUMNS)!r}")


def _begun(path: Path) -> bool:
    return path.exists() and (path.is_dir() or path.stat().st_size > 0)


def _ends_a_line(path: Path) -> bool:
    """Editors may leave out the end of the last line, which a row would then go on with."""
    return path.stat().st_size == 0 or path.read_bytes().endswith(b"\n")
