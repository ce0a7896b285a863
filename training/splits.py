"""Which rows a run trains on, chooses with and is measured with."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.config import ConfigError, RunConfig, UnlabelledConfig
from training.data.formats import DataError
from training.data.rows import Rows, concatenate, deduplicate, excluded, row_key, split
from training.data.sources import SourceConfig, read_aligned, read_keys, read_rows, read_texts
from training.data.translation import Lexicon
from training.linear.baseline import NoWords
from training.progress import Display
from training.teacher import Teacher

FEW_ROWS = 1_000  # fewer teach little more than which words are good and bad
MOST_OF_ONE_CLASS = 0.8
MOST_REPEATED = 0.1


@dataclass(frozen=True, slots=True)
class Splits:
    """The rows of a run: one set to train on, named sets to choose and to measure with.

    `sources` are what `train.sources` numbers; `linear` [N] is what each row weighs for linear
    models, 0 where only a teacher labelled it; `domains` [N, K] are 1 where it is of a domain, None
    where sources name none; `unlabelled` are texts beside the rows, `texts_of` how many of them are
    of which source; `warnings` say what is odd about the data.
    """

    labels: tuple[str, ...]
    sources: tuple[SourceConfig, ...]
    train: Rows
    linear: npt.NDArray[np.float32]
    domains: npt.NDArray[np.float32] | None
    unlabelled: list[str]
    texts_of: dict[str, int]
    validation: dict[str, Rows]
    test: dict[str, Rows]
    warnings: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Tells what a run learns from and chooses with from any other rows, 16 hex digits."""
        found = hashlib.sha256()
        for rows in (self.train, *self.validation.values()):
            found.update("\0".join(rows.texts).encode())
            found.update(rows.targets.tobytes())
        found.update("\0".join(self.unlabelled).encode())
        return found.hexdigest()[:16]


def prepare(config: RunConfig, base: Path, display: Display) -> Splits:
    """Read, check, filter and split the rows; paths are relative to `base`.

    No text of a held-out set is trained on, whether labelled, unlabelled or listed only by key.
    """
    keys = read_keys(base / config.exclude_keys) if config.exclude_keys else frozenset()
    if config.exclude_held_out:
        for source in (*config.validation, *config.test):
            keys |= {row_key(text) for text in read_texts(source, base)}
    labels, rows, repeated, dropped = _read_sources(config, base, keys, display)
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
        if config.exclude_held_out:
            for part in (held_out, tested):
                keys |= {*map(row_key, part.texts), *filter(None, part.wholes)}
    sets = [("train", rows), *validation.items(), *test.items()]
    for name, part in sets:
        if len(part) == 0:
            raise ConfigError(f"{name}: no rows left{dropped}; give more rows or another share")
    _check_classes(config, labels, rows, dropped)
    warnings = tuple(_odd(labels, sets, repeated))
    for warning in warnings:
        display.warn(warning)
    teachers = _Teachers(config, rows, display)
    unlabelled: list[str] = []
    texts_of: dict[str, int] = {}
    taught = [teachers.refine()]
    for number, source in enumerate(config.unlabelled, len(config.sources)):
        texts = [text for text in read_texts(source, base) if not excluded(text, keys)]
        display.say(f"{source.name}: {len(texts):,} unlabelled texts")
        if source.teacher:
            of_source = teachers.label(source, number, texts)
            left = [not excluded(text, keys) for text in of_source.texts]
            taught.append(of_source.take(np.array(left, dtype=bool)))
        else:
            unlabelled += texts
            texts_of[source.name] = len(texts)
    taught += _translated(config, taught[0], keys, base, display)
    train = concatenate(taught)
    sources = (*config.sources, *config.unlabelled, *_translated_sources(config))
    weights = [0.0 if isinstance(one, UnlabelledConfig) else one.linear for one in sources]
    linear = np.array(weights, "f4")[train.sources]
    domains = _of_domains(config, sources, train.sources, linear, dropped)
    return Splits(
        labels=labels,
        sources=sources,
        train=train,
        linear=linear,
        domains=domains,
        unlabelled=unlabelled,
        texts_of=texts_of,
        validation=validation,
        test=test,
        warnings=warnings,
    )


class _Teachers:
    """The teachers that a configuration names, each learnt once."""

    def __init__(self, config: RunConfig, rows: Rows, display: Display) -> None:
        self.config, self.rows, self.display = config, rows, display
        self.learnt: dict[tuple[str, ...], Teacher] = {}

    def refine(self) -> Rows:
        """All rows, those of a source with a teacher under what it says as well."""
        targets = self.rows.targets.copy()
        for number, source in enumerate(self.config.sources):
            if source.teacher:
                at = np.flatnonzero(self.rows.sources == number)
                own = self.rows.take(at)
                targets[at] = self._of(source).refine(own.texts, own.targets)
                self._tell(source, len(at))
        return dataclasses.replace(self.rows, targets=targets)

    def label(self, source: UnlabelledConfig, number: int, texts: list[str]) -> Rows:
        """Rows of source `number` out of unlabelled texts; what the teacher is unsure of is left
        out."""
        texts, targets = self._of(source).label_units(source.unit, texts)
        taught = Rows(
            texts=texts,
            targets=targets,
            sources=np.full(len(texts), number),
            languages=np.full(len(texts), source.language),
        )
        taught = taught.take(targets.max(axis=1) >= source.least_confidence)
        self._tell(source, len(taught))
        return taught

    def _of(self, source: SourceConfig) -> Teacher:
        if source.teacher not in self.learnt:
            names = [one.name for one in self.config.sources]
            trusted = np.isin(self.rows.sources, [names.index(name) for name in source.teacher])
            own = self.rows.take(trusted)
            if own.targets.any(axis=0).sum() < 2:
                raise DataError(
                    f"{source.name}: teacher={list(source.teacher)} has rows of one class only"
                )
            try:
                self.learnt[source.teacher] = Teacher.of(own)
            except NoWords as error:
                raise DataError(
                    f"{source.name}: teacher={list(source.teacher)}: {error}"
                ) from error
        return self.learnt[source.teacher]

    def _tell(self, source: SourceConfig, count: int) -> None:
        self.display.say(f"{source.name}: {count:,} labelled by a linear model of {source.teacher}")


def _translated_sources(config: RunConfig) -> tuple[SourceConfig, ...]:
    named = {source.name: source for source in config.sources}
    return tuple(one.of(named[one.source]) for one in config.translated)


def _translated(
    config: RunConfig, rows: Rows, keys: frozenset[str], base: Path, display: Display
) -> Iterator[Rows]:
    """The rows of every source that is to be translated, once more; no aligned text that is held
    out teaches how."""
    names = [source.name for source in config.sources]
    lexicons: dict[tuple[str, str], Lexicon] = {}
    for number, one in enumerate(config.translated, len(config.sources) + len(config.unlabelled)):
        if one.aligned not in lexicons:
            pairs = read_aligned(one.aligned, base)
            lexicons[one.aligned] = Lexicon.learn(
                pair for pair in pairs if not any(excluded(text, keys) for text in pair)
            )
        lexicon = lexicons[one.aligned]
        own = rows.take(rows.sources == names.index(one.source))
        display.say(
            f"{one.name}: {len(own):,} rows, word for word by {len(lexicon.phrases):,} phrases"
        )
        yield Rows(
            texts=[lexicon.translate(text) for text in own.texts],
            targets=own.targets,
            sources=np.full(len(own), number),
            languages=np.full(len(own), one.language),
        )


def _of_domains(
    config: RunConfig,
    sources: tuple[SourceConfig, ...],
    of_row: npt.NDArray[np.int64],
    linear: npt.NDArray[np.float32],
    dropped: str,
) -> npt.NDArray[np.float32] | None:
    """Of which domains each row is, [N, K], by its source; each has to have rows."""
    names = config.domains
    if not names:
        return None
    domains = np.array([[one.domain == name for name in names] for one in sources], "f4")[of_row]
    for name, rows in zip(names, domains.T @ linear, strict=True):
        if not rows:
            raise ConfigError(f"sources: domain={name!r} has no rows left{dropped}")
    return domains


def _check_classes(config: RunConfig, labels: tuple[str, ...], rows: Rows, dropped: str) -> None:
    """Of one class alone nothing can be told from another; and of what a linear model learns from
    there must be two as well."""
    learnt = np.array([source.linear > 0 for source in config.sources])[rows.sources]
    found = rows.targets[learnt].any(axis=0)
    if found.sum() < 2:
        only = [label for label, there in zip(labels, found, strict=True) if there]
        raise DataError(
            f"train: only rows of {only} are left to train on{dropped}; give more of the others"
        )


def _odd(
    labels: tuple[str, ...], sets: Sequence[tuple[str, Rows]], repeated: float
) -> Iterator[str]:
    """What a trainer should know of the data, the rows to train on first, before trusting what
    comes of it."""
    _, train = sets[0]
    if len(train) < FEW_ROWS:
        yield (
            f"{len(train):,} rows to train on; a model of fewer than {FEW_ROWS:,} is for trying "
            "out, not for use"
        )
    if repeated > MOST_REPEATED:
        yield (
            f"{repeated:.0%} of the rows repeat another or contradict it and were dropped; is the "
            "same export in there twice?"
        )
    for name, part in sets:
        counts = part.targets.sum(axis=0)
        if missing := [label for label, count in zip(labels, counts, strict=True) if not count]:
            yield f"{name} has no row of {missing}"
        share = counts.max() / len(part)
        if share > MOST_OF_ONE_CLASS:
            yield (
                f"{share:.0%} of {name} is {labels[counts.argmax()]!r}: to answer that always "
                "would be as accurate; look at macro-F1"
            )
    for name, part in sets[1:]:
        if len(part) < FEW_ROWS // 10:
            sure = 1.96 * (0.25 / len(part)) ** 0.5
            yield f"{name} has {len(part)} rows: its accuracy is known to ±{sure:.0%} only"


def _read_sources(
    config: RunConfig, base: Path, held_out: frozenset[str], display: Display
) -> tuple[tuple[str, ...], Rows, float, str]:
    """The labels, all labelled rows, each text once, the share dropped as repeated, and what
    was dropped in all, as messages say it."""
    parts, each, lost = [], [], Counter[str]()
    for source in config.sources:
        # Of several files each may well hold one class.
        least = 2 if len(config.sources) == 1 else 1
        rows, found, dropped = read_rows(source, config.labels, base, held_out, least)
        display.say(f"{source.name}: {len(rows):,} rows{_counts(dropped)}")
        lost.update(dropped)
        parts.append(rows)
        each.append(found)
    labels = config.labels or tuple(sorted({label for found in each for label in found}))
    parts = [rows.of_classes(found, labels) for rows, found in zip(parts, each, strict=True)]
    if np.any([part.targets.any(axis=0) for part in parts], axis=0).sum() < 2:
        raise DataError(f"sources: every row is of the same class of {list(labels)}{_counts(lost)}")
    # One source at a time conflicts with itself; between sources the first, most trusted, wins.
    rows, dropped = deduplicate(parts)
    lost.update(dropped)
    display.say(f"together: {len(rows):,} rows{_counts(dropped)}")
    # Of several sources one may well hold another; inside the only one repetition is a sign.
    repeated = 1 - len(rows) / len(parts[0]) if len(parts) == 1 else 0.0
    return labels, rows, repeated, _counts(lost)


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
