"""How good a network is, on rows it has not seen."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from sklearn.metrics import confusion_matrix, f1_score
from torch import nn

from model.bundle import Bundle
from model.graph import extract
from training.data.batches import Dataset, collate, plan
from training.data.rows import Rows, concatenate

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]


@torch.inference_mode()
def predict(
    network: nn.Module, dataset: Dataset, device: torch.device, max_batch_tokens: int = 16_384
) -> Logits:
    """Logits [N, C] of every row, whole (no windows), in the rows' order."""
    training = network.training
    network.eval()
    logits = np.zeros_like(dataset.targets)
    for rows in plan(np.arange(len(dataset)), dataset.lengths, max_batch_tokens):
        input_ids, mask = collate(dataset, rows)
        logits[rows] = network(input_ids.to(device), mask.to(device)).float().cpu().numpy()
    network.train(training)
    return logits


def softmax(logits: Logits, temperature: float = 1.0) -> Logits:
    """Probabilities [N, C] of logits [N, C] at a temperature."""
    scaled = logits / temperature
    exponent = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exponent / exponent.sum(axis=1, keepdims=True)


def expected_calibration_error(probabilities: Logits, labels: Labels) -> float:
    """Mean gap between confidence and accuracy over 15 bins of equal width (Guo et al. 2017,
    equation 3)."""
    correct = probabilities.argmax(axis=1) == labels
    return float(_mean_gaps(correct, probabilities.max(axis=1)))


def calibration_error_by_chance(probabilities: Logits, draws: int = 200) -> float:
    """The calibration error to expect where every probability is right, over rows so many and as
    sure as these: few rows in a bin are never as often right as they say (Bröcker and Smith 2007).

    The mean over `draws` of which rows are right, always the same.
    """
    confidence = probabilities.max(axis=1)
    correct = np.random.default_rng(0).random((draws, len(confidence))) < confidence
    return float(_mean_gaps(correct, confidence).mean())


def _mean_gaps(
    correct: npt.NDArray[np.bool_], confidence: npt.NDArray[np.float32], bins: int = 15
) -> npt.NDArray[np.float64]:
    """Of correct [..., N]: the gaps of its bins, each by its share of the rows."""
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    of_bin = np.eye(bins)[np.digitize(confidence, edges, right=True)]  # [N, bins]
    return np.abs((correct - confidence) @ of_bin).sum(axis=-1) / len(confidence)


def selective_accuracy(probabilities: Logits, labels: Labels, coverage: float) -> float:
    """Accuracy on the share `coverage` of the rows that the model is surest of."""
    surest = np.argsort(-probabilities.max(axis=1), kind="stable")
    kept = surest[: max(1, round(coverage * len(labels)))]
    return float((probabilities[kept].argmax(axis=1) == labels[kept]).mean())


def margin(accuracy: float, rows: int) -> float:
    """How far chance moves an accuracy over so many rows: half of a 95% interval (Wilson 1927,
    which says something of few rows that are all right, too)."""
    z = 1.96
    spread = accuracy * (1 - accuracy) / rows + (z / (2 * rows)) ** 2
    return z / (1 + z * z / rows) * math.sqrt(spread)


def log_loss(probabilities: Logits, labels: Labels, weights: Weights | None) -> float:
    """Mean negative log-likelihood of labels [N] by probabilities [N, C], rows by their weights."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(np.average(-np.log(np.clip(own, 1e-12, None)), weights=weights))


def measure(probabilities: Logits, labels: Labels) -> dict[str, Any]:
    """Accuracy, of all rows and of the 80% it is surest of, macro-F1, expected calibration error,
    that which chance alone would show, negative log-likelihood, confusion [C, C] (rows: true class)
    and the number of rows."""
    predicted = probabilities.argmax(axis=1)
    classes = probabilities.shape[1]
    return {
        "rows": len(labels),
        "accuracy": float((predicted == labels).mean()),
        "accuracy_at_80": selective_accuracy(probabilities, labels, 0.8),
        "macro_f1": float(
            f1_score(labels, predicted, labels=range(classes), average="macro", zero_division=0)
        ),
        "ece": expected_calibration_error(probabilities, labels),
        "ece_by_chance": calibration_error_by_chance(probabilities),
        # Rounding can take a sure row's share a little beyond 1.
        "nll": max(0.0, log_loss(probabilities, labels, None)),
        "confusion": confusion_matrix(labels, predicted, labels=range(classes)).tolist(),
    }


def measure_sets(
    probabilities: Mapping[str, Logits], sets: Mapping[str, Rows]
) -> dict[str, dict[str, Any]]:
    """`measure` of every set by name, then of every language as "language pt"."""
    metrics = {name: measure(probabilities[name], rows.labels) for name, rows in sets.items()}
    rows = concatenate(list(sets.values()))
    everything = np.concatenate([probabilities[name] for name in sets])
    for language in sorted(set(rows.languages)):
        at = rows.languages == language
        metrics[f"language {language}"] = measure(everything[at], rows.labels[at])
    return metrics


class Graph:
    """A bundle's own graph on the CPU, for each choice of outputs loaded once."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._sessions: dict[tuple[str, ...], onnxruntime.InferenceSession] = {}

    def _session(self, outputs: tuple[str, ...]) -> onnxruntime.InferenceSession:
        if outputs not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            part = extract(self._bundle.graph, outputs).SerializeToString()
            providers = ["CPUExecutionProvider"]
            self._sessions[outputs] = onnxruntime.InferenceSession(part, options, providers)
        return self._sessions[outputs]

    def run(
        self, dataset: Dataset, outputs: Sequence[str], max_batch_tokens: int = 16_384
    ) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, Any]]]:
        """Batches of like lengths: which rows [B], and their outputs by name, padding included."""
        session = self._session(tuple(outputs))
        for rows in plan(np.arange(len(dataset)), dataset.lengths, max_batch_tokens):
            input_ids, mask = collate(dataset, rows)
            feeds = {"input_ids": input_ids.numpy(), "attention_mask": mask.numpy()}
            yield rows, dict(zip(outputs, session.run(outputs, feeds), strict=True))

    def predict(
        self, dataset: Dataset, output: Literal["probabilities", "logits"] = "probabilities"
    ) -> Logits:
        """Calibrated probabilities, or logits, [N, C] of every row."""
        found = np.zeros((len(dataset), self._bundle.manifest.config.classes), np.float32)
        for rows, values in self.run(dataset, [output]):
            found[rows] = values[output]
        return found


def predict_bundle(
    bundle: Bundle,
    dataset: Dataset,
    output: Literal["probabilities", "logits"] = "probabilities",
) -> Logits:
    """`Graph.predict` for who asks a bundle once."""
    return Graph(bundle).predict(dataset, output)
