import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression

from training.evaluation.metrics import softmax
from training.linear.regression import fit_logistic


@pytest.mark.parametrize("classes", [2, 3])
def test_no_step_from_where_it_ends_lowers_the_loss(classes):
    random = np.random.default_rng(0)
    features = random.poisson(0.3, (200, 12)).astype(np.float32)
    targets = random.dirichlet(np.ones(classes), 200).astype(np.float32)
    (coefficients,), bias = fit_logistic(csr_array(features), targets, 2.0)
    off = softmax(features @ coefficients.T + bias) - targets
    # Of two classes the penalty is on the difference of their coefficients, which are its halves.
    penalty = coefficients / 2.0 * (2 if classes == 2 else 1)
    slope = np.column_stack([off.T @ features + penalty, off.sum(axis=0)]) / len(targets)
    np.testing.assert_allclose(slope, 0, atol=2e-6)
    assert np.abs(coefficients).max() > 0.1


@pytest.mark.parametrize("classes", [2, 3])
def test_a_feature_there_several_times_is_as_many_features(classes):
    """Slow: by the library, each copy a column of its own and each graded row one of each class."""
    random = np.random.default_rng(1)
    features = random.poisson(0.3, (200, 12)).astype(np.float32)
    targets = random.dirichlet(np.ones(classes), 200).astype(np.float32)
    copies = np.array([[1, 0.7, 0], [1, 0, 0.7], [1, 0, 0]], np.float32)[random.integers(0, 3, 200)]
    coefficients, bias = fit_logistic(csr_array(features), targets, 2.0, copies)
    every = (copies[:, :, None] * features[:, None]).reshape(200, -1).astype(np.float64)
    row, label = targets.nonzero()
    library = LogisticRegression(C=2.0, solver="newton-cg", tol=1e-9)
    library.fit(every[row], label, sample_weight=targets[row, label])
    found, own_bias = np.concatenate(list(coefficients), axis=1), bias
    if classes == 2:  # the library gives the difference
        found, own_bias = found[1:] - found[:1], bias[1:] - bias[:1]
    np.testing.assert_allclose(found, library.coef_, atol=1e-5)
    np.testing.assert_allclose(own_bias, library.intercept_, atol=1e-5)


def test_features_that_tell_nothing_say_nothing():
    targets = np.tile(np.eye(2, dtype=np.float32), (4, 1))
    (coefficients,), bias = fit_logistic(csr_array(np.ones((8, 3), np.float32)), targets, 1.0)
    np.testing.assert_allclose(coefficients, 0, atol=1e-12)
    np.testing.assert_allclose(bias, 0, atol=1e-12)


def test_one_class_alone_is_refused():
    targets = np.array([[0, 1, 0]] * 4, dtype=np.float32)
    with pytest.raises(ValueError, match="targets: 1 of 3 classes have rows"):
        fit_logistic(csr_array(np.eye(4, dtype=np.float32)), targets, 1.0)


def test_a_class_without_rows_is_left_no_probability():
    targets = np.array([[1, 0, 0], [0, 0, 1]] * 4, dtype=np.float32)
    features = csr_array(np.eye(2, dtype=np.float32)[[0, 1] * 4])
    (coefficients,), bias = fit_logistic(features, targets, 1.0)
    assert (coefficients[1] == 0).all()
    probabilities = softmax(features @ coefficients.T + bias)
    assert (probabilities[:, 1] < 1e-9).all()
    assert probabilities.argmax(axis=1).tolist() == [0, 2] * 4
