"""Logistic regression over sparse features and graded targets, to its optimum."""

import numpy as np
import numpy.typing as npt
from scipy.linalg import helmert
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import log_softmax

ABSENT = -30.0  # logit of a class without rows: none of the probability is left for it
# Of the slope where the search begins, what may be left where it ends. Most features are in few
# rows, and what they say is found last: with more left, single cases depend on where it ended.
LEFT = 1e-6

Array = npt.NDArray[np.float64]


def fit_logistic(
    features: csr_array,
    targets: npt.NDArray[np.float32],
    strength: float,
    copies: npt.NDArray[np.float32] | None = None,
) -> tuple[Array, Array]:
    """The coefficients [G, C, F] and bias [C] with the least penalised loss.

    features [N, F]; targets [N, C], a graded one counting as a weighed row of each class;
    `strength` is the inverse of the penalty (C), which of two classes is on their difference.
    Every feature is there G times, in each row times the row's `copies` [N, G]; once if there are
    none. A class without rows has no coefficients and a bias that leaves it no probability; of
    fewer than two with rows there is nothing to tell (`ValueError`).

    The search is Newton's in a trust region (Lin, Weng and Keerthi 2008). Neither copies nor
    weighed rows are made: they would take several times the memory of the features.
    """
    seen = targets.sum(axis=0) > 0
    if seen.sum() < 2:
        raise ValueError(f"targets: {seen.sum()} of {len(seen)} classes have rows, not 2 or more")
    if copies is None:
        copies = np.ones((len(targets), 1), np.float32)
    loss = _Loss(features, copies, targets[:, seen], strength)
    weights, bias = loss.apart(loss.least())
    coefficients = np.zeros((copies.shape[1], len(seen), features.shape[1]))
    coefficients[:, seen] = (weights @ loss.across).swapaxes(1, 2)
    every = np.full(len(seen), ABSENT)
    every[seen] = bias @ loss.across
    return coefficients, every


class _Loss:
    """The penalised loss of unknowns [U], its slope and its curvature.

    The unknowns are weights [G, F, M] and a bias [M]. Over the C classes weights sum to 0 at the
    optimum, so there are M = C - 1 of each, along the rows of `across` [M, C], which are at right
    angles and have length 1.

    Rows with the same copies are taken together, and what a feature says in all its copies is added
    up before it meets them: each pass reads the features once.
    """

    def __init__(
        self,
        features: csr_array,
        copies: npt.NDArray[np.float32],
        targets: npt.NDArray[np.float32],
        strength: float,
    ) -> None:
        self.copies, of_row = np.unique(  # [P, G], [N]
            copies.astype(np.float64), axis=0, return_inverse=True
        )
        order = np.argsort(of_row, kind="stable")
        self.ends = np.cumsum(np.bincount(of_row))[:-1]
        self.parts = [
            features[rows].astype(np.float64, copy=False) for rows in np.split(order, self.ends)
        ]
        self.targets = targets[order].astype(np.float64)
        self.counts = self.targets.sum(axis=1, keepdims=True)  # [N, 1]
        classes = targets.shape[1]
        self.width = features.shape[1]
        self.penalty = (2 if classes == 2 else 1) / strength
        self.across = helmert(classes)
        self.size = (self.copies.shape[1] * self.width + 1) * (classes - 1)  # U
        self.at, self.logs = np.empty(0), np.empty(0)

    def least(self) -> Array:
        """The unknowns with the least loss."""
        begin = np.zeros(self.size)
        slope = float(np.linalg.norm(self(begin)[1]))
        if not slope:
            return begin
        radii = {"initial_trust_radius": slope, "max_trust_radius": np.inf}
        return minimize(
            self,
            begin,
            jac=True,
            hessp=self.curved,
            method="trust-ncg",
            options={"gtol": LEFT * slope, **radii},
        ).x

    def __call__(self, unknowns: Array) -> tuple[float, Array]:
        """The loss and its slope [U]."""
        logs = self._logs(unknowns)
        weights, _ = self.apart(unknowns)
        loss = self.penalty / 2 * float((weights**2).sum()) - float((self.targets * logs).sum())
        return loss, self._slope(np.exp(logs) * self.counts - self.targets, weights)

    def curved(self, unknowns: Array, direction: Array) -> Array:
        """The change of the slope [U] along a direction [U]."""
        likely = np.exp(self._logs(unknowns))
        weights, bias = self.apart(direction)
        along = self._logits(weights, bias)
        along -= (likely * along).sum(axis=1, keepdims=True)
        return self._slope(along * likely * self.counts, weights)

    def apart(self, unknowns: Array) -> tuple[Array, Array]:
        """Weights [G, F, M] and bias [M] of unknowns."""
        axes = len(self.across)
        weights, bias = np.split(unknowns, [self.size - axes])
        return weights.reshape(self.copies.shape[1], self.width, axes), bias

    def _logs(self, unknowns: Array) -> Array:
        """Log-probabilities [N, C] of unknowns [U], kept for the directions from there."""
        if not np.array_equal(unknowns, self.at):
            self.at = unknowns.copy()
            self.logs = log_softmax(self._logits(*self.apart(unknowns)), axis=1)
        return self.logs

    def _logits(self, weights: Array, bias: Array) -> Array:
        """[N, C] of weights [G, F, M] and bias [M]."""
        of_parts = np.tensordot(self.copies, weights, axes=1)  # [P, F, M]
        said = [part @ own for part, own in zip(self.parts, of_parts, strict=True)]
        return (np.concatenate(said) + bias) @ self.across

    def _slope(self, of_logits: Array, weights: Array) -> Array:
        """Of what [N, C] of the logits is of the unknowns [U], and of what the penalty adds."""
        along = of_logits @ self.across.T  # [N, M]
        of_parts = [
            part.T @ rows for part, rows in zip(self.parts, np.split(along, self.ends), strict=True)
        ]
        of_weights = np.tensordot(self.copies.T, np.stack(of_parts), axes=1)  # [G, F, M]
        of_weights += self.penalty * weights
        return np.concatenate([of_weights.ravel(), along.sum(axis=0)])
