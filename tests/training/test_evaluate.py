import numpy as np
import pytest

from training.batches import Dataset
from training.calibrate import (
    abstention_threshold,
    alike,
    cross_calibrated,
    fit_sum,
    fit_temperature,
)
from training.evaluate import (
    calibration_error_by_chance,
    expected_calibration_error,
    measure,
    predict_bundle,
    selective_accuracy,
    softmax,
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


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (20_000, 3)).astype(np.float32)
    truth = softmax(logits, temperature)
    labels = (generator.random((20_000, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_no_row_has_a_say_in_its_own_temperature():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (50, 2)).astype(np.float32)
    labels = np.where(generator.random(50) < 0.8, logits.argmax(axis=1), 0)
    probabilities = cross_calibrated(logits, labels, folds=5)
    own = np.arange(50) % 5 == 2
    expected = softmax(logits[own], fit_temperature(logits[~own], labels[~own]))
    np.testing.assert_array_equal(probabilities[own], expected)
    turned = np.where(own, 1 - labels, labels)
    others = cross_calibrated(logits, turned, folds=5)
    np.testing.assert_array_equal(others[own], probabilities[own])
    assert (others[~own] != probabilities[~own]).any(axis=1).all()


def test_a_small_set_counts_as_much_as_a_large_one():
    assert alike([1, 3]).tolist() == [2.0, *[2 / 3] * 3]
    sure, unsure = np.array([[2.0, 0.0]], np.float32), np.array([[2.0, 0.0]] * 3, np.float32)
    labels = np.array([0, 1, 1, 0])
    logits = np.concatenate([sure, unsure])
    # Half the weight is on a right row, a third of the rest is right: two thirds in all.
    temperature = fit_temperature(logits, labels, alike([1, 3]))
    assert softmax(logits, temperature)[0, 0] == pytest.approx(2 / 3, abs=1e-3)


def test_each_part_of_a_sum_gets_the_share_that_it_earns():
    generator = np.random.default_rng(0)
    good, useless = generator.normal(0, 2, (2, 20_000, 2)).astype(np.float32)
    truth = softmax(good, 0.5)
    labels = (generator.random(20_000) < truth[:, 1]).astype(np.int64)
    for parts, shares, within in (
        ([good, useless], [2, 0], 0.1),
        ([good / 2, -good], [4, 0], 0.2),
        ([good + useless, good - useless], [1, 1], 0.1),
    ):
        found, _ = fit_sum([[part] for part in parts], labels)
        np.testing.assert_allclose(np.concatenate(found), shares, atol=within)


def test_pieces_of_a_model_count_apart_as_far_as_rows_say_so():
    generator = np.random.default_rng(0)
    good = generator.normal(0, 2, (20_000, 2)).astype(np.float32)
    here = (np.arange(20_000) < 10_000)[:, None]
    truth = softmax(np.where(here, good, good / 2))
    labels = (generator.random(20_000) < truth[:, 1]).astype(np.int64)
    never = np.zeros_like(good)
    (shares,), _ = fit_sum([[good * here, good * ~here, never]], labels)
    assert shares[:2] == pytest.approx([1, 0.5], abs=0.05)
    assert shares[2] == pytest.approx(0.75, abs=0.05), "of which nothing is known: their mean"


def test_the_sum_is_right_about_how_often_each_class_comes():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (20_000, 3)).astype(np.float32)
    truth = softmax(logits + np.array([0, 0, 1]))
    labels = (generator.random((20_000, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    off = logits + np.array([4, 0, 0], np.float32)
    ((share,),), bias = fit_sum([[off]], labels)
    assert share == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(bias - bias[0], [0, 4, 5], atol=0.2)


def test_a_class_that_no_row_is_of_gets_no_bias():
    logits = np.array([[2, 0, 0]] * 4 + [[0, 2, 0]] * 4, np.float32)
    ((share,),), bias = fit_sum([[logits]], np.array([0, 0, 0, 1, 1, 0, 0, 0]))
    assert share == pytest.approx(0, abs=0.02), "of both kinds three rows of four are of one class"
    assert np.exp(bias[0] - bias[1]) == pytest.approx(3, rel=0.05)
    assert bias[2] == 0


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


@pytest.mark.parametrize(("coverage", "kept"), [(0.8, 4), (0.4, 2), (1.0, 5)])
def test_the_abstention_threshold_lets_the_coverage_through(coverage, kept):
    threshold = abstention_threshold(SURE, coverage)
    assert (SURE.max(axis=1) >= threshold).sum() == kept
