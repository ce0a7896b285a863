import numpy as np
import pytest

from training.data.batches import Dataset
from training.data.rows import Rows
from training.evaluation.metrics import (
    calibration_error_by_chance,
    expected_calibration_error,
    margin,
    measure,
    measure_sets,
    predict_bundle,
    selective_accuracy,
)


def test_literal_measures():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]], np.float32)
    got = measure(probabilities, np.array([0, 0, 1, 1]))
    assert got["accuracy"] == 0.75
    assert got["confusion"] == [[2, 0], [1, 1]]
    assert got["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    # One row a bin: gaps 0.1, 0.4, 0.2 and 0.7.
    assert got["ece"] == pytest.approx(0.35, abs=1e-6)
    assert got["accuracy_at_80"] == pytest.approx(2 / 3)  # all but the 0.6, which was right
    assert got["rows"] == 4


def test_calibration_error_is_zero_where_confidence_is_accuracy():
    probabilities = np.array([[0.75, 0.25]] * 4, np.float32)
    assert expected_calibration_error(probabilities, np.array([0, 0, 0, 1])) == pytest.approx(0)


def test_calibration_error_by_chance_is_what_true_probabilities_show():
    generator = np.random.default_rng(1)
    positive = generator.random(500)
    probabilities = np.stack([1 - positive, positive], axis=1).astype(np.float32)
    seen = [
        expected_calibration_error(probabilities, (generator.random(500) < positive).astype(int))
        for _ in range(200)
    ]
    assert calibration_error_by_chance(probabilities) == pytest.approx(np.mean(seen), rel=0.05)
    many = np.tile(probabilities, (100, 1))
    assert calibration_error_by_chance(many) == pytest.approx(np.mean(seen) / 10, rel=0.1)


def test_a_bundle_is_measured_by_its_own_graph(bundle):
    texts = ["I hated every minute of this film", "Adorei cada minuto deste filme"]
    encodings = bundle.tokenizer.encode_batch(texts, offsets=False)
    probabilities = predict_bundle(bundle, Dataset.encode(encodings))
    assert probabilities.argmax(axis=1).tolist() == [0, 1]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


SURE = np.array([[0.9, 0.1], [0.45, 0.55], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]], np.float32)


@pytest.mark.parametrize(
    ("coverage", "accuracy"), [(1.0, 0.6), (0.8, 0.75), (0.6, 1.0), (0.2, 1.0), (0.01, 1.0)]
)
def test_what_it_is_surest_of_is_measured_alone(coverage, accuracy):
    labels = np.array([0, 0, 1, 1, 1])
    assert selective_accuracy(SURE, labels, coverage) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("accuracy", "rows", "half"),
    [(0.5, 100, 0.0962), (1.0, 23, 0.0716), (0.9, 1000, 0.0186)],  # by hand, Wilson's formula
)
def test_chance_moves_what_is_all_right_too(accuracy, rows, half):
    assert margin(accuracy, rows) == pytest.approx(half, abs=5e-5)


def test_each_language_is_measured_by_its_own_rows():
    rows = Rows(
        texts=list("abcd"),
        targets=np.eye(2, dtype=np.float32)[[0, 0, 1, 1]],
        sources=np.zeros(4, np.int64),
        languages=np.array(["en", "pt", "en", "pt"]),
    )
    said = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]], np.float32)
    metrics = measure_sets({"all": said}, {"all": rows})
    assert [metrics[name]["accuracy"] for name in ("all", "language en", "language pt")] == [
        0.5,
        1.0,
        0.0,
    ]
    assert metrics["language en"]["rows"] == 2
    assert metrics["language en"]["nll"] == pytest.approx(-(np.log(0.9) + np.log(0.7)) / 2)
