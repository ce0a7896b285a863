"""One run begins with the weights of another."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.bundle import read_bundle
from model.tokenizer import Encoding
from tests.conftest import TINY, source
from tests.networks import random_network
from training.batches import Dataset
from training.config import ConfigError, RunConfig, load_config
from training.data import Rows
from training.evaluate import predict
from training.export import exported_weights
from training.pipeline import Encoded, _begin_with, _sample, fit, with_linear_part
from training.progress import Display
from training.train import Ranks

SHAPE = {"d_model": 24, "layers": 2, "heads": 4, "d_ff": 32, "max_tokens": 16}


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    torch.save(random_network(classes=2, **SHAPE).state_dict(), tmp_path / "best.pt")
    return tmp_path


@pytest.mark.parametrize(("classes", "same_head"), [(2, True), (3, False)])
def test_a_later_stage_begins_with_all_but_a_head_of_other_classes(stage, classes, same_head):
    network = random_network(classes=classes, **SHAPE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    drawn = network.head.bias.clone()
    _begin_with(network, stage)
    before = random_network(classes=2, **SHAPE)
    assert torch.equal(network.embedding.weight, before.embedding.weight)
    assert torch.equal(network.pooling.v_proj.weight, before.pooling.v_proj.weight)
    expected = before.head.bias if same_head else drawn
    assert torch.equal(network.head.bias, expected)


@pytest.mark.parametrize("layers", [0, 1])
def test_a_network_grown_by_layers_begins_as_what_it_grew_from(tmp_path, layers):
    before = random_network(classes=2, **SHAPE | {"layers": layers})
    torch.save(before.state_dict(), tmp_path / "best.pt")
    network = random_network(classes=2, **SHAPE)
    _begin_with(network, tmp_path)
    input_ids = torch.tensor([[5, 7, 9, 11], [4, 8, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert torch.equal(network(input_ids, mask), before(input_ids, mask))
    network(input_ids, mask).sum().backward()
    new = network.encoder.layers[-1]
    assert (new.attention.out_proj.weight.grad != 0).any()
    assert (new.feed_forward.down_proj.weight.grad != 0).any()


def test_a_run_that_begins_with_a_bundle_answers_like_it_before_it_learns(tiny_bundle, tmp_path):
    rows = {"sources": [source()], "validation": [source()], "test": [source()]}
    frozen = {"train.epochs": 1, "train.learning_rate": 1e-9, "network.ngrams": 0}
    config = load_config(None, TINY | rows | frozen | {"exclude_held_out": False})
    where = Ranks(0, 1, torch.device("cpu"))
    paths = Path(), tmp_path / "run", tmp_path / "bundle"
    again = fit(config, *paths, where, Display(quiet=True), start=tiny_bundle)
    before = read_bundle(tiny_bundle)
    assert again.tokenizer.to_json() == before.tokenizer.to_json()
    deep, whole = exported_weights(again.graph), exported_weights(before.graph)
    assert whole.keys() - deep.keys() == {"linear.weight.weight", "linear.scale.weight"}
    for name, weights in deep.items():
        torch.testing.assert_close(weights, whole[name], atol=1e-4, rtol=1e-3)


def test_weights_of_another_network_are_refused(stage, tmp_path):
    wider = random_network(classes=2, **SHAPE | {"d_ff": 48})
    with pytest.raises(ConfigError, match=r"best\.pt: no weights for this network"):
        _begin_with(wider, stage)
    with pytest.raises(ConfigError, match=r"none/best\.pt: no weights for this network"):
        _begin_with(wider, tmp_path / "none")


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
