import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer

from model.tokenizer import (
    LONGEST_KNOWN,
    MASK_ID,
    PAD_ID,
    UNK_ID,
    WORD_START,
    Tokenizer,
    _words,
    _words_backwards,
)

TEXTS = [
    "O café estava ótimo, não gostei do pão.",
    "The coffee was great, I did not like the bread!",
    "Ação, coração e emoção em 2026.",
    "not good not bad, good bad café pão",
] * 5
TOKENIZER = Tokenizer.train(TEXTS, vocab_size=120, max_tokens=12)
FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
LONG_TOKENIZER = Tokenizer.from_json(TOKENIZER.to_json(), max_tokens=1000)


def pieces(text: str) -> list[str]:
    (encoding,) = TOKENIZER.encode_batch([text], offsets=True)
    assert encoding.offsets is not None
    return [text[start:end] for start, end in encoding.offsets]


def test_offsets_cover_every_word():
    text = "O café\tnão\nbom"
    (encoding,) = TOKENIZER.encode_batch([text], offsets=True)
    covered = {i for start, end in encoding.offsets for i in range(start, end)}
    assert covered == {i for i, character in enumerate(text) if not character.isspace()}


def test_a_token_is_spelt_as_it_is_read():
    ids = TOKENIZER.encode("O café", offsets=False).input_ids
    assert "".join(TOKENIZER.pieces[i] for i in ids) == f"{WORD_START}o{WORD_START}café"
    assert len(TOKENIZER.pieces) == TOKENIZER.vocab_size


def test_accents_count_and_their_spelling_does_not():
    composed, decomposed, bare = (
        TOKENIZER.encode_batch([text], offsets=False)[0].input_ids.tolist()
        for text in ("café", unicodedata.normalize("NFD", "café"), "cafe")
    )
    assert composed == decomposed
    assert composed != bare


@pytest.mark.parametrize("cluster", ["👩‍👩‍👧", "🇧🇷", "e\u0301", "👍🏽", "नि", "q\u0303"])
def test_offsets_never_split_what_is_read_as_one_character(cluster):
    text = f"bom {cluster} pão"
    assert cluster in pieces(text)
    assert all(cluster in piece or not set(piece) & set(cluster) for piece in pieces(text))


@given(st.text(min_size=1, max_size=40))
def test_any_text_encodes_within_its_bounds(text):
    (encoding,) = TOKENIZER.encode_batch([text], offsets=True)
    assert 1 <= len(encoding.input_ids) <= 12
    assert ((encoding.input_ids >= 0) & (encoding.input_ids < TOKENIZER.vocab_size)).all()
    assert (encoding.offsets[:, 0] <= encoding.offsets[:, 1]).all()
    assert encoding.offsets.max() <= len(text)


def test_offsets_change_no_ids():
    (with_offsets,) = TOKENIZER.encode_batch(["café bom, não?"], offsets=True)
    (without,) = TOKENIZER.encode_batch(["café bom, não?"], offsets=False)
    assert with_offsets.input_ids.tolist() == without.input_ids.tolist()
    assert without.offsets is None


@given(st.lists(st.text("aZé'.,!-3İΣ\u0301▁👍🏽[K", min_size=1, max_size=9), max_size=9))
def test_reading_word_by_word_is_reading_the_whole(words):
    text = " ".join(words)
    whole = RawTokenizer.from_str(TOKENIZER.to_json().decode())
    whole.encode_special_tokens = True
    expected = whole.encode(text, add_special_tokens=False)
    encoding = LONG_TOKENIZER.encode(text, offsets=True)
    assert encoding.input_ids.tolist() == (expected.ids or [UNK_ID])
    assert LONG_TOKENIZER.encode(text, offsets=False).input_ids.tolist() == (
        expected.ids or [UNK_ID]
    )


@pytest.mark.parametrize("text", ["", " ", "a", "x" * 257, f"bom {'x' * 600} mau", "bom " * 40])
@pytest.mark.parametrize("space", [chr(i) for i in range(0x3001) if chr(i).isspace()])
def test_words_end_at_any_white_space(text, space):
    text = text.replace(" ", space)
    plain, whole = (LONG_TOKENIZER.encode(text, offsets=one).input_ids for one in (False, True))
    assert plain.tolist() == whole.tolist()


def test_a_word_without_end_is_read_in_parts():
    ids = LONG_TOKENIZER.encode("." * 600, offsets=False).input_ids.tolist()
    word, stop = ids[:2]
    assert ids == [*[word, *[stop] * 64] * 9, word, *[stop] * 24]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x" * 64 + " y", [("x" * 64, 0), ("y", 65)]),
        ("x" * 65, [("x" * 64, 0), ("x", 64)]),
        ("x" * 63 + "é" + "y", [("x" * 63 + "é", 0), ("y", 64)]),
        ("x" * 63 + "e\u0301y", [("x" * 63, 0), ("e\u0301y", 63)]),
        (" " + "x" * 62 + FAMILY + "y", [("x" * 62, 1), (FAMILY + "y", 63)]),
        ("e" + "\u0301" * 70, [("e" + "\u0301" * 63, 0), ("\u0301" * 7, 64)]),  # no character
    ],
)
def test_a_long_word_is_cut_between_characters(text, words):
    assert list(_words(text)) == words


@given(st.text(alphabet="ae\u0301 \U0001f469\u200d\U0001f467\u4e2d", max_size=400))
def test_parts_are_the_same_from_the_end_and_leave_nothing_out(text):
    words = list(_words(text))
    assert list(_words_backwards(text, 0)) == words[::-1]
    assert "".join(word for word, _ in words) == "".join(text.split())
    assert all(text[at : at + len(word)] == word for word, at in words)
    assert all(len(word) <= 64 + 32 for word, _ in words)


def test_what_is_kept_of_words_is_bounded(monkeypatch):
    monkeypatch.setattr("model.tokenizer.KNOWN_WORDS", 8)
    tokenizer = Tokenizer.from_json(TOKENIZER.to_json(), max_tokens=12)
    before = [tokenizer.encode(f"bom{i}", offsets=False).input_ids.tolist() for i in range(20)]
    tokenizer.encode("x" * (LONGEST_KNOWN + 1), offsets=False)
    assert 0 < len(tokenizer._known) <= 8
    again = [tokenizer.encode(f"bom{i}", offsets=False).input_ids.tolist() for i in range(20)]
    assert again == before


@pytest.mark.parametrize(("stops", "truncated"), [(11, False), (12, True), (100, True)])
def test_truncation_is_told(stops, truncated):
    (encoding,) = TOKENIZER.encode_batch(["." * stops], offsets=False)  # the word mark, then stops
    assert (len(encoding.input_ids), encoding.truncated) == (12, truncated)


def test_blank_text_reads_as_unknown():
    (encoding,) = TOKENIZER.encode_batch([" \n"], offsets=True)
    assert encoding.input_ids.tolist() == [UNK_ID]
    assert encoding.offsets.tolist() == [[0, 2]]
    assert not encoding.truncated


@pytest.mark.parametrize("text", ["[MASK]", "[PAD]", "café [MASK]", "café [PAD]"])
def test_special_tokens_are_not_written_by_users(text):
    """What has an accent keeps its capitals until the library folds them."""
    assert not {MASK_ID, PAD_ID} & set(TOKENIZER.encode(text, offsets=False).input_ids.tolist())


def test_reads_back_what_it_wrote():
    again = Tokenizer.from_json(TOKENIZER.to_json(), max_tokens=12)
    assert again.to_json() == TOKENIZER.to_json()
    for first, second in zip(
        TOKENIZER.encode_batch([*TEXTS, "zebra 👍"], offsets=True),
        again.encode_batch([*TEXTS, "zebra 👍"], offsets=True),
        strict=True,
    ):
        assert first.input_ids.tolist() == second.input_ids.tolist()
        assert first.offsets.tolist() == second.offsets.tolist()


def test_the_same_texts_give_the_same_tokenizer():
    for _ in range(4):
        again = Tokenizer.train(TEXTS, vocab_size=120, max_tokens=12)
        assert again.to_json() == TOKENIZER.to_json()
    other = Tokenizer.train(TEXTS[:1], vocab_size=120, max_tokens=12)
    assert other.to_json() != TOKENIZER.to_json()


@given(st.text(alphabet="bom ão.é\n", min_size=1, max_size=120))
def test_a_long_text_is_read_at_its_head_and_its_tail(text):
    whole, cut = (one.encode(text, offsets=True) for one in (LONG_TOKENIZER, TOKENIZER))
    kept = list(range(len(whole.input_ids)))
    if len(kept) > 12:
        kept = kept[:3] + kept[-9:]
    assert cut.truncated is (len(whole.input_ids) > 12)
    assert cut.input_ids.tolist() == whole.input_ids[kept].tolist()
    assert cut.offsets.tolist() == whole.offsets[kept].tolist()
    assert cut.input_ids.tolist() == TOKENIZER.encode(text, offsets=False).input_ids.tolist()


@pytest.mark.parametrize("space", ["", " "])
def test_of_long_words_no_more_is_read_than_is_kept(space):
    """They are not known by heart, and each takes the library long."""
    text = space.join(["good" * 64] * 500)  # each a word as long as a word is read
    whole = LONG_TOKENIZER.encode("good" * 64, offsets=False).input_ids[-9:]
    read, fresh = [], Tokenizer.from_json(TOKENIZER.to_json(), max_tokens=12)
    taken = fresh._read
    fresh._known._read = lambda word: read.append(word) or taken(word)
    encoding = fresh.encode(text, offsets=True)
    assert encoding.truncated
    assert encoding.input_ids[3:].tolist() == whole.tolist()
    assert encoding.offsets[-1, 1] == len(text)
    assert len(read) < 10


def test_case_and_a_letter_that_grows_in_lower_case_leave_offsets_exact():
    text = "CAFÉ İ pão"  # İ is two code points in lower case
    (encoding,) = TOKENIZER.encode_batch([text], offsets=True)
    covered = {i for start, end in encoding.offsets for i in range(start, end)}
    assert covered == {i for i, character in enumerate(text) if character != " "}


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b"\xff", b'{"version": "1.0"}'])
def test_other_contents_are_refused(content: bytes):
    with pytest.raises(ValueError, match="not a tokenizer"):
        Tokenizer.from_json(content, max_tokens=12)
