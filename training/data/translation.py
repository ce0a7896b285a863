"""Word for word into another language, by what aligned texts teach.

A language with few labelled texts learns from those of another. What comes of it is no good
prose, but its words are those of the language, with the label that the text has.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

LONGEST = 5  # words of a phrase that is looked up as a whole
ROUNDS = 8  # of expectation maximisation; the best word changes no more
# Both directions' probability of the best word, below which it is more likely chance: "porém" was
# "seedy" at 0.004, "gostei" "enjoyed" at 0.15.
LEAST = 0.05

# English "don't" and "it's" are two words each, as in the treebanks.
_WORD = re.compile(r"\w+(?=n['’]t\b)|n['’]t\b|['’](?:s|re|ve|ll|d|m)\b|\w+|[^\w\s]")
_APART = re.compile(r" (?=n?'\w)")  # what a treebank sets apart
_BEFORE = re.compile(r"\s+(?=[.,;:!?)…])")

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lexicon:
    """What phrases of one language are in another; those of one word are most."""

    phrases: dict[Words, str]

    @classmethod
    def learn(cls, pairs: Iterable[tuple[str, str]]) -> Self:
        """From texts and their translations. Short pairs are phrases as they stand; a word is the
        one that it stands beside most tellingly, in both directions."""
        both = ((words(text), words(other)) for text, other in pairs)
        split = [(text, other) for text, other in both if text and other]
        phrases: dict[Words, str] = {(word,): other for word, other in _words_alike(split).items()}
        whole: defaultdict[Words, Counter[str]] = defaultdict(Counter)
        for text, other in split:
            if 2 <= len(text) <= LONGEST:
                whole[text][" ".join(other)] += 1
        phrases |= {text: others.most_common(1)[0][0] for text, others in whole.items()}
        return cls(phrases)

    def translate(self, text: str) -> str:
        """The longest phrases first, from left to right; a word that is not known stays."""
        left, said = words(text), []
        while left:
            size = next((n for n in range(LONGEST, 1, -1) if left[:n] in self.phrases), 1)
            said.append(self.phrases.get(left[:size], left[0]))
            left = left[size:]
        return _BEFORE.sub("", " ".join(said))


def words(text: str) -> Words:
    """Small-letter words and marks of a text."""
    return tuple(_WORD.findall(_APART.sub("", text.lower())))


def _words_alike(pairs: Sequence[tuple[Words, Words]]) -> dict[str, str]:
    """The most likely translation of every word: by the product of both directions' probabilities
    (alignment by agreement, Liang, Taskar and Klein 2006), each of IBM Model 1."""
    if not pairs:
        return {}
    texts, others = zip(*pairs, strict=True)
    here, there = _numbered(texts), _numbered(others)
    # One link for every word of a text with every word of its translation.
    places: tuple[list[npt.NDArray[np.int64]], ...] = ([], [])
    start = [0, 0]
    for text, other in pairs:
        places[0].append(np.repeat(np.arange(len(text)) + start[0], len(other)))
        places[1].append(np.tile(np.arange(len(other)) + start[1], len(text)))
        start = [start[0] + len(text), start[1] + len(other)]
    at, at_other = (np.concatenate(one) for one in places)
    every = np.array([here[word] for text in texts for word in text])
    every_other = np.array([there[word] for other in others for word in other])
    pair, link = np.unique(every[at] * len(there) + every_other[at_other], return_inverse=True)
    word, other_word = np.divmod(pair, len(there))
    agreed = model_1(link, at_other, word) * model_1(link, at, other_word)
    spelt, spelt_other = list(here), list(there)
    rising = np.lexsort((agreed, word))  # of each word the best comes last
    likely = rising[agreed[rising] > LEAST]
    return {spelt[word[i]]: spelt_other[other_word[i]] for i in likely}


def model_1(
    link: npt.NDArray[np.int64], target: npt.NDArray[np.int64], given: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """p(target word | given word) of each pair of words [P] (Brown et al. 1993, Model 1).

    `link` [K] is the pair that each link is of, `target` [K] the place that it explains, `given`
    [P] the word that each pair goes out from.
    """
    probability = np.ones(len(given))
    for _ in range(ROUNDS):
        share = probability[link]
        share /= np.bincount(target, share)[target]
        count = np.bincount(link, share)
        probability = count / np.bincount(given, count)[given]
    return probability


def _numbered(texts: Iterable[Words]) -> dict[str, int]:
    return {word: i for i, word in enumerate(dict.fromkeys(w for text in texts for w in text))}
