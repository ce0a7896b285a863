import numpy as np
import pytest

from model.tokenizer import Tokenizer
from training.linear.families import beginnings

SPECIAL = ["[PAD]", "[UNK]", "[MASK]"]


@pytest.mark.parametrize(
    ("pieces", "families"),
    [
        (["▁adorei", "▁adoravel", "▁adorável", "▁adora", "▁ador"], [3, 4, 4, 4, 7]),
        (["▁não", "▁nao", "nao", "▁nã"], [3, 3, 5, 6]),
        (["▁disappoint", "▁disappointing", "▁disapprove"], [3, 3, 3]),
        (["amente", "ament", "▁amente"], [3, 3, 5]),
        (["!", "1", "▁", "mask", "[MASK]"], [3, 4, 5, 6, 7]),
    ],
)
def test_of_one_family_are_pieces_that_begin_alike(pieces: list[str], families: list[int]):
    assert beginnings(SPECIAL + pieces).tolist() == [0, 1, 2, *families]


def test_a_vocabulary_has_families_of_its_own_tokens():
    tokenizer = Tokenizer.train(
        ["recomendo o produto", "recomendado", "produtos bons"] * 9, vocab_size=200, max_tokens=9
    )
    families = beginnings(tokenizer.pieces)
    assert len(families) == tokenizer.vocab_size
    assert (families[families] == families).all(), "the first of a family is of it"
    assert (families <= np.arange(len(families))).all()
