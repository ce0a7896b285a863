import csv
import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from training.data.formats import DataError
from training.data.rows import row_key
from training.data.sources import SourceConfig, read_keys, read_rows, read_texts

ROOT = Path(__file__).parents[3]
PAIRS = [("Adorei, é ótimo", "good"), ('He said "no",\nthen left', "bad"), ("ok", "good")]


def write(path: Path) -> Path:
    """The pairs in the format that the name asks for."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        texts, labels = zip(*PAIRS, strict=True)
        table = pyarrow.table({"text": texts, "label": labels})
        pyarrow.parquet.write_table(table, path)
        content = path.read_bytes()
    elif kind == "jsonl":
        lines = (json.dumps({"text": t, "label": x}, ensure_ascii=False) for t, x in PAIRS)
        content = "\n".join(lines).encode()
    else:
        plain = path.with_suffix(".tmp")
        with plain.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([("text", "label"), *PAIRS])
        content = plain.read_bytes()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def read(path: Path, classes: tuple[str, ...] | None = None, **fields):
    return read_rows(SourceConfig(name="s", path=str(path), **fields), classes, Path())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("texts.csv", "text\nfine\nworse\nfine\n"),
        ("texts.csv", "text,label\nfine,\nworse,?\n"),
        ("texts.jsonl", '{"text": "fine", "label": null}\n{"text": "worse"}\n'),
    ],
)
def test_of_texts_alone_no_label_is_asked(name, content, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_texts(SourceConfig(name="texts", path=name), tmp_path) == ["fine", "worse"]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_every_format_gives_the_same_rows(tmp_path, ending, zipped):
    rows, labels, dropped = read(write(tmp_path / f"rows.{ending}{zipped}"), language="pt")
    assert rows.texts == [text for text, _ in PAIRS]
    assert labels == ("bad", "good")
    assert rows.labels.tolist() == [1, 0, 1]
    assert rows.languages.tolist() == ["pt"] * 3
    assert not dropped


def csv_file(tmp_path: Path, content: str | bytes, name: str = "rows.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_graded_label_is_a_share_of_each_class(tmp_path):
    path = csv_file(tmp_path, "text,label\nok,3\nbom,5\nruim,2\n")
    grades = {"2": {"bad": 0.8, "good": 0.2}, "3": {"bad": 0.5, "good": 0.5}, "5": "good"}
    rows, labels, _ = read(path, labels=grades)
    assert labels == ("bad", "good")
    np.testing.assert_allclose(rows.targets, [[0.5, 0.5], [0, 1], [0.8, 0.2]])
    assert rows.labels[1:].tolist() == [1, 0]
    with pytest.raises(DataError, match=r"label='3'; known are \['5'\]"):
        read(path, ("good", "fine"), labels=grades)


@pytest.mark.parametrize("shares", [{"bad": 0.5, "good": 0.4}, {"bad": 1.2, "good": -0.2}, {}])
def test_shares_of_a_label_make_one_whole(shares):
    with pytest.raises(ValidationError, match=r"'3': the shares .* do not sum to 1"):
        SourceConfig(name="s", path="rows.csv", labels={"3": shares})


def test_labels_are_named_and_left_out(tmp_path):
    path = csv_file(tmp_path, "review,stars\nbom,5\nruim,1\nmédio,3\n ,5\n")
    names = {"1": "negative", "3": False, "5": "positive"}
    rows, labels, dropped = read(path, text="review", label="stars", labels=names)
    assert (rows.texts, labels) == (["bom", "ruim"], ("negative", "positive"))
    assert dropped == {"left-out label": 1, "blank": 1}


def test_sentences_carry_their_texts_label(tmp_path):
    path = csv_file(tmp_path, "text,label\nI liked it.<br />It was good! Yes.,1\nIt was bad.,0\n")
    rows, _, _ = read(path, unit="sentences", strip_html=True)
    assert rows.texts == ["I liked it.", "It was good!", "It was bad."]
    assert rows.labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "rows.jsonl",
            '{"text": "A slow start.\\nBut what <br />an end !", "label": 1, "why": [[4, 8]]}\n'
            '{"text": "dull and loud", "label": 0, "why": [[0, 1], [2, 3]]}\n'
            '{"text": "as it is", "label": 0, "why": []}\n',
        ),
        (
            "rows.csv",
            'text,label,why\n"A slow start.\nBut what <br />an end !",1,"[[4, 8]]"\n'
            'dull and loud,0,"[[0, 1], [2, 3]]"\nas it is,0,[]\n',
        ),
    ],
)
def test_passages_stand_for_their_text(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    rows, _, _ = read(tmp_path / name, passages="why", strip_html=True)
    assert rows.texts == ["what  an end", "dull", "loud"]
    assert rows.labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("[[0, 4]]", r"line 2: why=…\[0, 4\]… is outside of a text of 3 words"),
        ("[[2, 2]]", r"line 2: why=…\[2, 2\]… is outside"),
        ("[[-1, 2]]", r"line 2: why=…\[-1, 2\]… is outside"),
        ("[[1]]", r"line 2: why='\[\[1\]\]' is no list of pairs of word offsets"),
        ("loud", "line 2: why='loud' is no list of pairs of word offsets"),
    ],
)
def test_passages_that_are_none_are_refused(tmp_path, why, reason):
    path = csv_file(tmp_path, f'text,label,why\ndull and loud,0,"{why}"\n')
    with pytest.raises(DataError, match=reason):
        read(path, passages="why")


def test_passages_and_sentences_are_one_or_the_other():
    with pytest.raises(ValidationError, match="s: give one of passages and unit='sentences'"):
        SourceConfig(name="s", path="rows.csv", unit="sentences", passages="why")


def test_frames_stand_for_the_texts_that_match(tmp_path):
    path = csv_file(tmp_path, "text,label\na fine film,1\nfine films,1\na poor one,0\n")
    turned = {"0": "good", "1": "bad"}
    frames = ("not {text}", "{text}? {No}!")
    rows, labels, dropped = read(path, matching="a .*", frames=frames, labels=turned)
    assert rows.texts == [
        "not a fine film",
        "a fine film? {No}!",
        "not a poor one",
        "a poor one? {No}!",
    ]
    assert [labels[i] for i in rows.labels] == ["bad", "bad", "good", "good"]
    assert dropped == {"not matching": 1}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"matching": "a ("}, r"'a \(' is no regular expression: missing \)"),
        ({"frames": ["not {text}", "not it"]}, r"'not it': \{text\} has to be in it, once"),
        ({"frames": ["{text} and {text}"]}, "has to be in it, once"),
    ],
)
def test_a_frame_or_pattern_that_is_none_is_refused(fields, reason):
    with pytest.raises(ValidationError, match=reason):
        SourceConfig(name="s", path="rows.csv", **fields)


@pytest.mark.parametrize(
    ("content", "labels", "reason"),
    [
        ("a,b\nx,y\n", None, r"there are \['a', 'b'\]; --text-column and --label-column name"),
        ("text;label\nx;y\n", None, r"there are \['text;label'\], separated by semicolons: a .csv"),
        ("text\tlabel\nx\ty\n", None, r"there are \['text\\tlabel'\], separated by tabs"),
        ("text,b\nx,y\n", None, r"no column 'label'; there are \['text', 'b'\]"),
        ("text,label,text\nx,y,z\n", None, "column 'text' is there 2 times"),
        ("text,label\nx,odd\n", ("a", "b"), r"line 2: label='odd'; known are \['a', 'b'\]"),
        ("text,label\nx,a\ny, \n", None, "line 3: label=' ': a label cannot be blank"),
        ("text,label\nx,a\ny,a\n", None, "every row is 'a'; at least 2 labels are needed"),
        ("text,label\nx,a\n ,b\n", None, r"every row is 'a'.* \(1 blank\)"),
        ("text,label\n", None, "no rows"),
        ("text,label\n  ,a\n,b\n", None, r"no rows \(2 blank\)"),
        ("", None, "empty file"),
        ("text,label\nx\n", None, "line 2: 1 columns, the header has 2"),
        ('text,label\n"x\ny",a\n\nno, never,b\n', None, "line 5: 3 columns, the header has 2"),
        ('text,label\nx,a\n"y" z,b\n', None, "line 3: "),
        ('text,label\nx,a\n"open,b\ny,a\n', None, "line 3: a quotation mark is never closed"),
        (
            b"text,label\nx,a\ny,b\n\xff\xfe,b\n",
            None,
            "line 4: not UTF-8: .* start byte; save",
        ),
        ("text,label\nx,a\n".encode("utf-16"), None, "line 1: not UTF-8"),
        ("text,label\nx,Bad\ny,good\nz,bad\n", None, "label has both 'Bad' and 'bad'; write them"),
        (
            "text,label\n" + "".join(f"x,{i}\n" for i in range(300)),
            None,
            "label has 300 different values, the limit is 256",
        ),
        (
            f"text,label\nx,a\ny,{'b' * 65}\n",
            None,
            "label='b+'… has 65 characters, the limit is 64",
        ),
    ],
)
def test_bad_tables_are_refused_with_place_and_value(tmp_path, content, labels, reason):
    with pytest.raises(DataError, match=rf"rows\.csv: .*{reason}"):
        read(csv_file(tmp_path, content), labels)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({"1": "good"}, r"line 3: label='2'; known are \['1'\]"),
        ({"1": "good", "2": "neutral"}, r"line 3: label='2'; known are \['1'\]"),
    ],
)
def test_names_of_labels_must_be_those_of_the_model(tmp_path, names, reason):
    path = csv_file(tmp_path, "text,label\nx,1\ny,2\n")
    with pytest.raises(DataError, match=reason):
        read(path, ("bad", "good"), labels=names)


def test_one_class_is_enough_only_where_the_classes_are_known(tmp_path):
    path = csv_file(tmp_path, "text,label\nx,1\ny,2\n")
    names = {"1": "good", "2": False}
    assert read(path, ("bad", "good"), labels=names)[0].labels.tolist() == [1]
    with pytest.raises(DataError, match=r"every row is 'good'.* \(1 left-out label\)"):
        read(path, labels=names)


def test_the_line_not_utf8_is_found_far_into_a_zipped_file(tmp_path):
    content = b"text,label\n" + b"x,a\n" * 50_000 + b"caf\xe9,b\n" + b"x,a\n" * 9
    path = csv_file(tmp_path, gzip.compress(content), "rows.csv.gz")
    with pytest.raises(DataError, match="line 50002: not UTF-8"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rows.csv.gz", b"text,label\n", "after line 1: broken gzip: Not a gzipped file"),
        (
            "rows.csv.gz",
            gzip.compress(b"text,label\n" + b"x,a\n" * 9999)[:-20],
            r"after line \d+: broken gzip",
        ),
        ("rows.csv.gz", b"", "empty file"),
        ("rows.parquet", b"nothing", "not Parquet"),
        ("rows.jsonl", b'{"text": "x", "label": 1}\n\n{oops\n', "line 3: Expecting property name"),
        ("rows.jsonl", b"[" * 200_000, "line 1: maximum recursion"),
        ("rows.jsonl", b'["x", 1]\n', "line 1: is no JSON object"),
        ("rows.jsonl", b'{"text": "x"}\n', r"line 1: no column 'label'; there are \['text'\]"),
        ("rows.jsonl", b'{"text": 5, "label": 1}\n', "line 1: text=5 is not text"),
        ("rows.jsonl", b'{"text": null, "label": 1}\n', "line 1: text=None is not text"),
        ("rows.jsonl", b'{"text": "x", "label": null}\n', "line 1: label is missing"),
        ("rows.jsonl", rb'{"text": "x\ud800", "label": 1}', "line 1: text is not Unicode text"),
        ("rows.jsonl", b"\n \n", "no rows"),
        ("rows.xlsx", b"", "format not known; use one of .csv"),
        ("rows", b"", "format not known; use one of .csv"),
    ],
)
def test_broken_files_are_refused(tmp_path, name, content, reason):
    with pytest.raises(DataError, match=rf"{re.escape(name)}: .*{reason}"):
        read(csv_file(tmp_path, content, name))


def test_parquet_without_the_columns(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"], "y": [1]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"no column 'label'; there are \['text', 'y'\]"):
        read(tmp_path / "rows.parquet")


class Table(list):
    """As much of the hub library's table as is used."""

    column_names = ("sentence", "label")


def test_a_set_on_a_hub(monkeypatch):
    asked = []

    def load_dataset(*which, split):
        asked.append((*which, split))
        return Table([{"sentence": "bom", "label": 1}, {"sentence": "ruim", "label": 0}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    source = SourceConfig(
        name="s", hub="owner/name", hub_config="pt", text="sentence", labels={"0": "n", "1": "p"}
    )
    rows, labels, _ = read_rows(source, None, Path())
    assert asked == [("owner/name", "pt", "train")]
    assert (rows.texts, rows.labels.tolist(), labels) == (["bom", "ruim"], [1, 0], ("n", "p"))
    with pytest.raises(
        DataError, match=r"hub:owner/name: no column 'text'; there are \['sentence'"
    ):
        read_rows(SourceConfig(name="s", hub="owner/name"), None, Path())


def test_the_hub_library_itself_is_understood(tmp_path):
    """Without a network: a folder named as the set would be stands for it."""
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "train.csv").write_text("text,label\nbom,1\nruim,0\n")
    code = (
        "from pathlib import Path; from training.data.sources import SourceConfig, read_rows; "
        "rows, labels, _ = read_rows(SourceConfig(name='s', hub='owner/name'), None, Path()); "
        "print(rows.texts, rows.labels.tolist(), labels)"
    )
    places = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | places,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "['bom', 'ruim'] [1, 0] ('0', '1')\n", done.stderr


def test_a_hub_out_of_reach_is_told(monkeypatch):
    def load_dataset(*_, split):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match="hub:owner/name: cannot be loaded: no route"):
        read_rows(SourceConfig(name="s", hub="owner/name"), None, Path())


@pytest.mark.parametrize("places", [{}, {"path": "a.csv", "hub": "owner/name"}])
def test_a_source_is_in_one_place(places):
    with pytest.raises(ValidationError, match="give one of path and hub"):
        SourceConfig(name="s", **places)


def test_the_first_rows_only(tmp_path):
    path = csv_file(tmp_path, "text,label\nx,a\ny,b\nz,c\n")
    assert read(path, limit=2)[0].texts == ["x", "y"]
    with pytest.raises(DataError, match="every row of the first 1 is 'a'"):
        read(path, limit=1)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        read(tmp_path / "none.csv")


def test_rows_of_an_evaluation_set_are_left_out_but_stock_phrases_stay(tmp_path):
    listed = ["This is a test sentence", "Very good"]
    content = "key,splits\n" + "".join(f"{row_key(text)},s\n" for text in listed)
    keys = read_keys(csv_file(tmp_path, content))
    table = "text,label\nthis is a TEST sentence!,1\nvery good,1\nanother sentence,0\n"
    source = SourceConfig(name="s", path=str(csv_file(tmp_path, table)))
    rows, _, dropped = read_rows(source, None, Path(), keys)
    assert (rows.texts, dropped) == (["very good", "another sentence"], {"held-out": 1})


@pytest.mark.parametrize(
    "listed", ["One of them is here. And another one is.", "One of them is here."]
)
def test_nothing_made_of_a_held_out_text_is_left(listed, tmp_path):
    table = (
        "text,label\nOne of them is here. And another one is.,1\n"
        "Not at all like these.,0\nNor like this one.,1\n"
    )
    source = SourceConfig(
        name="s",
        path=str(csv_file(tmp_path, table)),
        unit="sentences",
        frames=("{text}", "They say: {text}"),
    )
    rows, _, _ = read_rows(source, None, Path(), frozenset({row_key(listed)}))
    assert not [text for text in rows.texts if "One of them" in text]
    assert "They say: Nor like this one." in rows.texts


def test_a_rows_shares_may_be_rounded_and_a_configurations_may_not(tmp_path):
    path = tmp_path / "shares.jsonl"
    shares = {"bad": 0.2499, "good": 0.7500}
    path.write_text(json.dumps({"text": "t", "label": shares}) + "\n")
    rows, _, _ = read(path)
    np.testing.assert_allclose(rows.targets, [[0.2499, 0.75]])
    with pytest.raises(ValidationError, match="do not sum to 1"):
        SourceConfig(name="s", path=str(path), labels={"0": shares})


def test_a_row_may_say_each_class_its_share(tmp_path):
    path = tmp_path / "shares.jsonl"
    labels = [{"bad": 0.25, "good": 0.75}, {"good": 1}, "bad"]
    path.write_text("".join(json.dumps({"text": "t", "label": one}) + "\n" for one in labels))
    rows, classes, _ = read(path)
    assert classes == ("bad", "good")
    np.testing.assert_array_equal(rows.targets, [[0.25, 0.75], [0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ({"bad": 0.5, "good": 0.6}, "shares of a label are numbers that sum to 1"),
        ({"bad": -0.5, "good": 1.5}, "shares of a label are numbers that sum to 1"),
        ({"bad": "0.5", "good": 0.5}, "shares of a label are numbers that sum to 1"),
        ({"bad": None, "good": 1}, "shares of a label are numbers that sum to 1"),
        ({}, "shares of a label are numbers that sum to 1"),
        ({"fine": 1}, r"known are \['bad', 'good'\]"),
    ],
)
def test_shares_that_are_none_are_refused_where_they_stand(label, reason, tmp_path):
    path = tmp_path / "shares.jsonl"
    rows = [{"text": "t", "label": "bad"}, {"text": "t", "label": label}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=f"line 2: label={{.*{reason}"):
        read(path, ("bad", "good"))


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path, name):
    separator = "\t" if name.endswith("tsv") else ","
    content = f"text{separator}label\nfine{separator}good\nawful{separator}bad\n"
    csv_file(tmp_path, b"\xef\xbb\xbf" + content.encode(), name)
    rows, _, _ = read(tmp_path / name)
    assert rows.texts == ["fine", "awful"]
