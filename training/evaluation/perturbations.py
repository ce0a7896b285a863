"""Small changes of a sentence that leave its meaning as it is, always the same for a sentence."""

import hashlib
import random
import re
import unicodedata
from collections.abc import Callable, Mapping

_LONG_WORD = re.compile(r"[^\W\d_]{5,}")  # a typo in a shorter one can make it another word
_PUNCTUATION = re.compile(r"[^\w\s'’-]")
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_END = re.compile(r"[.!?…]*$")


def _without_accents(sentence: str) -> str:
    decomposed = unicodedata.normalize("NFD", sentence)
    return "".join(one for one in decomposed if not unicodedata.combining(one))


def _typo(edit: Callable[[str, int], str]) -> Callable[[str], str]:
    """`edit` at one place inside one long word of a sentence, its first and last letter apart."""

    def perturb(sentence: str) -> str:
        # Two equal neighbours are left alone: swapping them would change nothing.
        places = [
            (match, at)
            for match in _LONG_WORD.finditer(sentence)
            for at in range(1, len(match[0]) - 2)
            if match[0][at] != match[0][at + 1]
        ]
        if not places:
            return sentence
        seed = hashlib.sha256(sentence.encode()).digest()
        match, at = random.Random(seed).choice(places)
        return sentence[: match.start()] + edit(match[0], at) + sentence[match.end() :]

    return perturb


PERTURBATIONS: Mapping[str, Callable[[str], str]] = {
    "lower": str.lower,
    "upper": str.upper,
    "no_accents": _without_accents,
    "no_punctuation": lambda sentence: _PUNCTUATION.sub("", sentence),
    "no_apostrophes": lambda sentence: _APOSTROPHE.sub("", sentence),
    "exclamation": lambda sentence: _END.sub("!!!", sentence, count=1),
    "ellipsis": lambda sentence: _END.sub("...", sentence, count=1),
    "swap_letters": _typo(lambda word, at: word[:at] + word[at + 1] + word[at] + word[at + 2 :]),
    "drop_letter": _typo(lambda word, at: word[:at] + word[at + 1 :]),
    "repeat_letter": _typo(lambda word, at: word[:at] + word[at] + word[at:]),
}
