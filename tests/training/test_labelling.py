"""Labels by bundles, from texts to a file that `fit` reads."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from model.bundle import read_bundle
from training.__main__ import main
from training.config import ConfigError
from training.data.sources import SourceConfig, read_rows
from training.labelling import Ensemble

TEXTS = "text\nA wonderful story. A perfect ending.\nO bolo estava seco<br />e doce demais.\n"


@pytest.fixture
def texts(tmp_path) -> Path:
    path = tmp_path / "texts.csv"
    path.write_text(TEXTS, encoding="utf-8")
    return path


def label(bundles, texts, out, *options) -> int:
    return main(["label", *map(str, bundles), "--texts", str(texts), "--out", str(out), *options])


def lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Failing:
    """Predicts so often, and then fails."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, dataset) -> np.ndarray:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of memory")
        return np.full((len(dataset), 2), 0.5, "f4")


def test_several_bundles_say_the_mean_of_what_each_says(bundle, monkeypatch):
    said = iter(np.array([[[0.9, 0.1]], [[0.4, 0.6]]], "f4"))
    monkeypatch.setattr("training.labelling.Graph.predict", lambda *_: next(said))
    mean = Ensemble.of([bundle, bundle]).probabilities(["text"])
    np.testing.assert_allclose(mean, [[0.65, 0.35]], rtol=1e-6)


def test_what_is_labelled_is_a_source_to_train_on(tiny_bundle, texts, tmp_path):
    out = tmp_path / "labelled.jsonl.gz"
    assert label([tiny_bundle, tiny_bundle], texts, out, "--strip-html", "--quiet") == 0
    source = SourceConfig(name="labelled", path=str(out))
    labels = read_bundle(tiny_bundle).manifest.labels
    rows, _, dropped = read_rows(source, labels, Path())
    assert rows.texts[1] == "O bolo estava seco e doce demais."
    assert not dropped
    own = Ensemble.of([read_bundle(tiny_bundle)]).probabilities(rows.texts)
    np.testing.assert_allclose(rows.targets, own, atol=1e-4)
    found, classes, _ = read_rows(source, None, Path())
    assert classes == tuple(sorted(labels))
    assert found.targets.shape == rows.targets.shape


def test_sentences_are_labelled_one_by_one(tiny_bundle, texts, tmp_path):
    out = tmp_path / "labelled.jsonl.gz"
    assert label([tiny_bundle], texts, out, "--unit", "sentences", "--limit", "1", "--quiet") == 0
    found = lines(out)
    assert [row["text"] for row in found] == ["A wonderful story.", "A perfect ending."]
    assert all(set(row["label"]) == {"negative", "positive"} for row in found)
    assert all(sum(row["label"].values()) == pytest.approx(1, abs=3e-6) for row in found)


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("labelled.csv", "has to end in .jsonl.gz"),
        ("none/labelled.jsonl.gz", "there is no folder"),
    ],
)
def test_a_file_that_cannot_be_is_refused_before_the_work(
    out, reason, tiny_bundle, texts, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("training.labelling.Graph.predict", None)
    assert label([tiny_bundle], texts, tmp_path / out) == 2
    assert reason in capsys.readouterr().err


def test_texts_are_labelled_some_at_a_time(tiny_bundle, texts, tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole.jsonl.gz", tmp_path / "parts.jsonl.gz"
    assert label([tiny_bundle], texts, whole) == 0
    monkeypatch.setattr("training.labelling.AT_ONCE", 1)
    assert label([tiny_bundle], texts, parts) == 0
    assert "2/2" in capsys.readouterr().err
    assert lines(parts) == lines(whole)


def test_labels_of_before_stay_until_all_are_new(tiny_bundle, texts, tmp_path, monkeypatch):
    out = tmp_path / "labelled.jsonl.gz"
    assert label([tiny_bundle], texts, out, "--quiet") == 0
    before = out.read_bytes()
    monkeypatch.setattr("training.labelling.AT_ONCE", 1)
    monkeypatch.setattr("training.labelling.Graph.predict", Failing(after=1))
    with pytest.raises(RuntimeError, match="out of memory"):
        label([tiny_bundle], texts, out, "--quiet")
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.glob("labelled*")] == [out.name]


@pytest.mark.parametrize(("unit", "count"), [("text", 0), ("sentences", 1)])
def test_nothing_to_label_is_refused(unit, count, tiny_bundle, tmp_path, capsys):
    texts, out = tmp_path / "texts.csv", tmp_path / "labelled.jsonl.gz"
    texts.write_text("text\n" + "Too short\n" * count, encoding="utf-8")
    assert label([tiny_bundle], texts, out, "--unit", unit) == 2
    said = f"--texts: {count} texts have nothing to label, --unit {unit}"
    assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (["--limit", "1"], "A wonderful"),
        (["--skip", "1"], "O bolo"),
        (["--skip", "1", "--limit", "9"], "O bolo"),
    ],
)
def test_a_part_of_the_texts_is_labelled(options, first, tiny_bundle, texts, tmp_path):
    out = tmp_path / "labelled.jsonl.gz"
    assert label([tiny_bundle], texts, out, "--quiet", *options) == 0
    (row,) = lines(out)
    assert row["text"].startswith(first)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--limit", "0"], "--limit 0: must be 1 or more"),
        (["--skip", "-1"], "--skip -1: must be 0 or more"),
        (["--skip", "2"], "--texts: 0 texts have nothing to label, --unit text"),
    ],
)
def test_a_part_that_is_none_is_refused(options, reason, tiny_bundle, texts, tmp_path, capsys):
    assert label([tiny_bundle], texts, tmp_path / "l.jsonl.gz", *options) == 2
    assert reason in capsys.readouterr().err


def test_bundles_of_other_classes_are_no_ensemble():
    one, other = (
        SimpleNamespace(path=name, manifest=SimpleNamespace(labels=labels))
        for name, labels in (("a", ("bad", "good")), ("b", ("good", "bad")))
    )
    with pytest.raises(ConfigError, match=r"b: labels=\['good', 'bad'\], and a has"):
        Ensemble.of([one, other])
