"""Confidences that are as often right as they say."""

import numpy as np
import pytest

from training.evaluation.calibration import (
    abstention_threshold,
    alike,
    cross_calibrated,
    fit_temperature,
    uncalibrated,
)
from training.evaluation.metrics import softmax

SURE = np.array([[0.9, 0.1], [0.45, 0.55], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]], np.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (20_000, 3)).astype(np.float32)
    truth = softmax(logits, temperature)
    labels = (generator.random((20_000, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize(("logit", "temperature"), [(0.1, 0.091), (1.0, 0.91), (20.0, 18.2)])
def test_a_row_in_four_surely_wrong_leaves_three_quarters_to_be_sure_of(logit, temperature):
    logits = np.array([[logit, 0]] * 3 + [[0, logit]], np.float32)
    labels = np.zeros(4, np.int64)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.01)


@pytest.mark.parametrize(
    ("count", "wrong", "reason"),
    [
        (50, 1, None),
        (50, 49, None),
        (49, 1, "49 rows; a temperature takes 50 at least"),
        (50, 0, "all 50 rows are answered right"),
        (50, 50, "all 50 rows are answered wrong"),
    ],
)
def test_rows_say_how_sure_to_be_where_they_are_many_and_some_are_wrong(count, wrong, reason):
    labels = np.arange(count) % 2
    logits = np.eye(2, dtype=np.float32)[np.where(np.arange(count) < wrong, 1 - labels, labels)]
    assert (uncalibrated(logits, labels) or "").startswith(reason or "")
    assert (uncalibrated(logits, labels) is None) == (reason is None)


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


@pytest.mark.parametrize(("coverage", "kept"), [(0.8, 4), (0.4, 2), (1.0, 5)])
def test_the_abstention_threshold_lets_the_coverage_through(coverage, kept):
    threshold = abstention_threshold(SURE, coverage)
    assert (SURE.max(axis=1) >= threshold).sum() == kept
