import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import MASK_ID, PAD_ID, UNK_ID, Tokenizer

TEXTS = [
    "O café estava ótimo, não gostei do pão.",
    "The coffee was great, I did not like the bread!",
    "Ação, coração e emoção em 2026.",
    "not good not bad, good bad café pão",
] * 5
TOKENIZER = Tokenizer.train(TEXTS, vocab_size=120, max_tokens=12)


def pieces(text: str) -> list[str]:
    (encoding,) = TOKENIZER.encode_batch([text], offsets=True)
    assert encoding.offsets is not None
    return [text[start:end] for start, end in encoding.offsets]


def test_offsets_cover_every_word():
    text = "O café\tnão\nbom"
    (encoding,) = TOKENIZER.encode_batch([text], offsets=True)
    covered = {i for start, end in encoding.offsets for i in range(start, end)}
    assert covered == {i for i, character in enumerate(text) if not character.isspace()}


def test_accents_count_and_their_spelling_does_not():
    composed, decomposed, bare = (
        TOKENIZER.encode_batch([text], offsets=False)[0].input_ids.tolist()
        for text in ("café", unicodedata.normalize("NFD", "café"), "cafe")
    )
    assert composed == decomposed
    assert composed != bare


@pytest.mark.parametrize("cluster", ["👩‍👩‍👧", "🇧🇷", "é", "👍🏽", "नि"])
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


@pytest.mark.parametrize(("stops", "truncated"), [(11, False), (12, True), (100, True)])
def test_truncation_is_told(stops, truncated):
    (encoding,) = TOKENIZER.encode_batch(["." * stops], offsets=False)  # the word mark, then stops
    assert (len(encoding.input_ids), encoding.truncated) == (12, truncated)


def test_blank_text_reads_as_unknown():
    (encoding,) = TOKENIZER.encode_batch([" \n"], offsets=True)
    assert encoding.input_ids.tolist() == [UNK_ID]


def test_special_tokens_are_not_written_by_users():
    (encoding,) = TOKENIZER.encode_batch(["[MASK] [PAD]"], offsets=False)
    assert not {MASK_ID, PAD_ID} & set(encoding.input_ids.tolist())


def test_reads_back_what_it_wrote(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text(TOKENIZER.to_json(), encoding="utf-8")
    again = Tokenizer.load(path, max_tokens=12)
    assert again.to_json() == TOKENIZER.to_json()


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"version": "1.0"}'])
def test_other_files_are_refused(tmp_path: Path, content: str):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.load(path, max_tokens=12)
