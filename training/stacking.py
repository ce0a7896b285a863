"""The layers and the linear part as one sum."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize

from model.classifier import TextClassifier
from model.config import ModelConfig
from training.config import RunConfig
from training.encoding import Encoded
from training.evaluation.calibration import uncalibrated
from training.evaluation.metrics import Labels, Logits, Weights, log_loss, softmax
from training.linear.classifier import LinearClassifier
from training.linear.families import beginnings
from training.loop.trainer import Ranks

LINEAR = "linear.pt"  # of a run folder, beside the checkpoint
ALIKE = 1e-3  # of the loss, what shares of one model that differ by 1 have to be worth


def with_linear_part(
    config: RunConfig, encoded: Encoded, network: TextClassifier, run: Path, where: Ranks
) -> TextClassifier:
    """The fitted network and a linear part, with the shares and the bias of their sum that suit the
    validation rows. What features say has a share in each domain and language: how far it may be
    trusted depends on how much was there to learn it from.

    Fitted one by one, because together the linear part, which learns faster, would leave the
    encoder only what no one can learn; and not to what a teacher labelled, because a linear teacher
    has nothing to tell a linear part.

    The run folder keeps the linear part. Its fit draws nothing: another run over the same rows,
    as another seed is, needs none where it finds this one's file in its own folder.
    """
    domains = max(1, len(config.domains))
    shape = network.config.model_copy(update={"ngrams": config.network.ngrams, "domains": domains})
    identity = _identity(encoded, shape, config.train.linear_strength)
    linear = LinearClassifier.kept(run / LINEAR, identity)
    if linear is None:
        linear = LinearClassifier.fit(
            encoded.linear,
            shape,
            config.train.linear_strength,
            encoded.domains,
            encoded.languages,
            beginnings(encoded.tokenizer.pieces),
        )
        linear.keep(run / LINEAR, identity)
    linear = linear.to(where.device)
    kinds = domains, linear.spoken.shape[1]  # [K, L]
    each = torch.eye(math.prod(kinds)).unflatten(1, kinds)
    pieces = [encoded.logits(linear.shared(one), where) for one in each]
    ((deep,), wide), bias = fit_sum(
        [[encoded.logits(network, where)], pieces], encoded.truth, encoded.weights
    )
    linear = linear.shared(torch.from_numpy(wide).unflatten(0, kinds))
    said = {f"linear.{name}": table for name, table in linear.part.state_dict().items()}
    both = TextClassifier(shape).to(where.device)
    both.load_state_dict(network.state_dict() | said)
    with torch.no_grad():
        both.head.weight.mul_(deep)
        both.head.bias.mul_(deep).add_(linear.bias).add_(torch.from_numpy(bias).to(where.device))
    return both


def _identity(encoded: Encoded, shape: ModelConfig, strength: float) -> str:
    """Tells one fit of a linear part from another, 16 hex digits."""
    rows, domains = encoded.linear, encoded.domains
    found = hashlib.sha256(f"{strength} {shape.ngrams} {shape.domains} {shape.ends}".encode())
    found.update("\0".join(encoded.tokenizer.pieces).encode())
    for of_rows in (rows.ids, rows.starts, rows.targets, encoded.languages, domains):
        found.update(b"" if of_rows is None else np.ascontiguousarray(of_rows).tobytes())
    return found.hexdigest()[:16]


def fit_sum(
    models: Sequence[Sequence[Logits]], labels: Labels, weights: Weights | None = None
) -> tuple[list[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """What several models' logits count in their sum, a share [P] for each of a model's pieces
    [P, N, C], none negative, and what is added to the sum, the bias [C], with the least negative
    log-likelihood of labels [N] (stacked generalisation, Wolpert 1992; Breiman 1996).

    Shares of a model's pieces differ only as far as the rows insist. Each model comes with a bias
    of its own, and their sum need not be a good one. A class that no row is of has nothing to fit a
    bias to and keeps 0. Where the rows do not say how sure to be, the sum is no surer than a mean
    of the models is.
    """
    stacked = np.concatenate(models)  # [P, N, C], those of all models
    number, _, classes = stacked.shape
    ends = np.cumsum([len(pieces) for pieces in models])

    def total(found: npt.NDArray[np.float64]) -> Logits:
        return np.asarray(np.tensordot(found[:number], stacked, axes=1) + found[number:])

    def loss(found: npt.NDArray[np.float64]) -> float:
        *shares, _ = np.split(found, ends)
        differ = sum(float(((one - one.mean()) ** 2).sum()) for one in shares)
        return log_loss(softmax(total(found)), labels, weights) + ALIKE * differ

    begin = np.concatenate([np.full(number, 1 / len(models)), np.zeros(classes)])
    seen = np.isin(np.arange(classes), labels)
    bounds = [(0.0, 20.0)] * number + [(-5.0, 5.0) if one else (0.0, 0.0) for one in seen]
    found = minimize(loss, begin, method="L-BFGS-B", bounds=bounds).x
    if uncalibrated(total(found), labels):
        found /= max(1.0, sum(float(one.mean()) for one in np.split(found, ends)[:-1]))
    *shares, bias = np.split(found, ends)
    return shares, bias
