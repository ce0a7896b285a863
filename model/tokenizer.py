"""Text to token ids and back to the characters they came from."""

import bisect
import collections
import itertools
import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import regex
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, normalizers, pre_tokenizers, trainers

PAD, UNK, MASK = "[PAD]", "[UNK]", "[MASK]"
PAD_ID, UNK_ID, MASK_ID = 0, 1, 2
WORD_START = "▁"  # how a piece that begins a word is spelt: the space before it

KNOWN_WORDS = 1 << 16  # kept with their pieces: of what people write, all but a few in a hundred
LONGEST_KNOWN = 32  # characters of a word that is kept, so that what is kept stays small

# What has no white space is read in parts: the library takes seconds for a word of a megabyte.
LONGEST_WORD = 64
LONGEST_CHARACTER = 32  # code points of what is not cut in two: a family of four has 11
_WORD = re.compile(r"\S+")
_GRAPHEME = regex.compile(r"\X")


class Word(NamedTuple):
    """A word's pieces: their ids, and where in the word each starts and ends, in code points."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


_ids = operator.attrgetter("ids")


class KnownWords(dict[str, Word]):
    """Words as they were read before; any other is read now. It begins anew when it is full."""

    def __init__(self, read: Callable[[str], Word]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, text: str) -> Word:
        word = self._read(text)
        if len(text) <= LONGEST_KNOWN:
            if len(self) >= KNOWN_WORDS:
                self.clear()
            self[text] = word
        return word


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text as the network reads it.

    `input_ids` [S] int64, S >= 1. `offsets` [S, 2]: start and end of each token in Unicode code
    points of the text as given, grown to whole grapheme clusters; None where not asked for.
    `truncated` is True when the text was longer than `max_tokens` and its middle was left out.
    """

    input_ids: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64] | None
    truncated: bool


class Tokenizer:
    """Subword tokenizer (Unigram, Kudo 2018) over NFC text, accents kept, case folded.

    No piece reaches beyond the white space around a word, so a text is read word by word, and a
    word seen before is looked up: a tenth of the time. Words keep the space before them as a mark,
    so that offsets stay exact. Truncation happens here; padding belongs to whoever forms the batch.
    """

    def __init__(self, raw: RawTokenizer, max_tokens: int) -> None:
        for token, token_id in ((PAD, PAD_ID), (UNK, UNK_ID), (MASK, MASK_ID)):
            if raw.token_to_id(token) != token_id:
                raise ValueError(
                    f"tokenizer: {token} must have id {token_id}, has {raw.token_to_id(token)}"
                )
        raw.no_padding()
        raw.no_truncation()
        # A caller who writes "[PAD]" means the word.
        raw.encode_special_tokens = True
        self._raw = raw
        self._known = KnownWords(self._read)
        self.max_tokens = max_tokens

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int, max_tokens: int) -> Self:
        """Learn a vocabulary of at most `vocab_size` pieces from `texts`.

        Raises `ValueError` where that is too few to hold each of their characters.
        """
        raw = RawTokenizer(models.Unigram())
        raw.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.WhitespaceSplit(),
                pre_tokenizers.Metaspace(WORD_START, prepend_scheme="always"),
                pre_tokenizers.Punctuation("isolated"),
                pre_tokenizers.Digits(individual_digits=True),
            ]
        )
        trainer = trainers.UnigramTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, UNK, MASK],
            unk_token=UNK,
            max_piece_length=16,
            show_progress=False,
        )
        try:
            raw.train_from_iterator(texts, trainer)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(str(error)) from error
        vocabulary = json.loads(raw.to_str())["model"]["vocab"]
        raw.model = models.Unigram(_settled(vocabulary), UNK_ID)
        return cls(raw, max_tokens)

    @classmethod
    def from_json(cls, content: bytes, *, max_tokens: int) -> Self:
        """What `to_json` made. Raises `ValueError` when it is not a tokenizer of ours."""
        try:
            raw = RawTokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"not a tokenizer: {error}") from error
        return cls(raw, max_tokens)

    def to_json(self) -> bytes:
        """The content of `tokenizer.json`, the same for the same vocabulary."""
        return str(self._raw.to_str(pretty=False)).encode()

    @property
    def vocab_size(self) -> int:
        """Number of pieces, special tokens included."""
        return int(self._raw.get_vocab_size(with_added_tokens=True))

    @property
    def pieces(self) -> list[str]:
        """How each token is spelt, [V]; see `WORD_START`."""
        spelt = self._raw.get_vocab(with_added_tokens=True)
        return sorted(spelt, key=spelt.__getitem__)

    def encode_batch(self, texts: Iterable[str], *, offsets: bool) -> list[Encoding]:
        """Encode each of `texts` as `encode` does."""
        return [self.encode(text, offsets=offsets) for text in texts]

    def encode(self, text: str, *, offsets: bool) -> Encoding:
        """Encode a text; offsets cost time, so they are made only when asked for.

        Of a text of more than `max_tokens` the first quarter of them and the last three are read:
        reviews judge at their end. A text of nothing but white space reads as one unknown token.
        """
        if text.isascii():  # where folding now is what the library would do, and saves it words
            text = text.lower()
        most = self.max_tokens + 1
        # Ids, or an id with its start and end.
        pieces: Iterator[Any] = (
            self._pieces(_words(text)) if offsets else self._of(_first_words(text, most))
        )
        read = list(itertools.islice(pieces, most))
        truncated = len(read) == most
        if truncated:  # head and tail, in the proportion of Sun et al. 2019, section 5.3.1
            head = self.max_tokens // 4
            tail = self.max_tokens - head
            last = self._last_words(text, tail)
            pieces = self._pieces(last) if offsets else self._of(word for word, _ in last)
            read[head:] = collections.deque(pieces, maxlen=tail)
        if not offsets:
            return Encoding(np.array(read or [UNK_ID], np.int64), None, truncated)
        table = np.array(read or [(UNK_ID, 0, len(text))], np.int64)
        return Encoding(table[:, 0], table[:, 1:], truncated)

    def _of(self, words: Iterable[str]) -> Iterator[int]:
        """The id of each piece."""
        return itertools.chain.from_iterable(map(_ids, map(self._known.__getitem__, words)))

    def _pieces(self, words: Iterable[tuple[str, int]]) -> Iterator[tuple[int, int, int]]:
        """The id, start and end of each piece."""
        return (
            (piece, at + start, at + end)
            for word, at in words
            for piece, (start, end) in zip(*self._known[word], strict=True)
        )

    def _last_words(self, text: str, tail: int) -> list[tuple[str, int]]:
        """Words that hold the last `tail` pieces, and where they begin; where they are long, no
        more than that, because what is not known by heart takes the library long."""
        *before, _ = text.rsplit(maxsplit=tail)
        start = len(before[0]) if len(before) == tail else 0
        if len(text) - start <= LONGEST_KNOWN * tail:
            return list(_words(text, start))
        words: list[tuple[str, int]] = []
        pieces = 0
        for word, at in _words_backwards(text, start):
            words.append((word, at))
            pieces += len(self._known[word].ids)
            if pieces >= tail:
                break
        return words[::-1]

    def _read(self, word: str) -> Word:
        raw = self._raw.encode(word, add_special_tokens=False)
        return Word(tuple(raw.ids), tuple(_whole_characters(word, raw.offsets)))


def _first_words(text: str, most: int) -> list[str]:
    """What `_words` finds, as far as the first `most`; sooner, where no word is too long."""
    words = text.split(maxsplit=most)[:most]
    if max(map(len, words), default=0) > LONGEST_WORD:
        return [word for word, _ in itertools.islice(_words(text), most)]
    return words


def _words(text: str, start: int = 0) -> Iterator[tuple[str, int]]:
    """What stands between white space from `start` on, in parts where it is long, and where in the
    text each begins."""
    for match in _WORD.finditer(text, start):
        word = match[0]
        if len(word) <= LONGEST_WORD:  # nearly all are: nothing is to be cut
            yield word, match.start()
        else:
            for part in range(_parts(match)):
                yield _part(match, part)


def _words_backwards(text: str, start: int) -> Iterator[tuple[str, int]]:
    """The same from the end; of a long word no more is looked at than is asked for."""
    for match in reversed(list(_WORD.finditer(text, start))):
        for part in reversed(range(_parts(match))):
            yield _part(match, part)


def _parts(word: re.Match[str]) -> int:
    return -(-len(word[0]) // LONGEST_WORD)


def _part(word: re.Match[str], part: int) -> tuple[str, int]:
    text, at = word[0], part * LONGEST_WORD
    start, end = _cut(text, at), _cut(text, at + LONGEST_WORD)
    return text[start:end], word.start() + start


def _cut(word: str, at: int) -> int:
    """The boundary between two characters (Unicode UAX 29) at `at` or before, within the word."""
    if at >= len(word) or at == 0 or word.isascii():
        return min(at, len(word))
    begin = max(at - LONGEST_CHARACTER, 0)
    *_, last = _GRAPHEME.finditer(word, begin, at + 1)
    return last.start() if last.start() > begin else at


def _settled(vocabulary: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """The vocabulary in an order and with scores that depend on the texts alone.

    The library adds up in the order of a hash table, so that last digits and ties come out by
    chance; and it hands characters that it left out a ladder of lowest scores, 0.0001 apart, by
    the same chance: here they all get the lowest.
    """
    special, pieces = vocabulary[:3], vocabulary[3:]
    lowest = min(score for _, score in pieces)
    ladder = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in pieces)
    settled = [
        (piece, round(lowest if len(piece) == 1 and score <= ladder else score, 6))
        for piece, score in pieces
    ]
    return [(piece, score) for piece, score in special] + sorted(
        settled, key=lambda entry: (-entry[1], entry[0])
    )


def _whole_characters(word: str, spans: Sequence[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Grow spans to grapheme clusters (Unicode UAX 29)."""
    if word.isascii():
        return spans
    bounds = [0, *(match.end() for match in _GRAPHEME.finditer(word))]
    return [
        (bounds[bisect.bisect_right(bounds, start) - 1], bounds[bisect.bisect_left(bounds, end)])
        for start, end in spans
    ]
