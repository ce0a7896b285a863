"""Tokens are replaced by what stands in the same context elsewhere."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import Encoding
from training.data.batches import Dataset
from training.pretraining.replacement import CONTEXTS, Replacer

CPU = torch.device("cpu")


def replacer(*rows: list[int], vocab_size: int = 40) -> Replacer:
    encodings = [Encoding(np.array(row, dtype=np.int64), None, False) for row in rows]
    return Replacer(Dataset.encode(encodings), vocab_size, CPU)


def written(rows: Replacer, ids: list[list[int]], rate: float = 0.999999) -> torch.Tensor:
    input_ids = torch.tensor(ids)
    return rows(input_ids, (input_ids > 0).long(), rate)


def surroundings(row: list[int], at: int, context: tuple[int, ...]) -> list[int]:
    wide = [0, 0, *row, 0, 0]
    return [wide[at + 2 + place] for place in context]


def stands_elsewhere(token: int, row: list[int], at: int, corpus: list[list[int]]) -> bool:
    """One place at a time: does the token stand anywhere between neighbours that are the same?"""
    return any(
        other[place] == token
        and surroundings(other, place, context) == surroundings(row, at, context)
        for context in CONTEXTS
        for other in corpus
        for place in range(len(other))
    )


@given(
    corpus=st.lists(st.lists(st.integers(4, 9), min_size=1, max_size=8), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_what_is_written_stands_in_the_same_context_elsewhere(corpus, seed):
    torch.manual_seed(seed)
    row = corpus[0]
    found = written(replacer(*corpus), [row])[0].tolist()
    for at, token in enumerate(found):
        assert stands_elsewhere(token, row, at, corpus)


def test_it_is_drawn_as_often_as_it_stands_there():
    # Between 5 and 6 stands 10 once and 11 three times; every other context has one token.
    rows = replacer([5, 10, 6], *[[5, 11, 6]] * 3)
    torch.manual_seed(0)
    found = written(rows, [[5, 10, 6]] * 4000)
    assert (found[:, [0, 2]] == torch.tensor([5, 6])).all()
    assert float((found[:, 1] == 11).float().mean()) == pytest.approx(0.75, abs=0.03)


def test_a_context_ends_where_its_row_does():
    # Were the rows one, 8 would follow 7 and so take the place of 9.
    torch.manual_seed(0)
    found = written(replacer([7, 9], [5, 7], [8, 6]), [[7, 9]] * 200)
    assert set(found[:, 1].tolist()) == {9, 7, 6}  # the ends of rows
    assert set(found[:, 0].tolist()) == {7, 5, 8}  # their beginnings


def test_what_has_no_like_stays():
    torch.manual_seed(0)
    found = written(replacer([4, 5, 6]), [[20, 21, 22, 23, 24]] * 50)
    assert (found[:, 2] == 22).all()  # its neighbours, two on either side, are nobody else's


@pytest.mark.parametrize("special", [0, 1, 2])
def test_padding_what_is_unknown_and_what_is_masked_stay_and_take_nobodys_place(special):
    torch.manual_seed(0)
    rows = replacer([5, special, 6], [5, 7, 6], [5, 8, 6])
    assert (written(rows, [[5, special, 6]] * 50)[:, 1] == special).all()
    assert set(written(rows, [[5, 7, 6]] * 50)[:, 1].tolist()) == {7, 8}


def test_padding_stays_and_stands_for_nothing():
    rows = replacer([4, 5], [4, 6], [4, 7])
    torch.manual_seed(0)
    found = written(rows, [[4, 5, 0, 0]] * 100)
    assert (found[:, 2:] == 0).all()
    assert set(found[:, 1].tolist()) == {5, 6, 7}


def test_about_the_share_is_drawn_anew_and_a_seed_says_which():
    generator = np.random.default_rng(0)
    corpus = [generator.integers(4, 200, 50).tolist() for _ in range(400)]
    rows = replacer(*corpus, vocab_size=200)
    torch.manual_seed(3)
    first = written(rows, corpus, rate=0.2)
    torch.manual_seed(3)
    assert torch.equal(written(rows, corpus, rate=0.2), first)
    replaced = float((first != torch.tensor(corpus)).float().mean())
    # Half of the contexts are met once only, in the place itself, which then stays as it is.
    assert 0.05 < replaced < 0.2


def test_no_texts_replace_nothing():
    assert written(replacer(), [[4, 5]]).tolist() == [[4, 5]]
