import numpy as np

from model.account import toward


def test_what_counts_toward_an_answer_counts_against_the_others():
    account = np.array([[0.5, -0.25, 0.25], [0.0, 1.0, 3.0]], np.float32)
    assert toward(account, 0).tolist() == [0.5, -2.0]
    assert toward(account, 2).tolist() == [0.125, 2.5]


def test_of_two_classes_it_is_the_difference():
    account = np.array([[0.5, -1.5], [-1.0, 0.0]])
    assert toward(account, 0).tolist() == [2.0, -1.0]
    assert toward(account, 1).tolist() == [-2.0, 1.0]
