import numpy as np
import pytest

from training.data.rows import Rows
from training.teacher import AGREES, Teacher


def rows(count: int) -> Rows:
    texts = [f"{'great' if i % 2 else 'awful'} thing of w{i}" for i in range(count)]
    targets = np.eye(2, dtype=np.float32)[np.arange(count) % 2]
    return Rows(texts, targets, np.zeros(count, np.int64), np.full(count, "en"))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher.of(rows(200))


def test_sentences_hear_their_text(teacher):
    texts = [
        "Great thing it is. We went on a Monday. Yes!",
        "Awful thing it is. We went on a Monday.",
    ]
    sentences, shares = teacher.label_sentences(texts)
    monday = "We went on a Monday."
    assert sentences == ["Great thing it is.", monday, "Awful thing it is.", monday]
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    alone = teacher.label(sentences)[:, 1]
    assert shares[0, 1] > alone[0] > 0.9
    assert shares[2, 1] < alone[2] < 0.1
    assert shares[1, 1] > 0.7 > 0.3 > shares[3, 1], "the same words, of two opinions"


@pytest.mark.parametrize(
    ("known", "said", "both"),
    [
        ([0.2, 0.8], [0.5, 0.5], [0.2, 0.8]),
        ([0.2, 0.8], [0.2, 0.8], [0.04 / 0.68, 0.64 / 0.68]),
        ([0.2, 0.8], [0.8, 0.2], [0.5, 0.5]),
        ([0.0, 1.0], [0.9, 0.1], [0.0, 1.0]),
    ],
)
def test_what_is_known_and_what_is_said_multiply(known, said, both):
    class Saying:
        def probabilities(self, texts):
            return np.array([said] * len(texts), np.float32)

    shares = Teacher(Saying()).refine(["text"], np.array([known], np.float32))
    np.testing.assert_allclose(shares, [both], rtol=1e-6)


def test_a_sentence_follows_its_text_as_often_as_is_set():
    class Sure:
        def probabilities(self, texts):
            return np.array([[0, 1] if "great" in text else [0.5, 0.5] for text in texts], "f4")

    _, shares = Teacher(Sure()).label_sentences(["Not a word of use. It is great indeed."])
    np.testing.assert_allclose(shares, [[1 - AGREES, AGREES], [0, 1]], rtol=1e-6)
