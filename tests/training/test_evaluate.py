import numpy as np
import pytest

from training.batches import Dataset
from training.calibrate import fit_temperature
from training.evaluate import expected_calibration_error, measure, predict_bundle, softmax


def test_literal_measures():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]], np.float32)
    got = measure(probabilities, np.array([0, 0, 1, 1]))
    assert got["accuracy"] == 0.75
    assert got["confusion"] == [[2, 0], [1, 1]]
    assert got["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    # One row a bin: gaps 0.1, 0.4, 0.2 and 0.7.
    assert got["ece"] == pytest.approx(0.35, abs=1e-6)
    assert got["rows"] == 4


def test_calibration_error_is_zero_where_confidence_is_accuracy():
    probabilities = np.array([[0.75, 0.25]] * 4, np.float32)
    assert expected_calibration_error(probabilities, np.array([0, 0, 0, 1])) == pytest.approx(0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (20_000, 3)).astype(np.float32)
    truth = softmax(logits, temperature)
    labels = (generator.random((20_000, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_a_bundle_is_measured_by_its_own_graph(bundle):
    texts = ["I hated every minute of this film", "Adorei cada minuto deste filme"]
    encodings = bundle.tokenizer.encode_batch(texts, offsets=False)
    probabilities = predict_bundle(bundle, Dataset.encode(encodings, np.array([0, 1])))
    assert probabilities.argmax(axis=1).tolist() == [0, 1]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
