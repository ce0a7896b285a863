"""What trusted rows, or a model that has learnt from them, say of other texts (self-training,
Yarowsky 1995)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from training.data.rows import Rows
from training.data.sources import Unit, sentences
from training.linear.baseline import LinearBaseline

# How often a sentence of a review is of the review's opinion: found on SST and IMDb.
AGREES = 0.8

Shares = npt.NDArray[np.float32]  # [N, C], each row sums to 1


class Model(Protocol):
    """Who tells."""

    def probabilities(self, texts: Sequence[str]) -> Shares:
        """Of each class, [N, C] of texts [N]."""
        ...


@dataclass(frozen=True, slots=True)
class Teacher:
    """Tells of texts and of sentences in their text."""

    model: Model

    @classmethod
    def of(cls, rows: Rows) -> Self:
        """A linear model of these rows."""
        return cls(LinearBaseline.fit(rows.texts, rows.targets))

    def label(self, texts: Sequence[str]) -> Shares:
        """The share of each class in each text's label."""
        return self.model.probabilities(texts)

    def label_units(self, unit: Unit, texts: Sequence[str]) -> tuple[list[str], Shares]:
        """All texts, or all their sentences, each under its label."""
        if unit == "sentences":
            return self.label_sentences(texts)
        return list(texts), self.label(texts)

    def label_sentences(self, texts: Sequence[str]) -> tuple[list[str], Shares]:
        """All sentences of all texts, each under what it and its text say."""
        pieces = [sentences(text) for text in texts]
        of_text = np.repeat(self.label(texts), [len(one) for one in pieces], axis=0)
        others = (1 - of_text) / (of_text.shape[1] - 1)
        flat = [piece for one in pieces for piece in one]
        return flat, self.refine(flat, AGREES * of_text + (1 - AGREES) * others)

    def refine(self, texts: Sequence[str], shares: Shares) -> Shares:
        """What is known and what the model says, combined as if the two were independent given the
        class: their product (a product of experts, Hinton 2002)."""
        both = shares * self.label(texts)
        return both / both.sum(axis=1, keepdims=True)
