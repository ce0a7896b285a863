import re
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import REVIEWS
from training.__main__ import main
from training.progress import Display
from training.tensorboard import Board

SMALL = [
    "network.d_model=16", "network.heads=2", "network.layers=1", "network.d_ff=16",
    "network.max_tokens=32", "train.vocab_size=150", "train.max_batch_tokens=256",
    "train.crop_tokens=32", "train.epochs=3", "train.patience=9",
]  # fmt: skip


def entry(step: int, loss: float) -> dict[str, float]:
    rest = {"train_accuracy": 0.5, "learning_rate": 0.001, "texts_per_s": 10.0, "score": 0.7}
    return {"step": step, "loss": loss, "accuracy/pt reviews": 0.75, **rest}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every point that TensorBoard shows, by tag."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(one.step, round(one.value, 6)) for one in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def fit(folder: Path, *extra: object) -> int:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    paths = ["--out", folder / "bundle", "--run-dir", folder / "run", "--tensorboard", folder / "b"]
    given = ["fit", REVIEWS, *paths, *settings, "--device", "cpu", "--quiet", *extra]
    return main(list(map(str, given)))


def test_every_evaluation_is_written_once_at_its_step(tmp_path: Path):
    with Board(tmp_path) as board:
        board.watch(history := [entry(10, 0.9)])
        board.watch([*history, entry(20, 0.8)])
        board.test({"pt reviews": {"rows": 7, "accuracy": 0.8, "ece": 0.05, "confusion": [[1]]}})
    assert scalars(tmp_path) == {
        "train/loss": [(10, 0.9), (20, 0.8)],
        "train/accuracy": [(10, 0.5), (20, 0.5)],
        "train/learning_rate": [(10, 0.001), (20, 0.001)],
        "train/texts_per_s": [(10, 10.0), (20, 10.0)],
        "validation/accuracy/pt reviews": [(10, 0.75), (20, 0.75)],
        "test/accuracy/pt reviews": [(20, 0.8)],
        "test/ece/pt reviews": [(20, 0.05)],
    }


def test_a_board_that_goes_on_has_no_point_twice_and_none_missing(tmp_path: Path):
    with Board(tmp_path) as board:
        board.watch([entry(10, 0.9)])
        board.watch([entry(10, 0.9), entry(20, 0.8), entry(30, 0.1)])
    with Board(tmp_path) as board:  # the checkpoint holds less than was written
        board.watch([entry(10, 0.9), entry(20, 0.8)])
        board.watch([entry(10, 0.9), entry(20, 0.8), entry(30, 0.7)])
    assert scalars(tmp_path)["train/loss"] == [(10, 0.9), (20, 0.8), (30, 0.7)]


def test_a_run_continued_shows_what_an_unbroken_one_shows(tmp_path: Path, monkeypatch):
    said = Display.evaluation

    def interrupted(self: Display, figures: dict[str, float], better: bool) -> None:
        said(self, figures, better)
        monkeypatch.setattr(Display, "evaluation", said)
        raise KeyboardInterrupt  # after the checkpoint, before the board

    monkeypatch.setattr(Display, "evaluation", interrupted)
    assert fit(tmp_path) == 130
    assert fit(tmp_path) == 0
    progress = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["progress"]
    history = progress["history"]
    assert len(history) == 3
    board = scalars(tmp_path / "b")
    for tag, key in {
        "train/loss": "loss",
        "train/accuracy": "train_accuracy",
        "train/learning_rate": "learning_rate",
        "validation/accuracy/validation": "accuracy/validation",
    }.items():
        wanted = [(one["step"], pytest.approx(one[key], abs=1e-5)) for one in history]
        assert board[tag] == wanted, tag
    assert len(board["train/texts_per_s"]) == 3
    from model.bundle import read_bundle

    metrics = read_bundle(tmp_path / "bundle").manifest.metrics
    for key in ("accuracy", "linear_accuracy", "accuracy_at_80", "macro_f1", "ece", "nll"):
        ((step, value),) = board[f"test/{key}/test"]
        assert (step, value) == (progress["step"], pytest.approx(metrics["test"][key], abs=1e-5))
    assert "test/accuracy/language und" in board


def test_a_board_that_cannot_be_is_refused_in_a_line(tmp_path: Path, monkeypatch, capsys):
    assert fit(tmp_path, "--tensorboard", REVIEWS) == 2
    said = capsys.readouterr().err
    assert re.search(r"--tensorboard .*reviews\.csv: cannot be written: File exists\n$", said)
    monkeypatch.delitem(sys.modules, "training.tensorboard")
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert fit(tmp_path) == 2
    assert capsys.readouterr().err == (
        "realce-train: tensorboard: tensorboard is not installed; "
        "the extra 'tensorboard' has it, as in pip install -e '.[tensorboard]'\n"
    )
    assert not (tmp_path / "bundle").exists()


def test_a_run_that_only_finishes_another_shows_how_good_it_is(tmp_path: Path):
    assert fit(tmp_path) == 0
    start = ("--start-from", tmp_path / "run", "--run-dir", tmp_path / "again")
    assert fit(tmp_path, *start, "--epochs", "0", "--tensorboard", tmp_path / "two") == 0
    assert scalars(tmp_path / "two")["validation/accuracy/validation"]
    assert scalars(tmp_path / "two")["test/accuracy/test"]
