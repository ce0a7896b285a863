"""What a linear model makes of the same rows: the least that a Transformer has to beat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer

from training.evaluation.metrics import softmax
from training.linear.regression import fit_logistic

RARE_LEAST = 1000  # rows from which on a word seen once is left out

# One-letter words count: "a", "e", "o" and "I" carry meaning in either language.
_WORD = r"(?u)\b\w+\b"


class NoWords(ValueError):
    """The texts have no words in common, as where a language puts no spaces between them."""


@dataclass(frozen=True, slots=True)
class LinearBaseline:
    """Logistic regression over tf-idf of words and word pairs, every class weighed alike.

    `coefficients` [C, F] and `bias` [C] of the vectorizer's F features.
    """

    vectorizer: TfidfVectorizer
    coefficients: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]

    @classmethod
    def fit(
        cls, texts: Sequence[str], targets: npt.NDArray[np.float32], strength: float = 10.0
    ) -> Self:
        """Learn from texts [N] and targets [N, C]; `strength` is the inverse of the penalty (C).

        Raises `NoWords` where there is nothing to learn from.
        """
        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2),
            sublinear_tf=True,
            min_df=2 if len(texts) > RARE_LEAST else 1,
            token_pattern=_WORD,
            dtype=np.float32,
        )
        try:
            features = vectorizer.fit_transform(texts)
        except ValueError as error:  # the library has no other name for it
            raise NoWords("the texts have no words in common") from error
        (coefficients,), bias = fit_logistic(features, targets, strength)
        return cls(vectorizer, coefficients, bias)

    def probabilities(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Probabilities [N, C] of texts [N]."""
        if not len(texts):
            return np.zeros((0, len(self.bias)), np.float32)
        logits = self.vectorizer.transform(texts) @ self.coefficients.T + self.bias
        return softmax(logits).astype(np.float32)
