"""What makes a confidence mean something: the temperature, and where to say "not sure"."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar

from training.evaluate import Labels, Logits, softmax

Weights = npt.NDArray[np.float64]

ALIKE = 1e-3  # of the loss, what shares of one model that differ by 1 have to be worth
COVERAGE = 0.8  # share of the validation rows that the abstention threshold lets through


def alike(sizes: Sequence[int]) -> Weights:
    """What each row of several sets counts so that every set counts the same, [N]; mean 1."""
    return np.repeat([sum(sizes) / len(sizes) / size for size in sizes], sizes)


def fit_temperature(logits: Logits, labels: Labels, weights: Weights | None = None) -> float:
    """The temperature with the least negative log-likelihood (Guo et al. 2017, section 4.2).

    logits [N, C] and labels [N] of the validation rows, and what each counts. The search is over
    its logarithm, from 1/20 to 20; the order of the classes never changes.
    """

    def loss(log_temperature: float) -> float:
        return _loss(softmax(logits, float(np.exp(log_temperature))), labels, weights)

    bound = float(np.log(20))
    return float(np.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))


def cross_calibrated(logits: Logits, labels: Labels, folds: int = 5) -> Logits:
    """Probabilities [N, C] of each row at the temperature that suits the other folds' rows: what a
    temperature is worth on rows that had no say in it."""
    of_fold = np.arange(len(labels)) % folds
    probabilities = np.empty_like(logits)
    for fold in range(folds):
        own = of_fold == fold
        probabilities[own] = softmax(logits[own], fit_temperature(logits[~own], labels[~own]))
    return probabilities


def fit_sum(
    models: Sequence[Sequence[Logits]], labels: Labels, weights: Weights | None = None
) -> tuple[list[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """What several models' logits count in their sum, a share [P] for each of a model's pieces
    [P, N, C], none negative, and what is added to the sum, the bias [C], with the least negative
    log-likelihood of labels [N] (stacked generalisation, Wolpert 1992; Breiman 1996).

    Shares of a model's pieces differ only as far as the rows insist. Each model comes with a bias
    of its own, and their sum need not be a good one. A class that no row is of has nothing to fit a
    bias to and keeps 0.
    """
    stacked = np.concatenate(models)  # [P, N, C], those of all models
    number, _, classes = stacked.shape
    ends = np.cumsum([len(pieces) for pieces in models])

    def loss(found: npt.NDArray[np.float64]) -> float:
        *shares, bias = np.split(found, ends)
        total = np.tensordot(found[:number], stacked, axes=1) + bias
        differ = sum(float(((one - one.mean()) ** 2).sum()) for one in shares)
        return _loss(softmax(np.asarray(total)), labels, weights) + ALIKE * differ

    begin = np.concatenate([np.full(number, 1 / len(models)), np.zeros(classes)])
    seen = np.isin(np.arange(classes), labels)
    bounds = [(0.0, 20.0)] * number + [(-5.0, 5.0) if one else (0.0, 0.0) for one in seen]
    *shares, bias = np.split(minimize(loss, begin, method="L-BFGS-B", bounds=bounds).x, ends)
    return shares, bias


def abstention_threshold(probabilities: Logits, coverage: float = COVERAGE) -> float:
    """The confidence that a share `coverage` of the rows [N, C] reaches: below it, a model that may
    abstain does (selective classification, Geifman and El-Yaniv 2017)."""
    return float(np.quantile(probabilities.max(axis=1), 1 - coverage))


def _loss(probabilities: Logits, labels: Labels, weights: Weights | None) -> float:
    own = probabilities[np.arange(len(labels)), labels]
    return float(np.average(-np.log(np.clip(own, 1e-12, None)), weights=weights))
