import numpy as np

from training.data.rows import Rows, deduplicate, row_key, split


def rows_of(*pairs: tuple[str, int]) -> Rows:
    texts, labels = zip(*pairs, strict=True)
    targets, size = np.eye(2, dtype=np.float32)[list(labels)], len(texts)
    return Rows(list(texts), targets, np.zeros(size, np.int64), np.full(size, "en"))


def test_duplicates_are_kept_once_and_contradictions_not_at_all():
    first = rows_of(("Good!", 1), ("good", 1), ("odd", 0), ("Odd.", 1), ("fine", 1))
    second = rows_of(("GOOD", 0), ("new", 0), ("odd", 0))
    rows, dropped = deduplicate([first, second])
    assert rows.texts == ["Good!", "fine", "new"]
    assert rows.sources.tolist() == [0, 0, 1]
    assert dropped == {"contradictory": 2, "duplicate": 3}


def test_the_key_ignores_case_spacing_and_punctuation():
    # The first 16 hexadecimal digits of sha1("helloworld1").
    assert row_key("  Hello,<br />WORLD_1! ") == "c9a9f71cb5bedcfc"
    assert row_key("é") != row_key("e")
    assert row_key("ﬁlm ２") == row_key("film 2")  # compatibility forms are the same (NFKC)
    # Combining marks are no word characters to those who made the lists; NFKC has no "ṉ̃".
    assert row_key("q\u0303") == row_key("q")


def test_symbols_are_not_all_one_text():
    rows, dropped = deduplicate([rows_of(("👍", 1), ("👎", 0), ("👍 ", 1), (":-(", 0))])
    assert rows.texts == ["👍", "👎", ":-("]
    assert dropped == {"contradictory": 0, "duplicate": 1}


def test_a_text_never_changes_sides():
    rows = rows_of(*((f"text number {i}", i % 2) for i in range(2000)))
    parts = split(rows, 0.1, 0.2)
    assert sum(map(len, parts)) == 2000
    assert [round(len(part) / 2000, 1) for part in parts] == [0.7, 0.1, 0.2]
    fewer = split(rows.take(np.arange(0, 2000, 3)), 0.1, 0.2)
    for whole, part in zip(parts, fewer, strict=True):
        assert set(part.texts) <= set(whole.texts)
