import numpy as np
import pytest

from training.baseline import LinearBaseline


@pytest.mark.parametrize("classes", [2, 3])
def test_it_learns_words_and_word_pairs(classes):
    texts = ["good film", "not good", "so so"][:classes] * 20
    labels = np.array(list(range(classes)) * 20)
    probabilities = LinearBaseline.fit(texts, labels).probabilities(texts[:classes])
    assert probabilities.shape == (classes, classes)
    assert probabilities.argmax(axis=1).tolist() == list(range(classes))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_a_text_of_unknown_words_gets_what_is_most_frequent():
    texts, labels = ["bom"] * 3 + ["ruim"], np.array([1, 1, 1, 0])
    assert LinearBaseline.fit(texts, labels).probabilities(["zzz"]).argmax() == 1


def test_the_same_rows_give_the_same_model():
    texts, labels = ["a b", "b c", "c d", "d a"] * 9, np.array([0, 1, 0, 1] * 9)
    first = LinearBaseline.fit(texts, labels).probabilities(["a c"])
    np.testing.assert_array_equal(first, LinearBaseline.fit(texts, labels).probabilities(["a c"]))
