import numpy as np
import pytest

from model.tokenizer import Encoding
from training.data.batches import Dataset
from training.pretraining import vectors
from training.pretraining.vectors import token_vectors


def dataset(*rows: list[int]) -> Dataset:
    encodings = [Encoding(np.array(row, dtype=np.int64), None, False) for row in rows]
    return Dataset.encode(encodings)


def counted_slowly(rows: list[list[int]], vocab_size: int) -> np.ndarray:
    """Every pair of places in every row, one at a time."""
    total = np.zeros((vocab_size, vocab_size))
    for row in rows:
        for i, left in enumerate(row):
            for j, right in enumerate(row):
                if 0 < abs(i - j) <= vectors.WINDOW:
                    total[left, right] += 1 / abs(i - j)
    total[total < vectors.SEEN_LEAST] = 0
    return total


@pytest.mark.parametrize("chunk", [2_000_000, 7])
def test_neighbours_are_those_counted_one_at_a_time(chunk, monkeypatch):
    monkeypatch.setattr(vectors, "CHUNK_TOKENS", chunk)
    generator = np.random.default_rng(0)
    rows = [generator.integers(3, 12, length).tolist() for length in (1, 2, 9, 30, 3, 17)]
    counts = vectors._neighbours(dataset(*rows), 12).toarray()
    np.testing.assert_allclose(counts, counted_slowly(rows, 12))


def test_tokens_that_keep_the_same_company_are_alike():
    # 10 and 11 stand in one kind of sentence, 20 and 21 in another.
    rows = [[3, 10, 4], [3, 11, 4], [5, 20, 6], [5, 21, 6]] * 5
    found, known = token_vectors(dataset(*rows), vocab_size=30, d_model=4, seed=0)
    assert found.shape == (30, 4)
    assert np.flatnonzero(known).tolist() == [3, 4, 5, 6, 10, 11, 20, 21]
    np.testing.assert_allclose(np.linalg.norm(found[known], axis=1), 1, atol=1e-6)
    assert not found[~known].any()
    assert found[10] @ found[11] > 0.99
    assert found[20] @ found[21] > 0.99
    assert abs(found[10] @ found[20]) < 0.1


def test_vectors_are_alike_as_far_as_smoothed_information_worked_out_in_full_says():
    generator = np.random.default_rng(0)
    rows = (3 + generator.zipf(1.6, (60, 12)) % 9).tolist()  # some tokens are much rarer
    found, known = token_vectors(dataset(*rows), vocab_size=12, d_model=11, seed=0)
    counts = counted_slowly(rows, 12)[3:, 3:]
    word = counts.sum(axis=1)
    context = word**0.75
    chance = np.outer(word, context) / context.sum()
    information = np.log(np.maximum(counts / chance, 1))
    left, singular, _ = np.linalg.svd(information)
    expected = left * np.sqrt(singular)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.flatnonzero(known).tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11]
    np.testing.assert_allclose(found[3:] @ found[3:].T, expected @ expected.T, atol=1e-4)


def test_special_tokens_never_have_a_vector():
    _, known = token_vectors(dataset(*[[0, 1, 2, 5, 6]] * 9), vocab_size=8, d_model=4, seed=0)
    assert np.flatnonzero(known).tolist() == [5, 6]


def test_the_same_rows_give_the_same_vectors():
    rows = np.random.default_rng(1).integers(3, 40, (50, 12)).tolist()
    first, _ = token_vectors(dataset(*rows), 40, 16, seed=7)
    again, _ = token_vectors(dataset(*rows), 40, 16, seed=7)
    np.testing.assert_array_equal(first, again)
