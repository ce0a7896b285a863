"""Families of words: what one of them says is expected of the others."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import strip_accents_unicode

from model.tokenizer import MASK_ID, WORD_START

LETTERS = 5

Families = npt.NDArray[np.int32]  # [V], of each token the first of its family


def beginnings(pieces: Sequence[str]) -> Families:
    """The families of pieces [V]: of one are those that begin alike, by their first five letters
    without accents. Those that begin a word and those that go on are apart.

    To cut words short does for search in a language of many endings what a stemmer does (Can et al.
    2008, their F5), and asks neither which language it is nor for a list of its words.
    """
    first: dict[str, int] = {}
    of_piece = [
        token if token <= MASK_ID else first.setdefault(_beginning(piece), token)
        for token, piece in enumerate(pieces)
    ]
    return np.array(of_piece, np.int32)


def _beginning(piece: str) -> str:
    return strip_accents_unicode(piece)[: LETTERS + piece.startswith(WORD_START)]
