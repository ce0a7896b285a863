import numpy as np
import pytest
from scipy.sparse import csr_array

from training.evaluate import softmax
from training.regression import fit_logistic


@pytest.mark.parametrize("classes", [2, 3])
def test_no_step_from_where_it_ends_lowers_the_loss(classes):
    random = np.random.default_rng(0)
    features = random.poisson(0.3, (200, 12)).astype(np.float32)
    targets = random.dirichlet(np.ones(classes), 200).astype(np.float32)
    coefficients, bias = fit_logistic(csr_array(features), targets, 2.0)
    off = softmax(features @ coefficients.T + bias) - targets
    # Of two classes the penalty is on the difference of their coefficients, which are its halves.
    penalty = coefficients / 2.0 * (2 if classes == 2 else 1)
    slope = np.column_stack([off.T @ features + penalty, off.sum(axis=0)]) / len(targets)
    np.testing.assert_allclose(slope, 0, atol=2e-6)
    assert np.abs(coefficients).max() > 0.1


def test_a_class_without_rows_is_left_no_probability():
    targets = np.array([[1, 0, 0], [0, 0, 1]] * 4, dtype=np.float32)
    features = csr_array(np.eye(2, dtype=np.float32)[[0, 1] * 4])
    coefficients, bias = fit_logistic(features, targets, 1.0)
    assert (coefficients[1] == 0).all()
    probabilities = softmax(features @ coefficients.T + bias)
    assert (probabilities[:, 1] < 1e-9).all()
    assert probabilities.argmax(axis=1).tolist() == [0, 2] * 4
