"""Token vectors from who stands beside whom: what unlabelled text teaches before training."""

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from sklearn.utils.extmath import randomized_svd

from model.tokenizer import MASK_ID
from training.data.batches import Dataset

WINDOW = 5  # tokens to each side; the nth neighbour counts 1/n, as in GloVe
SMOOTHING = 0.75  # exponent of context counts, so that rare contexts do not dominate
SEEN_LEAST = 1.0  # pairs met less than this say nothing and are most of the matrix
CHUNK_TOKENS = 2_000_000


def token_vectors(
    dataset: Dataset, vocab_size: int, d_model: int, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Vectors [V, d] of length 1, and which tokens [V] have one; the others hold zeros.

    Truncated SVD of positive pointwise mutual information with smoothed contexts, singular values
    by their square root (Levy, Goldberg and Dagan 2015, sections 2.2 and 3.1 to 3.3).
    """
    counts = _neighbours(dataset, vocab_size)
    word = counts.sum(axis=1)
    context = word**SMOOTHING
    row, column = counts.nonzero()
    seen = counts.data
    information = np.log(seen) + np.log(context.sum()) - np.log(word[row]) - np.log(context[column])
    kept = information > 0
    positive = csr_array(
        (information[kept].astype(np.float32), (row[kept], column[kept])),
        shape=(vocab_size, vocab_size),
    )
    rank = min(d_model, vocab_size - 1)
    left, singular, _ = randomized_svd(positive, rank, n_iter=3, random_state=seed)
    vectors = np.zeros((vocab_size, d_model), dtype=np.float32)
    vectors[:, :rank] = left * np.sqrt(singular)
    length = np.linalg.norm(vectors, axis=1)
    known = length > 1e-6
    known[: MASK_ID + 1] = False
    vectors[known] /= length[known, None]
    vectors[~known] = 0
    return vectors, known


def _neighbours(dataset: Dataset, vocab_size: int) -> csr_array:
    """How often each pair of tokens stands within the window, [V, V], symmetric."""
    row_of_token = np.repeat(np.arange(len(dataset)), dataset.lengths)
    ids = dataset.ids.astype(np.int64)
    total = csr_array((vocab_size, vocab_size), dtype=np.float64)
    for first in range(0, len(ids), CHUNK_TOKENS):
        for distance in range(1, WINDOW + 1):
            left = slice(first, min(first + CHUNK_TOKENS, len(ids) - distance))
            right = slice(left.start + distance, max(left.stop + distance, left.start + distance))
            together = row_of_token[left] == row_of_token[right]
            pairs = ids[left][together] * vocab_size + ids[right][together]
            pair, count = np.unique(pairs, return_counts=True)
            total = total + csr_array(
                (count / distance, (pair // vocab_size, pair % vocab_size)),
                shape=(vocab_size, vocab_size),
            )
    total = csr_array(total + total.T)
    total.data[total.data < SEEN_LEAST] = 0
    total.eliminate_zeros()
    return total
