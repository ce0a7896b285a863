"""One run, step by step."""

import numpy as np
import pytest
import torch

from model.tokenizer import Encoding
from tests.networks import random_network
from training.batches import Dataset
from training.config import RunConfig
from training.evaluate import predict
from training.pipeline import Encoded, _sample, with_linear_part
from training.rows import Rows
from training.train import Ranks

SHAPE = {"d_model": 24, "layers": 2, "heads": 4, "d_ff": 32, "max_tokens": 16}


def test_a_linear_part_joins_with_the_share_that_it_earns():
    generator = np.random.default_rng(0)

    def rows(count: int) -> Dataset:
        labels = np.arange(count) % 2
        drawn = generator.integers(5, 60, (count, 6))
        drawn[:, 2] = 3 + labels
        return Dataset.encode(
            [Encoding(ids, None, False) for ids in drawn], np.eye(2, dtype=np.float32)[labels]
        )

    network, train, held_out = random_network(classes=2, **SHAPE), rows(80), rows(40)
    config = RunConfig.model_validate(
        {
            "sources": [{"name": "s", "path": "-"}],
            "network": SHAPE | {"ngrams": 64},
            "train": {"crop_tokens": 16},
        }
    )
    where = Ranks(0, 1, torch.device("cpu"))
    encoded = Encoded(None, train, train, {"held out": held_out})
    both = with_linear_part(config, encoded, network, where)
    deep, together = (predict(one, held_out, where.device) for one in (network, both))
    right = [(logits.argmax(1) == held_out.labels).mean() for logits in (together, deep)]
    assert right[0] > 0.9 > right[1]
    both.linear = None
    alone = predict(both, held_out, where.device)
    before, after = (logits[:, 1] - logits[:, 0] for logits in (deep, alone))
    line = np.polyfit(before, after, 1)
    assert -1e-6 < line[0] < 1, "the network has learnt nothing"
    np.testing.assert_allclose(np.polyval(line, before), after, atol=1e-4)


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
