"""What a linear model makes of the same rows: the least that a Transformer has to beat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

RARE_LEAST = 1000  # rows from which on a word seen once is left out

# One-letter words count: "a", "e", "o" and "I" carry meaning in either language.
_WORD = r"(?u)\b\w+\b"


@dataclass(frozen=True, slots=True)
class LinearBaseline:
    """Logistic regression over tf-idf of words and word pairs, every class weighed alike."""

    pipeline: Pipeline
    classes: int

    @classmethod
    def fit(
        cls, texts: Sequence[str], targets: npt.NDArray[np.float32], strength: float = 10.0
    ) -> Self:
        """Learn from texts [N] and targets [N, C], a graded one as a weighed row of each class;
        `strength` is the inverse of the penalty (C)."""
        pipeline = make_pipeline(
            TfidfVectorizer(
                ngram_range=(1, 2),
                sublinear_tf=True,
                min_df=2 if len(texts) > RARE_LEAST else 1,
                token_pattern=_WORD,
                dtype=np.float32,
            ),
            LogisticRegression(C=strength, solver="newton-cg", tol=1e-3),
        )
        row, label = targets.nonzero()
        weights = targets[row, label]
        pipeline.fit(
            [texts[i] for i in row.tolist()], label, logisticregression__sample_weight=weights
        )
        return cls(pipeline, targets.shape[1])

    def probabilities(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Probabilities [N, C] of texts [N]."""
        probabilities = np.zeros((len(texts), self.classes), dtype=np.float32)
        probabilities[:, self.pipeline.classes_] = self.pipeline.predict_proba(texts)
        return probabilities
