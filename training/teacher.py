"""What trusted rows say of other texts (self-training, Yarowsky 1995)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from training.baseline import LinearBaseline
from training.rows import Rows
from training.sources import sentences

# How often a sentence of a review is of the review's opinion: found on SST and IMDb.
AGREES = 0.8

Shares = npt.NDArray[np.float32]  # [N, C], each row sums to 1


@dataclass(frozen=True, slots=True)
class Teacher:
    """A linear model of trusted rows; tells of texts and of sentences in their text."""

    model: LinearBaseline

    @classmethod
    def of(cls, rows: Rows) -> Self:
        """Learn from these rows."""
        return cls(LinearBaseline.fit(rows.texts, rows.targets))

    def label(self, texts: Sequence[str]) -> Shares:
        """The share of each class in each text's label."""
        return self.model.probabilities(texts)

    def label_sentences(self, texts: Sequence[str]) -> tuple[list[str], Shares]:
        """All sentences of all texts, each under what it and its text say."""
        pieces = [sentences(text) for text in texts]
        of_text = np.repeat(self.label(texts), [len(one) for one in pieces], axis=0)
        others = (1 - of_text) / (of_text.shape[1] - 1)
        flat = [piece for one in pieces for piece in one]
        return flat, self.refine(flat, AGREES * of_text + (1 - AGREES) * others)

    def refine(self, texts: Sequence[str], shares: Shares) -> Shares:
        """Both words at once: the product of what is known and what the model says, as if the two
        were independent given the class (a product of experts, Hinton 2002)."""
        both = shares * self.label(texts)
        return both / both.sum(axis=1, keepdims=True)
