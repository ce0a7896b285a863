"""A run begins with the weights of another."""

import json
from pathlib import Path

import pytest
import torch

from model.bundle import read_bundle
from tests.conftest import REVIEWS, TINY, source
from tests.networks import random_network
from training.config import ConfigError, load_config
from training.initial import Start, begin_with, interpolate
from training.loop.trainer import Ranks
from training.pipeline import fit
from training.pretrain import pretrain
from training.progress import Display
from training.release.export import exported_weights

SHAPE = {"d_model": 24, "layers": 2, "heads": 4, "d_ff": 32, "max_tokens": 16}


def run_folder(place: Path, weights: dict[str, torch.Tensor]) -> Path:
    place.mkdir(exist_ok=True)
    torch.save(weights, place / "best.pt")
    (place / "tokenizer.json").write_bytes(b"{}")
    return place


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    return run_folder(tmp_path, random_network(classes=2, **SHAPE).state_dict())


@pytest.mark.parametrize(("classes", "same_head"), [(2, True), (3, False)])
def test_a_later_stage_begins_with_all_but_a_head_of_other_classes(stage, classes, same_head):
    network = random_network(classes=classes, **SHAPE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    drawn = network.head.bias.clone()
    begin_with(network, Start.read(stage))
    before = random_network(classes=2, **SHAPE)
    assert torch.equal(network.embedding.weight, before.embedding.weight)
    assert torch.equal(network.pooling.v_proj.weight, before.pooling.v_proj.weight)
    expected = before.head.bias if same_head else drawn
    assert torch.equal(network.head.bias, expected)


@pytest.mark.parametrize("layers", [0, 1])
def test_a_network_grown_by_layers_begins_as_what_it_grew_from(tmp_path, layers):
    before = random_network(classes=2, **SHAPE | {"layers": layers})
    network = random_network(classes=2, **SHAPE)
    begin_with(network, Start.read(run_folder(tmp_path, before.state_dict())))
    input_ids = torch.tensor([[5, 7, 9, 11], [4, 8, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert torch.equal(network(input_ids, mask), before(input_ids, mask))
    network(input_ids, mask).sum().backward()
    new = network.encoder.layers[-1]
    assert (new.attention.out_proj.weight.grad != 0).any()
    assert (new.feed_forward.down_proj.weight.grad != 0).any()


@pytest.mark.parametrize(
    "still",
    [
        {"train.epochs": 0},
        {"train.learning_rate": 1e-9},
        {"train.learning_rate": 1e-2, "train.start_share": 0.9999},
    ],
)
def test_a_run_that_begins_with_a_bundle_answers_like_it_before_it_learns(
    still, tiny_bundle, tmp_path
):
    rows = {"sources": [source()], "validation": [source()], "test": [source()]}
    frozen = still | {"train.max_steps": 1, "network.ngrams": 0}
    config = load_config(None, TINY | rows | frozen | {"exclude_held_out": False})
    where = Ranks(0, 1, torch.device("cpu"))
    paths = Path(), tmp_path / "run", tmp_path / "bundle"
    again = fit(config, *paths, where, Display(quiet=True), start_from=tiny_bundle)
    before = read_bundle(tiny_bundle)
    assert again.tokenizer.to_json() == before.tokenizer.to_json()
    deep, whole = exported_weights(again.graph), exported_weights(before.graph)
    linear = {"linear.weight.weight", "linear.scale.weight", "linear.owner"}
    assert whole.keys() - deep.keys() == linear
    for name, weights in deep.items():
        torch.testing.assert_close(weights, whole[name], atol=1e-4, rtol=1e-3)


def of_labels(place: Path, *labels: str, heads: int = 4) -> Path:
    told = {"name": "first", "version": "1", "license": "CC0", "labels": labels, "heads": heads}
    (place / "origin.json").write_text(json.dumps(told | {"sources": []}))
    return place


def test_a_head_is_known_by_the_names_of_its_classes(stage):
    start = Start.read(of_labels(stage, "bad", "good"))
    before = random_network(classes=2, **SHAPE).head
    for labels, order in ((("bad", "good"), [0, 1]), (("good", "bad"), [1, 0])):
        network = random_network(classes=2, **SHAPE)
        begin_with(network, start.with_labels(labels, Display()))
        assert torch.equal(network.head.weight, before.weight[order])
        assert torch.equal(network.head.bias, before.bias[order])


def test_a_head_of_other_names_is_as_it_was_drawn(stage):
    network = random_network(classes=2, **SHAPE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.5)
    start = Start.read(of_labels(stage, "bad", "good")).with_labels(("cat", "dog"), Display())
    begin_with(network, start)
    interpolate(network, start, 0.25)
    assert (network.head.weight == 0.5).all()
    assert not (network.query == 0.5).any()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("good", "bad"), ""),
        (
            ("bom", "ruim"),
            "answers 'bad' and 'good', not 'bom' and 'ruim': the head begins anew; name the labels "
            "as there, --label VALUE=bad --label VALUE=good, to keep it\n",
        ),
        (("bad", "good", "so-so"), "'bad' and 'good' and 'so-so': the head begins anew\n"),
    ],
)
def test_whose_labels_are_named_otherwise_hears_that_the_head_begins_anew(
    labels, said, stage, capsys
):
    Start.read(of_labels(stage, "bad", "good")).with_labels(labels, Display())
    heard = capsys.readouterr().err
    assert heard.endswith(said)
    assert heard.count("\n") == bool(said)


def test_no_head_is_missed_where_there_was_none(tmp_path, capsys):
    weights = random_network(classes=2, **SHAPE).state_dict()
    bare = {name: of for name, of in weights.items() if not name.startswith("head.")}
    start = Start.read(of_labels(run_folder(tmp_path, bare), "bad", "good"))
    start.with_labels(("bom", "ruim"), Display())
    assert not capsys.readouterr().err


def test_weights_for_other_heads_are_refused(stage):
    start = Start.read(of_labels(stage, "bad", "good", heads=2))
    with pytest.raises(ConfigError, match=r"network\.heads=4: .*best\.pt has 2"):
        begin_with(random_network(classes=2, **SHAPE), start)


def test_an_origin_that_cannot_be_read_is_refused(stage):
    (stage / "origin.json").write_text('{"name": "first"}')
    with pytest.raises(ConfigError, match=r"origin\.json: version: Field required"):
        Start.read(stage)


@pytest.mark.parametrize(("own", "licence"), [({}, "CC0"), ({"license": "MIT"}, "MIT")])
def test_what_a_run_begins_with_is_told_by_its_bundle(own, licence, tmp_path):
    old = tmp_path / "old.csv"
    old.write_text(REVIEWS.read_text("utf-8"), encoding="utf-8")
    shared = {"exclude_held_out": False, "train.epochs": 1, "network.ngrams": 0}
    held = {"validation": [source()], "test": [source()]}
    where, quiet = Ranks(0, 1, torch.device("cpu")), Display(quiet=True)
    first = load_config(
        None,
        TINY | held | shared | {"name": "first", "license": "CC0", "sources": [source(old)]},
    )
    pretrain(first, Path(), tmp_path / "before", where, quiet)
    second = load_config(None, TINY | held | shared | own | {"sources": [source()]})
    out = tmp_path / "bundle"
    fit(second, Path(), tmp_path / "run", out, where, quiet, start_from=tmp_path / "before")
    manifest = read_bundle(out).manifest
    assert manifest.license == licence
    assert [one.name for one in manifest.sources] == ["reviews", "old"]
    assert manifest.sources[1].origin == "(by way of first 1)"
    assert Start.read(out).origin.sources == Start.read(tmp_path / "run").origin.sources
    assert "by way of first 1" in (out / "report" / "model_card.md").read_text("utf-8")


def test_weights_are_drawn_back_to_where_they_came_from_as_far_as_that_is_there(stage):
    network = random_network(classes=3, **SHAPE)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
    interpolate(network, Start.read(stage), 0.25)
    before = random_network(classes=2, **SHAPE)
    torch.testing.assert_close(network.query, 0.25 * before.query + 0.75)
    torch.testing.assert_close(network.embedding.weight, 0.25 * before.embedding.weight + 0.75)
    assert (network.head.weight == 1).all(), "a head of other classes is new"


def test_a_start_is_known_by_its_weights(tmp_path):
    weights = random_network(classes=2, **SHAPE).state_dict()
    places = [
        run_folder(tmp_path / "one", weights),
        run_folder(tmp_path / "same", weights),
        run_folder(tmp_path / "other", weights | {"head.bias": torch.ones(2)}),
    ]
    one, same, other = (Start.read(place).identity for place in places)
    assert one == same != other


@pytest.mark.parametrize("content", [None, b"", b"no weights", b"PK\x03\x04 cut short"])
def test_a_place_without_weights_is_no_start(content, tmp_path):
    if content is not None:
        (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"best\.pt: no weights to begin with"):
        Start.read(tmp_path)


def test_weights_of_another_network_are_refused(stage):
    wider = random_network(classes=2, **SHAPE | {"d_ff": 48})
    said = r"best\.pt: no weights for this network: \S+ is \[\d+, \d+\], and is to be \[\d+, \d+\]$"
    with pytest.raises(ConfigError, match=said):
        begin_with(wider, Start.read(stage))


def test_more_layers_than_a_network_has_are_refused(stage):
    fewer = random_network(classes=2, **SHAPE | {"layers": SHAPE["layers"] - 1})
    with pytest.raises(ConfigError, match=r"layers\.1\.\S+ is \[.*\], and is to be left out$"):
        begin_with(fewer, Start.read(stage))


def test_a_run_without_training_needs_a_start(tmp_path):
    rows = {"sources": [source()], "validation": [source()], "test": [source()]}
    config = load_config(None, TINY | rows | {"train.epochs": 0})
    where = Ranks(0, 1, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"train\.epochs=0 .*--start-from"):
        fit(config, Path(), tmp_path / "run", tmp_path / "bundle", where, Display(quiet=True))
    assert not (tmp_path / "run").exists()
