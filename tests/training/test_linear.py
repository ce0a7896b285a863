import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from model.config import ModelConfig
from model.linear import MARKS, LinearPart, ngram_hashes
from model.tokenizer import Encoding
from training.batches import Dataset
from training.evaluate import predict
from training.linear import LinearClassifier, most_telling, presence, telling

VOCABULARY = 30


def rows(targets: np.ndarray, seed: int = 0) -> Dataset:
    """Texts whose class shows in some of their tokens."""
    generator = np.random.default_rng(seed)
    encodings = []
    for target in targets:
        drawn = generator.integers(3, VOCABULARY, generator.integers(2, 20))
        own = 3 + int(target.argmax())
        encodings.append(Encoding(np.append(drawn, [own, own]), None, False))
    return Dataset.encode(encodings, targets.astype(np.float32))


def config(classes: int, ngrams: int = 50_000) -> ModelConfig:
    return ModelConfig(vocab_size=VOCABULARY, classes=classes, ngrams=ngrams, max_tokens=64)


@pytest.mark.parametrize("classes", [2, 3])
def test_it_answers_as_the_library_does_over_the_same_features(classes):
    dataset = rows(np.eye(classes)[np.arange(60) % classes])
    linear = LinearClassifier.fit(dataset, config(classes), 1.0)
    present = presence(dataset, linear.part)
    values = normalize(present.multiply(telling(present, dataset.targets)).tocsr())
    library = LogisticRegression(solver="newton-cg", tol=1e-6)
    library.fit(values, dataset.labels)
    logits = predict(linear, dataset, torch.device("cpu"))
    probabilities = torch.from_numpy(logits).softmax(dim=1).numpy()
    expected = library.predict_proba(values)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert (logits.argmax(1) == dataset.labels).mean() > 0.9


def test_features_are_tokens_and_ngrams_of_up_to_three():
    dataset = rows(np.eye(2)[np.arange(20) % 2])
    present = presence(dataset, LinearClassifier.fit(dataset, config(2), 1.0).part)
    texts = [" ".join(f"w{i}" for i in dataset.ids[a:b]) for a, b in _spans(dataset)]
    words = CountVectorizer(ngram_range=(1, 3), binary=True).fit_transform(texts)
    # The library has no n-grams with the beginning of a text: a pair and two triples.
    assert (present.sum(axis=1) == words.sum(axis=1).A1 + 3).all()
    assert set(present.data) == {1}


def test_a_row_goes_to_the_ngram_that_tells_most():
    """Slow: each n-gram by itself, and all that fall on a row compared."""
    dataset = rows(np.eye(2)[np.arange(40) % 2])
    seen: dict[int, np.ndarray] = {}
    for (start, end), target in zip(_spans(dataset), dataset.targets, strict=True):
        ids = torch.from_numpy(dataset.ids[start:end].astype(np.int64))[None]
        for ngram in set(ngram_hashes(ids).flatten().tolist()):
            seen[ngram] = seen.get(ngram, 0) + target
    surprise = {ngram: np.ptp(count) ** 2 / (count.sum() + 2) for ngram, count in seen.items()}
    part = LinearPart(VOCABULARY, 50, 2)
    part.own(most_telling(dataset))
    found = [ngram for ngram in seen if part.owner[ngram % 50] == ngram // 50 % MARKS]
    assert sorted(ngram % 50 for ngram in found) == sorted({ngram % 50 for ngram in seen})
    for ngram in found:
        others = [surprise[other] for other in seen if other % 50 == ngram % 50]
        assert surprise[ngram] == pytest.approx(max(others))


def test_what_tells_nothing_of_the_class_has_no_scale():
    present = csr_array(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]], "f4"))
    targets = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]], "f4")  # none of a third class
    # Seen once more in each: 3, 3, 1 of 8 and 3, 1, 2 of 7; the last of no row.
    expected = np.sqrt(np.abs(np.log([7 / 8, 3 * 7 / 8, 7 / 16, 1])) / 2)
    np.testing.assert_allclose(telling(present, targets), expected, rtol=1e-6)


def test_a_graded_row_counts_in_each_class():
    graded = rows(np.array([[0.75, 0.25]] * 4))
    linear = LinearClassifier.fit(graded, config(2), 100.0)
    share = torch.from_numpy(predict(linear, graded, torch.device("cpu"))).softmax(dim=1)
    assert torch.allclose(share, torch.tensor([0.75, 0.25]), atol=0.01)


def test_a_class_without_rows_is_never_the_answer():
    dataset = rows(np.eye(3)[np.arange(20) % 2])
    linear = LinearClassifier.fit(dataset, config(3), 1.0)
    assert (linear.part.weight.weight.sum(dim=1) == 0).all(), "nothing is left for the third"
    logits = torch.from_numpy(predict(linear, dataset, torch.device("cpu")))
    assert (logits.softmax(dim=1)[:, 2] < 1e-9).all()


def _spans(dataset: Dataset) -> list[tuple[int, int]]:
    return list(zip(dataset.starts[:-1], dataset.starts[1:], strict=True))
