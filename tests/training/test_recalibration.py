import csv

import numpy as np
import pytest

from model.bundle import read_bundle
from tests.conftest import REVIEWS
from training.__main__ import main
from training.data.rows import Rows
from training.encoding import encode
from training.evaluation.calibration import cross_calibrated
from training.evaluation.metrics import measure, predict_bundle


@pytest.fixture(scope="module")
def reviews() -> list[list[str]]:
    with REVIEWS.open(encoding="utf-8", newline="") as file:
        return [[row["text"], row["label"]] for row in csv.DictReader(file)]


def table(folder, rows):
    path = folder / "mine.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *rows])
    return path


def wrong(rows, every):
    """One label in so many is the other, and the bundle knows the rows by heart."""
    other = {"negative": "positive", "positive": "negative"}
    return [
        [text, other[label] if i % every == 0 else label] for i, (text, label) in enumerate(rows)
    ]


def one_in_four_wrong(rows):
    """The bundle is right in three quarters of them and much surer than that."""
    return wrong(rows, 4)


def encoded(bundle, texts):
    size = len(texts)
    rows = Rows(texts, np.eye(2, dtype="f4")[[0] * size], np.zeros(size, int), np.full(size, "pt"))
    return encode(rows, bundle.tokenizer)


def test_it_is_as_sure_as_it_is_right_and_answers_as_before(tiny_bundle, reviews, tmp_path, capsys):
    data, out = table(tmp_path, one_in_four_wrong(reviews)), tmp_path / "calibrated"
    assert main(["calibrate", str(tiny_bundle), str(data), "--out", str(out)]) == 0
    before, after = read_bundle(tiny_bundle), read_bundle(out)
    rows = encoded(before, [text for text, _ in reviews])
    was, now = (predict_bundle(bundle, rows) for bundle in (before, after))
    assert was.max(axis=1).mean() > 0.85
    assert now.max(axis=1).mean() == pytest.approx(0.75, abs=0.03)
    logits = [predict_bundle(bundle, rows, "logits") for bundle in (before, after)]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5)
    manifest = after.manifest
    assert manifest.temperature > 1.5 * before.manifest.temperature
    assert (now.max(axis=1) >= manifest.abstention_threshold).mean() == pytest.approx(0.8, abs=0.02)
    assert manifest.version == f"{before.manifest.version}+calibrated"
    assert list(manifest.metrics) == ["mine", "language und"], "others were of another temperature"
    assert manifest.metrics["mine"]["ece"] < 0.1
    labels = np.array([["negative", "positive"].index(y) for _, y in one_in_four_wrong(reviews)])
    apart = measure(cross_calibrated(logits[0], labels), labels)  # of rows that had no say
    assert manifest.metrics["mine"]["nll"] == pytest.approx(apart["nll"], rel=1e-4)
    assert manifest.sources == before.manifest.sources
    card = (out / "report" / "model_card.md").read_text(encoding="utf-8")
    assert before.fingerprint in card
    said = capsys.readouterr().err
    assert f"temperature {before.manifest.temperature:.2f} to {manifest.temperature:.2f}" in said


def test_weights_in_half_precision_stay_so(tiny_bundle, reviews, tmp_path):
    data = table(tmp_path, one_in_four_wrong(reviews))
    for source, out in ((tiny_bundle, "once"), (tmp_path / "once", "twice")):
        assert main(["calibrate", str(source), str(data), "--out", str(tmp_path / out)]) == 0
    once, twice = (read_bundle(tmp_path / name) for name in ("once", "twice"))
    assert twice.manifest.version == once.manifest.version
    assert twice.manifest.temperature == pytest.approx(once.manifest.temperature, rel=1e-3)
    kinds = [
        {
            tensor.name: tensor.data_type
            for tensor in bundle.graph.graph.initializer
            if not tensor.name.startswith("val_")  # a temperature of 1 needs no division
        }
        for bundle in (read_bundle(tiny_bundle), once, twice)
    ]
    assert kinds[0] == kinds[1] == kinds[2]


def test_fifty_rows_are_enough_and_the_version_is_the_one_given(tiny_bundle, reviews, tmp_path):
    data, out = table(tmp_path, one_in_four_wrong(reviews[:50])), tmp_path / "calibrated"
    command = ["calibrate", str(tiny_bundle), str(data), "--out", str(out), "--version", "7.1"]
    assert main(command) == 0
    before, after = (read_bundle(path).manifest for path in (tiny_bundle, out))
    assert after.version == "7.1"
    told = {"name", "labels", "languages", "sources", "license"}
    assert after.model_dump(include=told) == before.model_dump(include=told)


def test_a_version_that_no_bundle_may_have_is_refused(tiny_bundle, tmp_path, capsys):
    out = tmp_path / "calibrated"
    command = ["calibrate", str(tiny_bundle), str(REVIEWS), "--out", str(out), "--version", "a b"]
    assert main(command) == 2
    assert "version='a b'" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows[:49], "mine: 49 rows; a temperature takes 50 at least"),
        (lambda rows: rows, "rows are answered right; that does not say how sure to be"),
        (lambda rows: wrong(rows, 1), "rows are answered wrong; that does not say how sure to be"),
        (lambda rows: [[text, "great"] for text, _ in rows], "great"),
    ],
)
def test_rows_that_say_nothing_are_refused(change, reason, tiny_bundle, reviews, tmp_path, capsys):
    data, out = table(tmp_path, change(reviews)), tmp_path / "calibrated"
    assert main(["calibrate", str(tiny_bundle), str(data), "--out", str(out)]) == 2
    assert reason in capsys.readouterr().err
    assert not out.exists()
