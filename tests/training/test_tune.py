import csv
import itertools
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution

from tests.conftest import REVIEWS
from training import tune as tuning
from training.__main__ import main
from training.config import ConfigError, load_config, overlaid
from training.progress import Display
from training.search import Search
from training.tune import knobs, space, to_toml

QUIET = Display(quiet=True)
SPACE = {"train.x": FloatDistribution(0.0, 1.0), "train.y": FloatDistribution(1e-4, 1.0, log=True)}
FIRST = {"train.x": 0.25, "train.y": 0.01}
SMALL = {
    "network.d_model": 16, "network.heads": 2, "network.layers": 1, "network.d_ff": 16,
    "network.max_tokens": 32, "train.vocab_size": 150, "train.max_batch_tokens": 256,
    "train.crop_tokens": 32, "train.epochs": 2, "train.learning_rate": 5e-3, "train.ema_decay": 0.5,
    "train.baseline": "false", "train.token_vectors": "true",
}  # fmt: skip


def search(folder: Path, identity: str = "a", seed: int = 0) -> Search:
    folder.mkdir(exist_ok=True)
    return Search(folder, identity, SPACE, FIRST, seed)


def attempt(*curves: list[float]) -> Callable:
    """Tries nothing out: trial after trial, evaluations as literals."""
    ahead = iter(curves)

    def try_out(knobs: dict[str, Any], watch: Callable) -> float:
        history: list[dict[str, float]] = []
        for score in next(ahead):
            history.append({"score": score})
            watch(history)
        return max(entry["score"] for entry in history)

    return try_out


def by_knobs(knobs: dict[str, Any], watch: Callable) -> float:
    """Best where x is 0.7, whatever y is."""
    score = 1 - abs(knobs["train.x"] - 0.7)
    watch([{"score": score}])
    return score


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def results(folder: Path) -> list[list[str]]:
    """What was tried and how it went, without what was cut short."""
    kept = [row for row in rows(folder) if row["state"] != "cut short"]
    return [[value for key, value in row.items() if key != "trial"] for row in kept]


def test_the_first_trial_is_the_config_as_given(tmp_path: Path):
    search(tmp_path).run(attempt([0.5, 0.6], [0.4, 0.3]), QUIET, trials=2)
    first, second = rows(tmp_path)
    assert first == {
        "trial": "0", "state": "complete", "score": "0.6", "evaluations": "2",
        "train.x": "0.25", "train.y": "0.01",
    }  # fmt: skip
    assert (second["score"], second["train.x"] != "0.25") == ("0.4", True)


def test_a_trial_worse_than_half_of_the_others_is_stopped(tmp_path: Path):
    good = [[0.5, 0.7, 0.8]] * 5
    slow_start, bad = [0.1, 0.7, 0.9], [0.5, 0.2, 1.0]
    one = search(tmp_path)
    one.run(attempt(*good, slow_start, bad), QUIET, trials=7)
    states = [(row["state"], row["score"], row["evaluations"]) for row in rows(tmp_path)]
    assert states[4:] == [
        ("complete", "0.8", "3"),
        ("complete", "0.9", "3"),
        ("pruned", "0.5", "2"),
    ]
    assert one.best.number == 5


def test_an_interrupted_search_ends_as_an_unbroken_one(tmp_path: Path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    search(unbroken).run(by_knobs, QUIET, trials=12)
    seen: list[dict[str, Any]] = []

    def stopped(knobs: dict[str, Any], watch: Callable) -> float:
        score = by_knobs(knobs, watch)
        seen.append(knobs)
        if len(seen) in (1, 3, 9):
            raise KeyboardInterrupt
        return score

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            search(broken).run(stopped, QUIET, trials=12)
    search(broken).run(stopped, QUIET, trials=12)
    assert results(broken) == results(unbroken)
    cut = [int(row["trial"]) for row in rows(broken) if row["state"] == "cut short"]
    assert cut == [0, 2, 8]
    assert seen[0] == seen[1] == FIRST
    assert seen[2] == seen[3]
    search(broken).run(attempt(), QUIET, trials=12)
    assert len(rows(broken)) == 15


def test_another_seed_draws_other_knobs(tmp_path: Path):
    for seed in (0, 1):
        search(tmp_path / str(seed), seed=seed).run(by_knobs, QUIET, trials=2)
    assert results(tmp_path / "0")[0] == results(tmp_path / "1")[0]
    assert results(tmp_path / "0")[1] != results(tmp_path / "1")[1]


def test_no_trial_begins_when_the_time_is_over(tmp_path: Path):
    search(tmp_path).run(by_knobs, QUIET, seconds=1e-9)
    assert len(rows(tmp_path)) == 1


def test_the_knob_that_matters_is_said_to(tmp_path: Path):
    one = search(tmp_path)
    one.run(by_knobs, QUIET, trials=3)
    assert one.importances() == {}
    one.run(by_knobs, QUIET, trials=25)
    importances = one.importances()
    assert next(iter(importances)) == "train.x"
    assert sum(importances.values()) == pytest.approx(1)
    assert abs(one.best.params["train.x"] - 0.7) < 0.2
    assert len(one.table(most=3).rows) == 3


def test_a_folder_of_another_search_is_refused(tmp_path: Path):
    search(tmp_path).run(by_knobs, QUIET, trials=1)
    with pytest.raises(ConfigError, match=r"study\.journal: belongs to another .* \(a, .* is b\)"):
        search(tmp_path, identity="b")
    (tmp_path / "study.journal").write_text('{"op_code": 0\n{}\n')
    with pytest.raises(ConfigError, match=r"study\.journal: damaged"):
        search(tmp_path)


def test_a_line_that_was_half_written_costs_nothing_else(tmp_path: Path):
    search(tmp_path).run(by_knobs, QUIET, trials=2)
    before = results(tmp_path)
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(b'{"op_code":4,"work')
    search(tmp_path).run(by_knobs, QUIET, trials=3)
    assert results(tmp_path)[:2] == before
    assert len(search(tmp_path).finished) == 3


def test_ranges_hold_the_config_they_start_from():
    odd = {"train.weight_decay": 0.9, "network.dropout": 0.0, "train.token_dropout": 0.5}
    for overrides in ({}, odd, {"train.vocab_size": 64, "train.label_smoothing": 0.4}):
        config = load_config(None, {"sources": [{"name": "a", "path": "a.csv"}]} | overrides)
        ranges = space(config)
        for name, value in knobs(config, list(ranges)).items():
            distribution = ranges[name]
            assert distribution._contains(distribution.to_internal_repr(value)), name
    assert ranges["train.vocab_size"].choices == (64, 128)


def test_a_config_written_is_the_config_read(tmp_path: Path):
    embedded = Path(tuning.__file__).parent / "configs" / "embedded.toml"
    tricky = {
        "name": "odd", "path": "a\\b.csv", "origin": 'Ünï "q"\n\t\x7f 😀 # no', "epochs": 0.30,
        "labels": {"0": "no", "a.b": "yes", "2": False}, "strip_html": True, "limit": 5,
    }  # fmt: skip
    change = {"train.learning_rate": 1.23456789e-05, "train.max_steps": 7, "labels": ["no", "yes"]}
    for config in (
        load_config(embedded, {}),
        load_config(None, {"sources": [tricky]} | change),
        overlaid(load_config(embedded, {}), {"network.dropout": 0.123, "train.vocab_size": 99}),
    ):
        path = tmp_path / "written.toml"
        path.write_text(to_toml(config), encoding="utf-8")
        assert load_config(path, {}).fingerprint == config.fingerprint


def command(name: str, folder: Path, *extra: object) -> list[str]:
    place = ["--run-dir", str(folder / "run"), "--device", "cpu", "--quiet"]
    return [name, *place, *map(str, extra)]


def tune(folder: Path, *extra: object) -> int:
    folder.mkdir(exist_ok=True)
    settings = [part for pair in SMALL.items() for part in ("--set", "=".join(map(str, pair)))]
    out = ("--out", folder / "tuned.toml")
    return main(command("tune", folder, REVIEWS, *out, "--trials", 3, *settings, *extra))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        called = {"prepare": [], "encode_splits": []}
        for name, calls in called.items():
            whole = getattr(tuning, name)
            patch.setattr(
                tuning, name, lambda *given, w=whole, c=calls: (c.append(given[0]), w(*given))[1]
            )
        assert tune(folder) == 0
    assert len(called["prepare"]) == 1
    sizes = [config.train.vocab_size for config in called["encode_splits"]]
    assert sorted(sizes) == sorted({int(row["train.vocab_size"]) for row in rows(folder / "run")})
    return folder


def test_the_config_found_trains_to_the_score_found(tuned: Path, tmp_path: Path, monkeypatch):
    best = max(rows(tuned / "run"), key=lambda row: float(row["score"]))
    text = (tuned / "tuned.toml").read_text()
    assert text.startswith(
        f"# Best of 3 trials of `realce-train tune`: trial {best['trial']}, "
        f"validation score {float(best['score']):.4f}.\n"
    )
    assert f"learning_rate = {best['train.learning_rate']}\n" in text
    assert "epochs = 2\n" in text
    monkeypatch.setattr("training.pipeline.finish", lambda *_: None)  # of weights already chosen
    fit = command("fit", tmp_path, "--config", tuned / "tuned.toml", "--out", tmp_path / "bundle")
    assert main(fit) == 0
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert checkpoint["progress"]["best_score"] == float(best["score"])
    # Nothing is left of the trials but what was learnt from them.
    left = {path.name for path in (tuned / "run").iterdir()} - {"vocabulary-75", "vocabulary-300"}
    assert left == {".lock", "study.journal", "trials.csv", "vocabulary-150"}


def test_a_trial_cut_in_the_middle_goes_on_from_its_checkpoint(
    tuned: Path, tmp_path: Path, monkeypatch, capsys
):
    evaluations, behind = itertools.count(1), []
    steps = Display.steps

    def interrupted(*_):
        if next(evaluations) == 3:  # of two a trial
            raise KeyboardInterrupt

    monkeypatch.setattr(Display, "evaluation", interrupted)
    monkeypatch.setattr(
        Display,
        "steps",
        lambda self, total, done: (behind.append(done), steps(self, total, done))[1],
    )
    assert tune(tmp_path) == 130
    assert tune(tmp_path) == 0
    assert [row["state"] for row in rows(tmp_path / "run")] == [
        "complete",
        "cut short",
        "complete",
        "complete",
    ]
    assert results(tmp_path / "run") == results(tuned / "run")
    assert [done > 0 for done in behind] == [False, False, True, False]
    shown = capsys.readouterr().out
    assert "best trials, by validation score" in shown
    assert all(word in shown for word in ("learning", "smoothing", "vocab", "complete"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--trials", "0"], "--trials 0: must be at least 1"),
        (["--minutes", "0"], "--minutes 0: must be more than 0"),
        (["--minutes", "nan"], "--minutes nan: must be more than 0"),
        (["--out", "none/tuned.toml"], "--out none/tuned.toml: must be a file in a folder"),
        (["--run-dir", str(REVIEWS)], "--run-dir .*: cannot be written: File exists"),
        (["--set", "train.epochs=0"], "train.epochs=0 trains nothing"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_a_line(arguments, reason, tmp_path, capsys):
    assert tune(tmp_path, *arguments) == 2
    said = capsys.readouterr().err
    assert re.search(reason, said)
    assert said.count("\n") == 1


def test_another_search_in_the_same_folder_is_refused(tuned: Path, tmp_path: Path, capsys):
    (tmp_path / "run").mkdir()
    shutil.copy(tuned / "run" / "study.journal", tmp_path / "run")
    assert tune(tmp_path, "--seed", 5) == 2
    assert "belongs to another configuration or other data" in capsys.readouterr().err


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch, capsys):
    assert optuna.__name__ in sys.modules
    for name in ("training.tune", "training.search"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert tune(tmp_path) == 2
    assert capsys.readouterr().err == (
        "realce-train: tune: optuna is not installed; the extra 'tune' has it, as in "
        "pip install -e '.[tune]'\n"
    )
