"""A run's rows as ids, and the vocabulary that they are read with."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from model.tokenizer import Encoding
from tests.conftest import TINY, source
from training.config import ConfigError, load_config
from training.data.batches import Dataset
from training.data.rows import Rows
from training.encoding import _sample, encode_splits
from training.loop.trainer import CHECKPOINT, Ranks
from training.progress import Display
from training.splits import prepare

WHERE = Ranks(0, 1, torch.device("cpu"))


def test_a_vocabulary_that_no_run_has_begun_with_is_learnt_anew(tmp_path):
    rows = {"sources": [source()], "validation": [source()], "test": [source()]}
    config = load_config(None, TINY | rows | {"exclude_held_out": False})
    splits = prepare(config, Path(), Display(quiet=True))
    fresh = encode_splits(config, splits, tmp_path, WHERE).tokenizer
    small = load_config(None, TINY | rows | {"exclude_held_out": False, "train.vocab_size": 100})
    assert encode_splits(small, splits, tmp_path, WHERE).tokenizer.vocab_size < fresh.vocab_size
    (tmp_path / "checkpoint.pt").touch()  # of a run that has begun
    assert encode_splits(config, splits, tmp_path, WHERE).tokenizer.vocab_size < fresh.vocab_size


def test_a_vocabulary_is_learnt_from_as_much_of_each_language():
    texts = ["uma frase", *["a sentence that is longer"] * 5]
    languages = np.array(["pt", *["en"] * 5])
    rows = Rows(
        texts * 2_000, np.zeros((12_000, 2), "f4"), np.zeros(12_000), np.tile(languages, 2_000)
    )
    sample = list(_sample(rows, np.random.default_rng(0), characters=20_000))
    portuguese = sum(len(text) for text in sample if text == "uma frase")
    english = sum(len(text) for text in sample if text != "uma frase")
    assert portuguese == pytest.approx(10_000, abs=30)
    assert english == pytest.approx(10_000, abs=30)


def test_a_folder_begun_with_another_vocabulary_is_refused_before_anything_is_read_by_it(tmp_path):
    rows = {"sources": [source()], "validation": [source()], "test": [source()]}
    config = load_config(None, TINY | rows | {"exclude_held_out": False})
    splits = prepare(config, Path(), Display(quiet=True))
    learnt = encode_splits(config, splits, tmp_path, WHERE).tokenizer.to_json()
    (tmp_path / CHECKPOINT).touch()
    assert encode_splits(config, splits, tmp_path, WHERE, learnt).tokenizer.to_json() == learnt
    other = learnt.replace(b'"version":"1.0"', b'"version": "1.0"')
    with pytest.raises(ConfigError, match="--run-dir .*: what was begun there has another vocab"):
        encode_splits(config, splits, tmp_path, WHERE, other)


def test_each_validation_set_counts_as_much_as_the_next(tmp_path):
    rows = {"sources": [source()], "validation": [source()], "test": [source()]}
    config = load_config(None, TINY | rows | {"exclude_held_out": False})
    encoded = encode_splits(config, prepare(config, Path(), Display(quiet=True)), tmp_path, WHERE)
    (only,) = encoded.validation.values()
    few = Dataset.encode([Encoding(only.ids[:3], None, False)] * 2, only.targets[:2])
    both = dataclasses.replace(encoded, validation={"all": only, "few": few})
    assert len(both.truth) == len(both.weights) == len(only) + 2
    assert both.weights[: len(only)].sum() == pytest.approx(both.weights[len(only) :].sum())
