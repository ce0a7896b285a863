import json

import numpy as np
import pytest

from model.account import toward
from model.tokenizer import MASK_ID
from training.__main__ import main
from training.data.batches import Dataset
from training.evaluation.faithfulness import (
    CHANCE,
    SHARES,
    VIEWS,
    Erasure,
    faithfulness,
    ranked_first,
    views,
)
from training.evaluation.metrics import Graph

TEXTS = (
    "I hated every minute of this film and I want my money back",
    "Adorei cada minuto deste filme e vou ver de novo com os amigos",
    "This film is not good at all and the music is worse",
)


@pytest.fixture(scope="module")
def dataset(bundle):
    return Dataset.encode(bundle.tokenizer.encode_batch(TEXTS, offsets=False))


@pytest.mark.parametrize(
    ("share", "first"),
    [
        (0.05, [0, 1, 0, 0, 1]),  # one at least
        (0.6, [1, 1, 0, 0, 1]),  # 1.8 and 1.2
        (1.0, [1, 1, 1, 1, 1]),
    ],
)
def test_each_text_has_its_own_first(share, first):
    scores = np.array([0.2, 0.9, -0.5, 0.1, 0.3], np.float32)
    got = ranked_first(scores, np.array([0, 3, 5]), share)
    assert got.astype(int).tolist() == first


def test_scores_of_views_are_those_of_the_text_by_itself(bundle, dataset):
    graph = Graph(bundle)
    answers = graph.predict(dataset).argmax(axis=1)
    together = views(graph, dataset, answers)
    for row, (start, end) in enumerate(zip(dataset.starts, dataset.starts[1:], strict=False)):
        alone = Dataset(dataset.ids[start:end], np.array([0, end - start]), dataset.targets[:1])
        ((_, outputs),) = graph.run(alone, VIEWS)
        own = answers[row]
        expected = (
            toward(outputs["contributions"][0], own),
            toward(outputs["evidence"][0], own),
            outputs["pooling_attention"][0].mean(axis=0),
            outputs["attentions"][0].mean(axis=(0, 1, 2)),
        )
        for name, scores, of_text in zip(VIEWS, together, expected, strict=True):
            np.testing.assert_allclose(scores[start:end], of_text, atol=1e-5, err_msg=name)


def test_erasure_is_the_mean_fall_over_the_shares(bundle, dataset):
    """By hand: one text at a time, one share at a time."""
    got = faithfulness(bundle, dataset)
    assert list(got) == [*VIEWS, CHANCE]
    graph = Graph(bundle)
    for row, (start, end) in enumerate(zip(dataset.starts, dataset.starts[1:], strict=False)):
        ids = dataset.ids[start:end]

        def probabilities(ids):
            return graph.predict(Dataset(ids, np.array([0, len(ids)]), dataset.targets[:1]))[0]

        before = probabilities(ids)
        own = before.argmax()
        alone = Dataset(ids, np.array([0, len(ids)]), dataset.targets[:1])
        ((_, outputs),) = graph.run(alone, ["contributions"])
        order = np.argsort(-toward(outputs["contributions"][0], own))
        without, left = [], []
        for share in SHARES:
            first = order[: max(1, round(share * len(ids)))]
            rest = np.setdiff1d(np.arange(len(ids)), first)
            for erased, falls in ((first, without), (rest, left)):
                after = ids.copy()
                after[erased] = MASK_ID
                falls.append(before[own] - probabilities(after)[own])
        assert got["contributions"].comprehensiveness[row] == pytest.approx(
            np.mean(without), abs=1e-5
        )
        assert got["contributions"].sufficiency[row] == pytest.approx(np.mean(left), abs=1e-5)


def test_chance_is_the_same_for_the_same_seed(bundle, dataset):
    first, again, other = (
        faithfulness(bundle, dataset, seed)[CHANCE].comprehensiveness.tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_figures_are_means_with_their_errors():
    erasure = Erasure(np.array([0.5, 0.3, 0.1]), np.array([0.1, 0.1, 0.1]))
    assert erasure.figures() == {
        "comprehensiveness": pytest.approx(0.3),
        "comprehensiveness_error": pytest.approx(0.2 / 3**0.5),
        "sufficiency": pytest.approx(0.1),
        "sufficiency_error": pytest.approx(0),
    }


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text\n" + "".join(f"{text}\n" for text in (*TEXTS, "Bom")), encoding="utf-8")
    return path


def test_the_command_shows_what_it_writes(tiny_bundle, bundle, dataset, texts, tmp_path, capsys):
    out = tmp_path / "figures.json"
    command = ["faithfulness", str(tiny_bundle), "--texts", str(texts), "--json", str(out)]
    assert main(command) == 0
    written = json.loads(out.read_text())
    expected = {name: e.figures() for name, e in faithfulness(bundle, dataset).items()}
    assert written == {"bundle": bundle.fingerprint, "texts": 3, "views": expected}
    shown = capsys.readouterr().out
    assert "mean of 3 texts" in shown  # "Bom" is too short to take a share of
    assert f"{expected['contributions']['comprehensiveness']:.3f}" in shown


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (["--limit", "1"], "1 of 1 texts have the 8 tokens that it takes"),
        (["--limit", "0"], "--limit 0: must be 1 or more"),
        (["--text-column", "texto"], "texto"),
    ],
)
def test_too_little_to_erase_is_refused(tiny_bundle, texts, extra, reason, capsys):
    assert main(["faithfulness", str(tiny_bundle), "--texts", str(texts), *extra]) == 2
    assert reason in capsys.readouterr().err
