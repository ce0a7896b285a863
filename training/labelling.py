"""What bundles say of texts that nobody has labelled, as a file that `fit` reads."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

import numpy as np

from model.bundle import Bundle
from training.config import ConfigError
from training.data.batches import Dataset
from training.data.formats import DataError
from training.data.sources import Unit
from training.evaluation.metrics import Graph
from training.files import replacing
from training.progress import Display
from training.teacher import Shares, Teacher

SUFFIX = ".jsonl.gz"  # of the file; each line has text and label
# Texts, so that those of a batch are about as long as one another.
AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Bundles as one model: the mean of their calibrated probabilities (deep ensembles,
    Lakshminarayanan, Pritzel and Blundell 2017, section 2.4)."""

    bundles: tuple[Bundle, ...]
    graphs: tuple[Graph, ...]

    @classmethod
    def of(cls, bundles: Sequence[Bundle]) -> Self:
        """Raises `ConfigError` where bundles tell other classes apart than the first."""
        first, *others = bundles
        for one in others:
            if one.manifest.labels != first.manifest.labels:
                raise ConfigError(
                    f"{one.path}: labels={list(one.manifest.labels)}, and {first.path} has "
                    f"{list(first.manifest.labels)}"
                )
        return cls(tuple(bundles), tuple(map(Graph, bundles)))

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""
        return self.bundles[0].manifest.labels

    def probabilities(self, texts: Sequence[str]) -> Shares:
        """Probabilities [N, C] of texts [N]."""
        said = []
        for bundle, graph in zip(self.bundles, self.graphs, strict=True):
            encodings = bundle.tokenizer.encode_batch(texts, offsets=False)
            said.append(graph.predict(Dataset.encode(encodings)))
        return np.mean(said, axis=0)


def label(
    ensemble: Ensemble,
    texts: Sequence[str],
    unit: Unit,
    out: Path,
    display: Display,
) -> None:
    """Write into `out` each text, or each sentence under its text's word and its own, and the share
    of each class in its label (knowledge distillation, Hinton, Vinyals and Dean 2015). What was
    there stays until all that is new is there.

    Raises `ConfigError` where `out` cannot be, `DataError` where nothing is there to label.
    """
    if not out.name.endswith(SUFFIX):
        raise ConfigError(f"--out {out}: the name has to end in {SUFFIX}")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    display.say(f"{len(texts):,} texts for {len(ensemble.bundles)} bundle(s) to label")
    try:
        with replacing(out) as fresh:
            with gzip.open(fresh, "wt", encoding="utf-8") as file:
                count = _write_labelled(ensemble, texts, unit, file, display)
            if not count:
                raise DataError(f"--texts: {len(texts)} texts have nothing to label, --unit {unit}")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}") from error
    display.say(f"wrote {out}, {count:,} rows")


def _write_labelled(
    ensemble: Ensemble, texts: Sequence[str], unit: Unit, file: TextIO, display: Display
) -> int:
    """How many rows were written."""
    teacher, count = Teacher(ensemble), 0
    with display.texts("labelling", len(texts)) as advance:
        for start in range(0, len(texts), AT_ONCE):
            some = texts[start : start + AT_ONCE]
            rows, shares = teacher.label_units(unit, some)
            for text, of_text in zip(rows, shares.astype(float).round(6).tolist(), strict=True):
                by_class = dict(zip(ensemble.labels, of_text, strict=True))
                row = {"text": text, "label": by_class}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += len(rows)
            advance(len(some))
    return count
