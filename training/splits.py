"""Which rows a run trains on, chooses with and is measured with."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.baseline import LinearBaseline
from training.config import ConfigError, RunConfig, UnlabelledConfig
from training.data import (
    Rows,
    SourceConfig,
    concatenate,
    deduplicate,
    exclude,
    excluded,
    read_keys,
    read_rows,
    read_texts,
    split,
)
from training.progress import Display


@dataclass(frozen=True, slots=True)
class Splits:
    """The rows of a run: one set to train on, named sets to choose and to measure with.

    `sources` are what `train.sources` numbers; `unlabelled` are texts beside the rows.
    """

    labels: tuple[str, ...]
    sources: tuple[SourceConfig, ...]
    train: Rows
    unlabelled: list[str]
    validation: dict[str, Rows]
    test: dict[str, Rows]


def prepare(config: RunConfig, base: Path, display: Display) -> Splits:
    """Read, check, filter and split the rows; paths are relative to `base`."""
    keys = read_keys(base / config.exclude_keys) if config.exclude_keys else frozenset()
    labels, rows = _read_sources(config, base, keys, display)
    validation = _read_sets(config.validation, labels, base, display)
    test = _read_sets(config.test, labels, base, display)
    shares = (
        0.0 if validation else config.validation_share,
        0.0 if test else config.test_share,
    )
    if any(shares):
        rows, held_out, tested = split(rows, *shares)
        validation = validation or {"validation": held_out}
        test = test or {"test": tested}
    for name, part in (("train", rows), *validation.items(), *test.items()):
        if len(part) == 0:
            raise ConfigError(f"{name}: no rows left; give more rows or another share")
        missing = sorted(set(range(len(labels))) - set(part.labels.tolist()))
        if missing:
            display.say(f"warning: {name} has no row of {[labels[i] for i in missing]}")
    unlabelled: list[str] = []
    taught = [rows]
    for number, source in enumerate(config.unlabelled, len(config.sources)):
        texts = [text for text in read_texts(source, base) if not excluded(text, keys)]
        display.say(f"{source.name}: {len(texts):,} unlabelled texts")
        if source.teacher:
            taught.append(_teach(config, source, number, rows, texts, display))
        else:
            unlabelled += texts
    sources = (*config.sources, *config.unlabelled)
    return Splits(labels, sources, concatenate(taught), unlabelled, validation, test)


def _read_sources(
    config: RunConfig, base: Path, keys: frozenset[str], display: Display
) -> tuple[tuple[str, ...], Rows]:
    """The labels and all rows to train on, each text once and none that is listed in `keys`."""
    labels = config.labels
    parts = []
    for source in config.sources:
        rows, found, dropped = read_rows(source, labels, base)
        labels = labels or found
        display.say(f"{source.name}: {len(rows):,} rows{_counts(dropped)}")
        parts.append(rows)
    assert labels is not None
    # One source at a time conflicts with itself; between sources the first, most trusted, wins.
    rows, dropped = deduplicate(parts)
    display.say(f"together: {len(rows):,} rows{_counts(dropped)}")
    if keys:
        rows, count = exclude(rows, keys)
        display.say(f"{count:,} rows left out: listed in {config.exclude_keys}")
    return labels, rows


def _teach(
    config: RunConfig,
    source: UnlabelledConfig,
    number: int,
    rows: Rows,
    texts: list[str],
    display: Display,
) -> Rows:
    """Rows of source `number` out of unlabelled texts: a linear model of its teachers' rows says
    the labels (self-training, Yarowsky 1995), and texts it is unsure of are left out."""
    names = [one.name for one in config.sources]
    own = rows.take(np.isin(rows.sources, [names.index(name) for name in source.teacher]))
    probabilities = LinearBaseline.fit(own.texts, own.labels).probabilities(texts)
    sure = probabilities.max(axis=1) >= source.least_confidence
    display.say(f"{source.name}: {sure.sum():,} labelled by a linear model of {source.teacher}")
    taught = Rows(
        texts=texts,
        labels=probabilities.argmax(axis=1).astype(np.int64),
        sources=np.full(len(texts), number),
        languages=np.full(len(texts), source.language),
    )
    return taught.take(sure)


def _read_sets(
    sources: tuple[SourceConfig, ...], labels: tuple[str, ...], base: Path, display: Display
) -> dict[str, Rows]:
    sets = {}
    for source in sources:
        sets[source.name], _, dropped = read_rows(source, labels, base)
        display.say(f"{source.name}: {len(sets[source.name]):,} held-out rows{_counts(dropped)}")
    return sets


def _counts(dropped: dict[str, int]) -> str:
    return "".join(f", {count:,} {reason} dropped" for reason, count in dropped.items() if count)
