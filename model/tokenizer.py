"""Text to token ids and back to the characters they came from."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import regex
from tokenizers import (
    Encoding as RawEncoding,
)
from tokenizers import (
    Tokenizer as RawTokenizer,
)
from tokenizers import models, normalizers, pre_tokenizers, trainers

PAD, UNK, MASK = "[PAD]", "[UNK]", "[MASK]"
PAD_ID, UNK_ID, MASK_ID = 0, 1, 2

_GRAPHEME = regex.compile(r"\X")


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text as the network reads it.

    `input_ids` [S] int64, S >= 1. `offsets` [S, 2]: start and end of each token in Unicode code
    points of the text as given, grown to whole grapheme clusters; None where not asked for.
    `truncated` is True when the text was longer than `max_tokens` and its end was left out.
    """

    input_ids: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64] | None
    truncated: bool


class Tokenizer:
    """Subword tokenizer (Unigram, Kudo 2018) over NFC text, accents kept, case folded.

    Words keep the space before them as a mark, so that offsets stay exact. Truncation is set once,
    here; padding belongs to whoever forms the batch.
    """

    def __init__(self, raw: RawTokenizer, max_tokens: int) -> None:
        for token, token_id in ((PAD, PAD_ID), (UNK, UNK_ID), (MASK, MASK_ID)):
            if raw.token_to_id(token) != token_id:
                raise ValueError(
                    f"tokenizer: {token} must have id {token_id}, has {raw.token_to_id(token)}"
                )
        raw.no_padding()
        # A caller who writes "[PAD]" means the word.
        raw.encode_special_tokens = True
        # One more than the limit, so that a cut is seen; no text pays for more than that.
        raw.enable_truncation(max_tokens + 1)
        self._raw = raw
        self.max_tokens = max_tokens

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int, max_tokens: int) -> Self:
        """Learn a vocabulary of at most `vocab_size` pieces from `texts`."""
        raw = RawTokenizer(models.Unigram())
        raw.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.WhitespaceSplit(),
                pre_tokenizers.Metaspace(prepend_scheme="always"),
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
        raw.train_from_iterator(texts, trainer)
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
        raw = RawTokenizer.from_str(self._raw.to_str())
        raw.no_truncation()
        return str(raw.to_str(pretty=False)).encode()

    @property
    def vocab_size(self) -> int:
        """Number of pieces, special tokens included."""
        return int(self._raw.get_vocab_size(with_added_tokens=True))

    def encode_batch(self, texts: Sequence[str], *, offsets: bool) -> list[Encoding]:
        """Encode `texts`; offsets cost time, so they are made only when asked for.

        The library lets go of the interpreter lock meanwhile. A text of nothing but white space
        reads as one unknown token.
        """
        encode = self._raw.encode_batch if offsets else self._raw.encode_batch_fast
        encodings = encode(list(texts), add_special_tokens=False)
        return [
            self._encoding(text, raw, offsets) for text, raw in zip(texts, encodings, strict=True)
        ]

    def _encoding(self, text: str, raw: RawEncoding, offsets: bool) -> Encoding:
        ids = raw.ids
        if not ids:
            span = np.array([[0, len(text)]], dtype=np.int64) if offsets else None
            return Encoding(np.array([UNK_ID], dtype=np.int64), span, truncated=False)
        kept = min(len(ids), self.max_tokens)
        return Encoding(
            input_ids=np.array(ids[:kept], dtype=np.int64),
            offsets=_whole_characters(text, raw.offsets[:kept]) if offsets else None,
            truncated=len(ids) > self.max_tokens,
        )


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


def _whole_characters(text: str, spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Grow spans [S, 2] to grapheme clusters (Unicode UAX 29) and off any white space they hold."""
    offsets = np.array(spans, dtype=np.int64).reshape(-1, 2)
    for row in offsets:
        start, end = row
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        row[:] = start, end
    if text.isascii():
        return offsets
    bounds = np.array([0, *(match.end() for match in _GRAPHEME.finditer(text))], dtype=np.int64)
    starts = bounds[np.searchsorted(bounds, offsets[:, 0], side="right") - 1]
    ends = bounds[np.searchsorted(bounds, offsets[:, 1], side="left")]
    return np.stack([starts, ends], axis=1)
