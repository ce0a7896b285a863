"""Logistic regression over sparse features and graded targets, to its optimum."""

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression

ABSENT = -30.0  # logit of a class without rows: none of the probability is left for it


def fit_logistic(
    features: csr_array,
    targets: npt.NDArray[np.float32],
    strength: float,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The coefficients [C, F] and bias [C] with the least penalised loss.

    features [N, F]; targets [N, C], a graded one counting as a weighed row of each class;
    `strength` is the inverse of the penalty (C). A class without rows has no coefficients and a
    bias that leaves it no probability.
    """
    row, label = targets.nonzero()
    # The slope that is let pass is a mean over rows, and most features are in few: over a million
    # rows the library's 1e-4 leaves a point of accuracy to chance, and 1e-5 what single cases say.
    # L-BFGS stops earlier still. In single precision the search for a step fails before that.
    found = LogisticRegression(C=strength, solver="newton-cg", tol=1e-6, max_iter=1000)
    found.fit(
        features[row].astype(np.float64, copy=False), label, sample_weight=targets[row, label]
    )
    coefficients, bias = found.coef_, found.intercept_
    if len(found.classes_) == 2:  # of two classes the library gives the difference
        coefficients, bias = (np.concatenate([-one, one]) / 2 for one in (coefficients, bias))
    classes, width = targets.shape[1], features.shape[1]
    every = np.zeros((classes, width)), np.full(classes, ABSENT)
    for whole, part in zip(every, (coefficients, bias), strict=True):
        whole[found.classes_] = part
    return every
