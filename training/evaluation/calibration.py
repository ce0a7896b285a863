"""What makes a confidence mean something: the temperature, and where to say "not sure"."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from training.evaluation.metrics import Labels, Logits, Weights, log_loss, softmax

FEWEST_ROWS = 50  # of fewer a temperature is chance
COVERAGE = 0.8  # share of the validation rows that the abstention threshold lets through


def alike(sizes: Sequence[int]) -> Weights:
    """What each row of several sets counts so that every set counts the same, [N]; mean 1."""
    return np.repeat([sum(sizes) / len(sizes) / size for size in sizes], sizes)


def uncalibrated(logits: Logits, labels: Labels) -> str | None:
    """What keeps rows, by their logits [N, C] and labels [N], from saying how sure to be; None
    where they do say it. Where all are right, no answer is too sure, and where all are wrong, none
    unsure enough."""
    if len(labels) < FEWEST_ROWS:
        return f"{len(labels)} rows; a temperature takes {FEWEST_ROWS} at least"
    right = logits.argmax(axis=1) == labels
    if right.any() and not right.all():
        return None
    answered = "right" if right.all() else "wrong"
    return f"all {len(labels):,} rows are answered {answered}; that does not say how sure to be"


def fit_temperature(logits: Logits, labels: Labels, weights: Weights | None = None) -> float:
    """The temperature with the least negative log-likelihood (Guo et al. 2017, section 4.2).

    logits [N, C] and labels [N] of the validation rows, and what each counts. The search is over
    its logarithm, from 1/20 to 20; the order of the classes never changes.
    """

    def loss(log_temperature: float) -> float:
        return log_loss(softmax(logits, float(np.exp(log_temperature))), labels, weights)

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


def abstention_threshold(probabilities: Logits, coverage: float = COVERAGE) -> float:
    """The confidence that a share `coverage` of the rows [N, C] reaches: below it, a model that may
    abstain does (selective classification, Geifman and El-Yaniv 2017)."""
    return float(np.quantile(probabilities.max(axis=1), 1 - coverage))
