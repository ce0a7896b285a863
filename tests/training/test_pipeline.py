"""One run, step by step."""

import csv
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import REVIEWS, TINY, source
from training.config import ConfigError, RunConfig, load_config
from training.data.batches import Dataset
from training.data.sources import SourceConfig, read_rows
from training.encoding import encode
from training.evaluation.calibration import fit_temperature
from training.evaluation.metrics import Graph, measure
from training.loop.trainer import Ranks
from training.pipeline import doubts_of, fit
from training.progress import Display

WHERE = Ranks(0, 1, torch.device("cpu"))
CONFIG = RunConfig.model_validate({"sources": [{"name": "s", "path": "-"}]})


@pytest.mark.parametrize("inside", ["", "run"])
def test_a_run_is_not_kept_where_the_bundle_is_to_be(inside, tmp_path):
    out = tmp_path / "bundle"
    with pytest.raises(ConfigError, match="--run-dir .*: must not be in the folder of the bundle"):
        fit(CONFIG, Path(), out / inside, out, WHERE, Display(quiet=True))
    assert not out.exists()


def test_texts_that_a_linear_model_cannot_learn_from_are_trained_on_all_the_same(tmp_path, capsys):
    signs = [chr(0x4E00 + i) for i in range(12)]
    words = ("".join(some) for some in itertools.product(signs, repeat=3))  # and no spaces
    rows = "".join(f"{word},{i % 2}\n" for i, word in enumerate(words))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows, encoding="utf-8")
    rows_of = {"sources": [{"name": "s", "path": "rows.csv"}], "validation_share": 0.01}
    config = load_config(None, TINY | rows_of)
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"baseline": True, "max_steps": 1})}
    )
    bundle = fit(config, tmp_path, tmp_path / "run", tmp_path / "bundle", WHERE, Display())
    said = capsys.readouterr().err
    assert "no linear baseline: the texts have no words in common" in said
    assert re.search("warning: validation: .* rows; a temperature takes 50 at least, so", said)
    assert all("linear_accuracy" not in of_set for of_set in bundle.manifest.metrics.values())


def test_a_vocabulary_too_small_for_the_characters_is_refused(tmp_path):
    rows = "".join(f"{chr(0x4E00 + i)},{i % 2}\n" for i in range(1000))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows, encoding="utf-8")
    config = load_config(None, TINY | {"sources": [{"name": "s", "path": "rows.csv"}]})
    with pytest.raises(ConfigError, match=r"train\.vocab_size=400: .*not large enough"):
        fit(config, tmp_path, tmp_path / "run", tmp_path / "bundle", WHERE, Display(quiet=True))


def test_a_bundle_is_calibrated_on_validation_rows_and_measured_as_it_answers(tmp_path):
    with REVIEWS.open(encoding="utf-8", newline="") as file:
        held = list(csv.DictReader(file))[:60]
    for row in held[:6]:
        row["label"] = {"positive": "negative", "negative": "positive"}[row["label"]]
    with (tmp_path / "held.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *([r["text"], r["label"]] for r in held)])
    at = source(tmp_path / "held.csv")
    sets = {"sources": [source()], "validation": [at], "test": [at]}
    config = load_config(None, TINY | sets | {"exclude_held_out": False, "train.baseline": False})
    bundle = fit(config, Path(), tmp_path / "run", tmp_path / "bundle", WHERE, Display(quiet=True))
    rows, _, _ = read_rows(SourceConfig(**at), bundle.manifest.labels, Path())
    encoded = encode(rows, bundle.tokenizer)
    graph = Graph(bundle)
    temperature = fit_temperature(graph.predict(encoded, "logits"), rows.labels)
    assert bundle.manifest.temperature == pytest.approx(temperature, rel=1e-3)
    assert 0.5 < bundle.manifest.abstention_threshold < 1
    measured = measure(graph.predict(encoded), rows.labels)
    told = bundle.manifest.metrics["held"]
    for name in ("accuracy", "ece", "nll"):
        assert told[name] == pytest.approx(measured[name], abs=1e-4), name


def test_rows_all_answered_right_leave_a_bundle_as_sure_as_it_has_learnt_to_be(bundle):
    assert bundle.manifest.metrics["reviews"]["accuracy"] == 1
    assert bundle.manifest.temperature == 1
    assert bundle.manifest.abstention_threshold is None
    unknown = bundle.tokenizer.encode_batch(["xyz", "12", "Não é bom"], offsets=False)
    answers = Graph(bundle).predict(Dataset.encode(unknown, np.eye(2, dtype="f4")[[0, 0, 0]]))
    assert answers.max() < 0.99
    card = (bundle.path / "report" / "model_card.md").read_text("utf-8")
    assert "rows are answered right; that does not say how sure to be" in card
    assert "--start-from service/bundle" in card
    assert "realce-train calibrate" in card


@pytest.mark.parametrize(
    ("answers", "labels", "doubt"),
    [
        ([0, 1] * 30, [0, 1] * 29 + [0, 0], None),
        ([0] * 60, [0, 1] * 30, "every row gets the same answer"),
        ([0] * 60, [0] * 40 + [1] * 20, "every row gets the same answer"),
        ([0, 1] * 30, [0] * 40 + [1] * 20, "50.0% of the rows are answered right.*66.7%"),
        ([1, *[0] * 58, 1], [0] * 40 + [1] * 20, "right.*frequent label.*66.7%"),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_a_model_that_is_no_better_than_one_answer_is_doubted(answers, labels, doubt, begun):
    logits = np.eye(2, dtype=np.float32)[answers]
    doubts = list(doubts_of(logits, np.array(labels), begun=begun))
    assert len(doubts) == (doubt is not None)
    for one in doubts:
        assert re.search(f"{doubt}.*more rows help", one)
        assert ("--start-from service/bundle" in one) != begun
