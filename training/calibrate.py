"""What makes a confidence mean something: the temperature, and where to say "not sure"."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar

from training.evaluate import Labels, Logits, softmax

COVERAGE = 0.8  # share of the validation rows that the abstention threshold lets through


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """The temperature with the least negative log-likelihood (Guo et al. 2017, section 4.2).

    logits [N, C] and labels [N] of the validation rows. The search is over its logarithm, from
    1/20 to 20; the order of the classes never changes.
    """

    def loss(log_temperature: float) -> float:
        own = softmax(logits, float(np.exp(log_temperature)))[np.arange(len(labels)), labels]
        return float(-np.log(np.clip(own, 1e-12, None)).mean())

    bound = float(np.log(20))
    return float(np.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))


def fit_shares(parts: Sequence[Logits], labels: Labels) -> npt.NDArray[np.float64]:
    """What each of several models' logits [N, C] counts in their sum: the shares, none negative,
    with the least negative log-likelihood (stacked generalisation, Wolpert 1992; Breiman 1996)."""

    def loss(shares: npt.NDArray[np.float64]) -> float:
        total = sum(share * logits for share, logits in zip(shares, parts, strict=True))
        own = softmax(np.asarray(total))[np.arange(len(labels)), labels]
        return float(-np.log(np.clip(own, 1e-12, None)).mean())

    begin = np.full(len(parts), 1 / len(parts))
    found = minimize(loss, begin, method="L-BFGS-B", bounds=[(0, 20)] * len(parts))
    return np.asarray(found.x)


def abstention_threshold(probabilities: Logits, coverage: float = COVERAGE) -> float:
    """The confidence that a share `coverage` of the rows [N, C] reaches: below it, a model that may
    abstain does (selective classification, Geifman and El-Yaniv 2017)."""
    return float(np.quantile(probabilities.max(axis=1), 1 - coverage))
