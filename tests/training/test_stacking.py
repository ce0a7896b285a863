"""The layers and the linear part as one sum."""

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.tokenizer import Encoding
from tests.networks import VOCABULARY, random_network
from training.config import RunConfig, overlaid
from training.data.batches import Dataset
from training.encoding import Encoded
from training.evaluation.metrics import predict, softmax
from training.linear.classifier import Domains, Languages, LinearClassifier
from training.loop.checkpoint import CheckpointError
from training.loop.trainer import Ranks
from training.stacking import LINEAR, fit_sum, with_linear_part

SHAPE = {"d_model": 24, "layers": 2, "heads": 4, "d_ff": 32, "max_tokens": 16}
WHERE = Ranks(0, 1, torch.device("cpu"))
CONFIG = RunConfig.model_validate(
    {
        "sources": [{"name": "s", "path": "-"}],
        "network": SHAPE | {"ngrams": 64},
        "train": {"crop_tokens": 16},
    }
)
PIECES = [str(token) for token in range(VOCABULARY)]  # each a family by itself


def token_rows(count: int, wrong: float = 0.0, ids: tuple[int, int] = (3, 60)) -> Dataset:
    """Rows of which one token, of the first two ids, tells the class; of a share `wrong` of them it
    lies."""
    generator = np.random.default_rng(count)
    said = np.arange(count) % 2
    drawn = generator.integers(ids[0] + 2, ids[1], (count, 6))
    drawn[:, 2] = ids[0] + said
    labels = np.where(generator.random(count) < wrong, 1 - said, said)
    return Dataset.encode(
        [Encoding(ids, None, False) for ids in drawn], np.eye(2, dtype=np.float32)[labels]
    )


def encoded(
    train: Dataset,
    held_out: Dataset,
    domains: Domains | None = None,
    languages: Languages | None = None,
    pieces: Sequence[str] = PIECES,
) -> Encoded:
    languages = np.full(len(train), "en") if languages is None else languages
    tokenizer = SimpleNamespace(pieces=pieces)
    return Encoded(tokenizer, train, train, domains, languages, {"held out": held_out})


def test_a_linear_part_joins_with_the_share_that_it_earns(tmp_path):
    network, train, held_out = random_network(classes=2, **SHAPE), token_rows(80), token_rows(40)
    both = with_linear_part(CONFIG, encoded(train, held_out), network, tmp_path, WHERE)
    deep, together = (predict(one, held_out, WHERE.device) for one in (network, both))
    right = [(logits.argmax(1) == held_out.labels).mean() for logits in (together, deep)]
    assert right[0] > 0.9 > right[1]
    both.linear = None
    alone = predict(both, held_out, WHERE.device)
    before, after = (logits[:, 1] - logits[:, 0] for logits in (deep, alone))
    line = np.polyfit(before, after, 1)
    assert -1e-6 < line[0] < 1, "the network has learnt nothing"
    np.testing.assert_allclose(np.polyval(line, before), after, atol=1e-4)


def test_a_linear_part_is_fitted_once_for_the_same_rows(tmp_path, monkeypatch):
    train, other, held_out = token_rows(80), token_rows(60), token_rows(40)
    network = random_network(classes=2, **SHAPE)
    first = with_linear_part(CONFIG, encoded(train, held_out), network, tmp_path, WHERE)
    fits = []
    fit = LinearClassifier.fit
    monkeypatch.setattr(LinearClassifier, "fit", lambda *rest: fits.append(rest) or fit(*rest))
    again = with_linear_part(CONFIG, encoded(train, held_out), network, tmp_path, WHERE)
    assert not fits
    for name, weight in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    with_linear_part(CONFIG, encoded(other, held_out), network, tmp_path, WHERE)
    assert len(fits) == 1
    stronger = overlaid(CONFIG, {"train.linear_strength": 9.0})
    with_linear_part(stronger, encoded(other, held_out), network, tmp_path, WHERE)
    assert len(fits) == 2
    (tmp_path / LINEAR).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"(?s)linear\.pt: damaged: .*fit is done anew"):
        with_linear_part(stronger, encoded(other, held_out), network, tmp_path, WHERE)


@pytest.mark.parametrize(
    "change",
    [
        {"train": dataclasses.replace(token_rows(80), targets=token_rows(80).targets[:, ::-1])},
        {"domains": np.eye(2, dtype="f4")[np.arange(80) % 2]},
        {"languages": np.array(["en", "pt"] * 40)},
        {"pieces": [*PIECES[:59], PIECES[4]]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_linear_part_of_other_rows_is_never_taken_for_theirs(tmp_path, change):
    sources = [{"name": name, "path": "-", "domain": name} for name in "ab"]
    config = CONFIG.model_validate(CONFIG.model_dump() | {"sources": sources})
    known = {
        "train": token_rows(80),
        "held_out": token_rows(40),
        "domains": np.eye(2, dtype="f4")[np.arange(80) // 40],
        "languages": np.array(["en"] * 40 + ["pt"] * 40),
    }
    other = encoded(**known | change)
    network = random_network(classes=2, **SHAPE)
    used, fresh = tmp_path / "used", tmp_path / "fresh"
    used.mkdir()
    fresh.mkdir()
    with_linear_part(config, encoded(**known), network, used, WHERE)
    first, expected = (
        with_linear_part(config, other, network, folder, WHERE) for folder in (used, fresh)
    )
    for name, weight in expected.state_dict().items():
        assert torch.equal(first.state_dict()[name], weight), name


def test_a_small_validation_set_has_as_much_say_as_a_large_one(tmp_path):
    small, large = token_rows(40), token_rows(400, wrong=0.5)
    held = dataclasses.replace(
        encoded(token_rows(80), small), validation={"small": small, "large": large}
    )
    both = with_linear_part(CONFIG, held, random_network(classes=2, **SHAPE), tmp_path, WHERE)
    sure = softmax(predict(both, small, WHERE.device)).max(axis=1).mean()
    assert sure == pytest.approx(0.75, abs=0.03)


def test_words_that_begin_alike_are_expected_to_say_alike(tmp_path):
    train, held_out = (token_rows(count, ids=(3, 59)) for count in (80, 40))
    once = np.flatnonzero(train.labels)[0]
    train.ids[train.starts[once] + 2] = 59  # in place of 4, which tells the second class
    said = []
    for pieces in (PIECES, [*PIECES[:59], PIECES[4]]):
        network = random_network(classes=2, **SHAPE)
        both = with_linear_part(
            CONFIG, encoded(train, held_out, pieces=pieces), network, tmp_path, WHERE
        )
        said.append(both.linear.weight.weight[[4, 59], 0].tolist())
    apart, kin = said
    assert apart[0] < 0
    assert kin[1] < 2 * apart[1] < 0


def test_where_rows_are_of_domains_so_is_the_linear_part(tmp_path):
    sources = [{"name": name, "path": "-", "domain": name} for name in "ab"]
    config = CONFIG.model_validate(CONFIG.model_dump() | {"sources": sources})
    train, held_out = token_rows(80), token_rows(40)
    domains = np.eye(2, dtype="f4")[np.arange(80) // 40]
    network = random_network(classes=2, **SHAPE)
    both = with_linear_part(config, encoded(train, held_out, domains), network, tmp_path, WHERE)
    assert both.config.domains == 2
    assert (predict(both, held_out, WHERE.device).argmax(1) == held_out.labels).mean() > 0.9


def test_in_each_language_the_linear_part_counts_as_far_as_it_may_be_trusted(tmp_path):
    one, other = (3, 31), (31, 59)  # languages of words of their own
    train = token_rows(80, ids=one).joined(token_rows(80, ids=other))
    trusted, doubted = token_rows(400, ids=one), token_rows(400, wrong=0.3, ids=other)
    sure = {}
    for languages in (["en"] * 160, ["en"] * 80 + ["pt"] * 80):
        held = encoded(train, trusted.joined(doubted), languages=np.array(languages))
        both = with_linear_part(CONFIG, held, random_network(classes=2, **SHAPE), tmp_path, WHERE)
        answers = (softmax(predict(both, rows, WHERE.device)) for rows in (trusted, doubted))
        sure[len({*languages})] = [answer.max(axis=1).mean() for answer in answers]
    assert sure[2] == pytest.approx([0.99, 0.7], abs=0.03)
    assert sure[1][0] < 0.95
    assert sure[1][1] > 0.75


def test_a_class_that_no_row_is_of_is_never_the_answer(tmp_path):
    train, held_out = (
        dataclasses.replace(rows, targets=np.pad(rows.targets, ((0, 0), (0, 1))))
        for rows in (token_rows(80), token_rows(40))
    )
    network = random_network(classes=3, **SHAPE)
    both = with_linear_part(CONFIG, encoded(train, held_out), network, tmp_path, WHERE)
    assert softmax(predict(both, held_out, WHERE.device))[:, 2].max() < 1e-6


def test_a_bias_that_the_network_came_with_makes_no_difference(tmp_path):
    train, held_out = token_rows(80), token_rows(200, wrong=0.2)
    answers = []
    for bias in ([0.0, 0.0], [-3.0, 3.0]):  # a bundle's bias is that of a sum already
        network = random_network(classes=2, **SHAPE)
        network.head.bias.data = torch.tensor(bias)
        both = with_linear_part(CONFIG, encoded(train, held_out), network, tmp_path, WHERE)
        answers.append(softmax(predict(both, held_out, WHERE.device)))
    np.testing.assert_allclose(*answers, atol=0.01)


def test_each_part_of_a_sum_gets_the_share_that_it_earns():
    generator = np.random.default_rng(0)
    good, useless = generator.normal(0, 2, (2, 20_000, 2)).astype(np.float32)
    truth = softmax(good, 0.5)
    labels = (generator.random(20_000) < truth[:, 1]).astype(np.int64)
    for parts, shares, within in (
        ([good, useless], [2, 0], 0.1),
        ([good / 2, -good], [4, 0], 0.2),
        ([good + useless, good - useless], [1, 1], 0.1),
    ):
        found, _ = fit_sum([[part] for part in parts], labels)
        np.testing.assert_allclose(np.concatenate(found), shares, atol=within)


def test_pieces_of_a_model_count_apart_as_far_as_rows_say_so():
    generator = np.random.default_rng(0)
    good = generator.normal(0, 2, (20_000, 2)).astype(np.float32)
    here = (np.arange(20_000) < 10_000)[:, None]
    truth = softmax(np.where(here, good, good / 2))
    labels = (generator.random(20_000) < truth[:, 1]).astype(np.int64)
    never = np.zeros_like(good)
    (shares,), _ = fit_sum([[good * here, good * ~here, never]], labels)
    assert shares[:2] == pytest.approx([1, 0.5], abs=0.05)
    assert shares[2] == pytest.approx(0.75, abs=0.05), "of which nothing is known: their mean"


def test_the_sum_is_right_about_how_often_each_class_comes():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (20_000, 3)).astype(np.float32)
    truth = softmax(logits + np.array([0, 0, 1]))
    labels = (generator.random((20_000, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    off = logits + np.array([4, 0, 0], np.float32)
    ((share,),), bias = fit_sum([[off]], labels)
    assert share == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(bias - bias[0], [0, 4, 5], atol=0.2)


@pytest.mark.parametrize(
    ("count", "wrong", "surer"), [(60, 0, False), (49, 1, False), (60, 1, True)]
)
def test_a_sum_is_surer_than_its_parts_only_where_rows_say_so(count, wrong, surer):
    labels = np.arange(count) % 2
    answers = np.where(np.arange(count) < wrong, 1 - labels, labels)
    part = np.eye(2, dtype=np.float32)[answers]
    (one,), (other,) = fit_sum([[part], [part / 2]], labels)[0]
    assert one + other > 2 if surer else one + other == pytest.approx(1)


def test_a_class_that_no_row_is_of_gets_no_bias():
    logits = np.array([[2, 0, 0]] * 4 + [[0, 2, 0]] * 4, np.float32)
    ((share,),), bias = fit_sum([[logits]], np.array([0, 0, 0, 1, 1, 0, 0, 0]))
    assert share == pytest.approx(0, abs=0.02), "of both kinds three rows of four are of one class"
    assert np.exp(bias[0] - bias[1]) == pytest.approx(3, rel=0.05)
    assert bias[2] == 0
