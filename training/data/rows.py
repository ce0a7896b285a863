"""Labelled texts: known by their key, each once, left out or divided by it."""

import dataclasses
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

KEY_MIN_WORDS = 4  # shorter texts are stock phrases; they coincide without leaking

# The standard library's \w: lists of keys are made with it, and it leaves out combining marks.
_NOT_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled texts, column by column: texts [N], targets [N, C] (each class's share of the label,
    one of them 1 unless the label is graded), sources [N] (index of the source among those read
    together), languages [N], and `wholes` [N], the key of the text that a row is a part of, empty
    where it is a text by itself."""

    texts: list[str]
    targets: npt.NDArray[np.float32]
    sources: npt.NDArray[np.int64]
    languages: npt.NDArray[np.str_]
    wholes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.wholes:
            object.__setattr__(self, "wholes", [""] * len(self.texts))

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class with the largest share, [N]."""
        return self.targets.argmax(axis=1)

    def of_classes(self, found: tuple[str, ...], labels: tuple[str, ...]) -> "Rows":
        """The same rows, their targets in the order of `labels`, among which are all of `found`,
        which they are of."""
        if found == labels:
            return self
        targets = np.zeros((len(self), len(labels)), dtype=np.float32)
        targets[:, [labels.index(label) for label in found]] = self.targets
        return dataclasses.replace(self, targets=targets)

    def take(self, at: npt.NDArray[Any]) -> "Rows":
        """The rows at these indices, or where this mask is True."""
        at = np.flatnonzero(at) if at.dtype == bool else at
        texts = [self.texts[i] for i in at]
        wholes = [self.wholes[i] for i in at]
        return Rows(texts, self.targets[at], self.sources[at], self.languages[at], wholes)


def row_key(text: str) -> str:
    """What a text is recognised by whatever its case, spacing and punctuation: 16 hex digits.

    A text of nothing but symbols is recognised by them.
    """
    folded = unicodedata.normalize("NFKC", text).lower().replace("<br />", " ")
    letters = _NOT_WORD.sub("", folded) or "".join(folded.split())
    return hashlib.sha1(letters.encode()).hexdigest()[:16]


def deduplicate(parts: Sequence[Rows]) -> tuple[Rows, dict[str, int]]:
    """Rows of all parts, numbered by part, each text once.

    Inside a part a text with two labels is dropped; of a text in two parts the first is kept.
    """
    dropped: Counter[str] = Counter()
    taken: set[str] = set()
    kept: list[Rows] = []
    for number, part in enumerate(parts):
        labels = part.labels
        keys = [row_key(text) for text in part.texts]
        first: dict[str, int] = {}
        conflicting: set[str] = set()
        for i, key in enumerate(keys):
            if key not in first:
                first[key] = i
            elif labels[first[key]] != labels[i]:
                conflicting.add(key)
        dropped["contradictory"] += sum(key in conflicting for key in keys)
        chosen = [i for key, i in first.items() if key not in conflicting and key not in taken]
        taken |= first.keys()
        one = part.take(np.array(chosen, dtype=np.int64))
        kept.append(dataclasses.replace(one, sources=np.full(len(one), number)))
    rows = concatenate(kept)
    dropped["duplicate"] = sum(map(len, parts)) - len(rows) - dropped["contradictory"]
    return rows, dict(dropped)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """All rows of all parts, in order."""
    return Rows(
        texts=[text for part in parts for text in part.texts],
        targets=np.concatenate([part.targets for part in parts]),
        sources=np.concatenate([part.sources for part in parts]),
        languages=np.concatenate([part.languages for part in parts]),
        wholes=[whole for part in parts for whole in part.wholes],
    )


def excluded(text: str, keys: frozenset[str]) -> bool:
    """Is the text among `keys`? Short texts never are."""
    return len(text.split()) >= KEY_MIN_WORDS and row_key(text) in keys


def split(rows: Rows, validation: float, test: float) -> tuple[Rows, Rows, Rows]:
    """Train, validation and test by a hash of the text: it never changes sides, and what is made of
    it is on its side."""
    keys = (whole or row_key(text) for text, whole in zip(rows.texts, rows.wholes, strict=True))
    place = np.array([int(key, 16) / 16**16 for key in keys])
    in_test = place < test
    in_validation = ~in_test & (place < test + validation)
    return rows.take(~in_test & ~in_validation), rows.take(in_validation), rows.take(in_test)
