from collections import defaultdict

import numpy as np
import pytest

from training.data.translation import ROUNDS, Lexicon, model_1, words

PAIRS = [
    ("a good film", "um bom filme"),
    ("a bad film", "um mau filme"),
    ("the film", "o filme"),
    ("the plot", "o enredo"),
    ("a good plot", "um bom enredo"),
    ("not good", "nada bom"),
    ("not bad", "nada mau"),
]


@pytest.mark.parametrize(
    ("text", "translation"),
    [
        ("good", "bom"),
        ("Good plot, bad film!", "bom enredo, mau filme!"),
        ("the BAD plot", "o mau enredo"),
        ("an unseen film", "an unseen filme"),
        ("", ""),
    ],
)
def test_words_are_learnt_from_whole_texts(text, translation):
    assert Lexicon.learn(PAIRS).translate(text) == translation


def test_a_phrase_goes_before_its_words():
    pairs = [*PAIRS, ("not bad at all", "muito bom"), ("at all", "de todo")]
    lexicon = Lexicon.learn(pairs)
    assert lexicon.translate("a film not bad at all") == "um filme muito bom"
    assert lexicon.translate("a film not good at all") == "um filme nada bom de todo"


def test_the_commonest_translation_of_a_phrase_is_taken():
    pairs = [*PAIRS, ("no good", "ruim"), ("no good", "sem valor"), ("no good", "ruim")]
    assert Lexicon.learn(pairs).translate("no good") == "ruim"


def test_what_chance_put_together_is_not_believed():
    # Each of the two stands once beside each of eight words.
    strangers = [("odd " + " ".join(f"x{i}{j}" for j in range(8)), f"w{i}") for i in range(8)]
    assert Lexicon.learn([*PAIRS, *strangers]).translate("odd film") == "odd filme"


@pytest.mark.parametrize("pairs", [[], [("", "")], [("film", " "), ("", "filme")]])
def test_of_nothing_nothing_is_learnt(pairs):
    assert Lexicon.learn(pairs).translate("The film as it was.") == "the film as it was."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's good.", ("it", "'s", "good", ".")),
        ("it 's good .", ("it", "'s", "good", ".")),
        ("I don't", ("i", "do", "n't")),
        ("do n't", ("do", "n't")),
        ("não é à toa…", ("não", "é", "à", "toa", "…")),
        ("15-year-old", ("15", "-", "year", "-", "old")),
    ],
)
def test_words_are_the_same_however_a_text_is_set(text, expected):
    assert words(text) == expected


def test_model_1_is_what_it_is_by_hand():
    """Against the loops of Brown et al. 1993 over the same pairs."""
    pairs = [(words(text), words(other)) for text, other in PAIRS]
    table: dict[tuple[str, str], float] = defaultdict(lambda: 1.0)
    for _ in range(ROUNDS):
        count: dict[tuple[str, str], float] = defaultdict(float)
        total: dict[str, float] = defaultdict(float)
        for text, other in pairs:
            for target in other:
                norm = sum(table[source, target] for source in text)
                for source in text:
                    share = table[source, target] / norm
                    count[source, target] += share
                    total[source] += share
        table = defaultdict(float, {pair: n / total[pair[0]] for pair, n in count.items()})

    kinds = sorted(table)
    givens = sorted({source for source, _ in kinds})
    link, place, start = [], [], 0
    for text, other in pairs:
        for i, target in enumerate(other):
            link += [kinds.index((source, target)) for source in text]
            place += [start + i] * len(text)
        start += len(other)
    given = np.array([givens.index(source) for source, _ in kinds])
    found = model_1(np.array(link), np.array(place), given)
    np.testing.assert_allclose(found, [table[pair] for pair in kinds], rtol=1e-9)
    np.testing.assert_allclose(np.bincount(given, found), 1)
