import numpy as np
import pytest

from training.linear.baseline import LinearBaseline, NoWords


@pytest.mark.parametrize("classes", [2, 3])
def test_it_learns_words_and_word_pairs(classes):
    texts = ["good film", "not good", "so so"][:classes] * 20
    targets = np.tile(np.eye(classes, dtype=np.float32), (20, 1))
    probabilities = LinearBaseline.fit(texts, targets).probabilities(texts[:classes])
    assert probabilities.shape == (classes, classes)
    assert probabilities.argmax(axis=1).tolist() == list(range(classes))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_a_text_of_unknown_words_gets_what_is_most_frequent():
    texts, targets = ["bom"] * 3 + ["ruim"], np.eye(2, dtype=np.float32)[[1, 1, 1, 0]]
    assert LinearBaseline.fit(texts, targets).probabilities(["zzz"]).argmax() == 1


def test_texts_without_words_in_common_teach_nothing():
    texts = [chr(0x4E00 + i) * 8 for i in range(1500)]  # no spaces, and none comes again
    with pytest.raises(NoWords, match="no words in common"):
        LinearBaseline.fit(texts, np.eye(2, dtype=np.float32)[np.arange(1500) % 2])


def test_of_no_texts_nothing_is_said():
    baseline = LinearBaseline.fit(["good", "bad"], np.eye(2, dtype=np.float32))
    assert baseline.probabilities([]).shape == (0, 2)


def test_the_same_rows_give_the_same_model():
    texts = ["a b", "b c", "c d", "d a"] * 9
    targets = np.eye(2, dtype=np.float32)[[0, 1, 0, 1] * 9]
    first = LinearBaseline.fit(texts, targets).probabilities(["a c"])
    np.testing.assert_array_equal(first, LinearBaseline.fit(texts, targets).probabilities(["a c"]))


def test_graded_rows_and_classes_without_rows():
    targets = np.tile(np.array([[0.75, 0.25, 0.0]], dtype=np.float32), (40, 1))
    probabilities = LinearBaseline.fit(["so so"] * 40, targets).probabilities(["so so"])
    np.testing.assert_allclose(probabilities, [[0.75, 0.25, 0.0]], atol=0.02)
