import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from model.bundle import read_bundle
from model.classifier import TextClassifier
from model.config import ModelConfig
from model.tokenizer import Encoding
from training.__main__ import main
from training.config import TrainConfig
from training.data.batches import Dataset, TrainingBatch, TrainingBatches
from training.loop.checkpoint import CheckpointError, load_checkpoint
from training.loop.objectives import Outcome
from training.loop.trainer import (
    BEST,
    CHECKPOINT,
    Ranks,
    Trainer,
    averaging,
    compiled,
    in_half_precision,
    learning_rate,
    passes,
)
from training.progress import Display, StepBar

ROOT = Path(__file__).parents[3]
REVIEWS = ROOT / "tests" / "data" / "reviews.csv"
SMALL = [
    "network.d_model=16", "network.heads=2", "network.d_ff=16", "network.max_tokens=32",
    "network.ngrams=64",
    "train.vocab_size=200", "train.max_batch_tokens=128", "train.crop_tokens=32",
    "train.checkpoint_every_steps=1", "train.epochs=3", "train.patience=9",
]  # fmt: skip


def command(folder: Path, *extra: str, launcher: tuple[str, ...] = ()) -> list[str]:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    paths = ["--out", str(folder / "bundle"), "--run-dir", str(folder / "run"), "--threads", "1"]
    start = launcher or ("-m", "training")
    return [sys.executable, *start, "fit", str(REVIEWS), *paths, *settings, *extra]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        arguments, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / "run" / "checkpoint.pt", weights_only=True)
    return content["states"]["network"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    done = run(command(folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_a_killed_run_continued_gives_the_weights_of_an_unbroken_one(unbroken, tmp_path):
    process = subprocess.Popen(command(tmp_path), cwd=ROOT, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stopped_at = torch.load(checkpoint, weights_only=True)["progress"]["step"]
    assert not (tmp_path / "bundle").exists()
    done = run(command(tmp_path))
    assert done.returncode == 0, done.stderr
    ended_at = torch.load(checkpoint, weights_only=True)["progress"]["step"]
    assert 0 < stopped_at < ended_at
    for name, value in weights(unbroken).items():
        assert torch.equal(weights(tmp_path)[name], value), name
    files = [(folder / "bundle" / "model.onnx").read_bytes() for folder in (unbroken, tmp_path)]
    assert files[0] == files[1]


@pytest.mark.parametrize(("number", "evaluated"), [(signal.SIGINT, 1), (signal.SIGTERM, 1000)])
def test_a_run_that_is_asked_to_stop_keeps_the_step_it_is_at(
    tmp_path, monkeypatch, number, evaluated
):
    advance, steps = StepBar.advance, 0

    def asked(bar: StepBar, meter) -> None:
        nonlocal steps
        steps += 1
        advance(bar, meter)
        if steps == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(StepBar, "advance", asked)
    later = ("--epochs", "1", "--set", "train.checkpoint_every_steps=1000")
    evaluations = ("--set", f"train.evaluations_per_epoch={evaluated}")
    given = command(tmp_path, *later, *evaluations)[3:]
    assert main(given) == 130
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    progress = torch.load(checkpoint, weights_only=True)["progress"]
    assert progress["step"] == 3
    assert len(progress["history"]) == (3 if evaluated > 1 else 0)
    assert main(given) == 0
    assert torch.load(checkpoint, weights_only=True)["progress"]["step"] == steps > 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_in_a_callback_of_the_export_stops(
    unbroken, tmp_path, monkeypatch, number, capsys
):
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    released = read_bundle(tmp_path / "bundle").fingerprint

    def asked(*_, **__) -> None:
        held = partial(print)
        reference = weakref.ref(held, lambda _: signal.raise_signal(number))
        del held
        assert reference() is None

    monkeypatch.setattr(torch.onnx, "export", asked)
    assert main(command(tmp_path)[3:]) == 130
    assert "stopped; the same command goes on from here" in capsys.readouterr().err
    assert read_bundle(tmp_path / "bundle").fingerprint == released


def test_two_processes_agree_with_one(tmp_path):
    exact = ("network.dropout=0", "train.token_dropout=0", "train.precision=float32")
    plain = (*(part for setting in exact for part in ("--set", setting)), "--epochs", "1")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, start in ((one, ()), (two, (*launcher, "-m", "training"))):
        done = run(command(folder, *plain, launcher=start))
        assert done.returncode == 0, done.stderr
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, atol=2e-4, rtol=2e-3)
    assert (two / "bundle" / "manifest.json").exists()


def test_a_checkpoint_of_another_run_is_refused(unbroken):
    done = run(command(unbroken, "--seed", "9"))
    assert done.returncode == 2
    assert "belongs to another configuration" in done.stderr
    assert (unbroken / "bundle" / "manifest.json").exists()


def test_a_refused_run_leaves_the_folder_of_another_as_it_is(unbroken, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(REVIEWS.read_text().replace("positive", "good").replace("negative", "bad"))
    before = {path: path.read_bytes() for path in (unbroken / "run").iterdir()}
    arguments = command(unbroken, "--name", "other")
    done = run([str(other) if part == str(REVIEWS) else part for part in arguments])
    assert (done.returncode, "belongs to another" in done.stderr) == (2, True)
    assert {path: path.read_bytes() for path in (unbroken / "run").iterdir()} == before


def test_a_damaged_checkpoint_is_refused(unbroken, tmp_path):
    content = (unbroken / "run" / "checkpoint.pt").read_bytes()
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: damaged"):
        load_checkpoint(path, "any")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "nothing to train on"),
        (["none.csv"], "none.csv: no such file"),
        ([str(REVIEWS), "--text-column", "x"], "no column 'x'; there are"),
        ([str(REVIEWS), "--set", "train.epochs=0"], "train.epochs=0 trains nothing; --start-from"),
        ([str(REVIEWS), "--set", "train.colour=1"], "train.colour=1: Extra inputs"),
        ([str(REVIEWS), "--set", "=1"], "--set =1: must be KEY=VALUE"),
        ([str(REVIEWS), "--set", "sources=1"], f"rows come from {REVIEWS}; leave one out"),
        (["hub:"], "hub:: names no set; must be hub:OWNER/NAME"),
        ([str(REVIEWS), "--set", "network.heads=7"], "heads=7 must divide d_model=192"),
        ([str(REVIEWS), "--set", "train.crop_tokens=999"], "crop_tokens=999 exceeds"),
        ([str(REVIEWS), "--set", "train=5", "--seed", "1"], "train.seed=1: train=5 is no table"),
        ([str(REVIEWS), "--set", "train.learning_rate=inf"], "learning_rate=inf: Input should be"),
        ([str(REVIEWS), "--threads", "0"], "--threads 0: must be 1 or more"),
        ([str(REVIEWS.parent)], "data: format not known"),
        ([str(REVIEWS), "--out", f"{REVIEWS}/b"], "reviews.csv/b: cannot be written: "),
        (
            [str(REVIEWS), "--set", "train.learning_rate=1e30", "--set", "network.layers=1"],
            "train.learning_rate=1e\\+30: the loss is (nan|inf) at step",
        ),
    ],
)
def test_a_run_that_cannot_be_is_refused_in_a_line(arguments, reason, tmp_path, capsys):
    import re

    given = ["fit", "--out", str(tmp_path / "b"), *arguments, "--run-dir", str(tmp_path / "r")]
    assert main([*given, "--device", "cpu", "--quiet"]) == 2
    assert re.search(reason, capsys.readouterr().err)


def test_the_rate_warms_up_and_decays_to_nothing():
    config = TrainConfig(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in (0, 9, 10, 55, 100)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("tokens", "epochs"), [(10, 20), (200_000, 20), (400_000, 10), (1_000_000, 4), (10**9, 3)]
)
def test_few_rows_are_seen_often_and_many_seldom(tokens, epochs):
    assert passes(tokens) == epochs


@pytest.mark.parametrize(
    ("precision", "device", "instructions", "half"),
    [
        ("auto", "cuda", {}, True),
        ("auto", "cpu", {"avx512_bf16": True, "amx_bf16": False}, True),
        ("auto", "cpu", {"avx512_bf16": False, "amx_bf16": True}, True),
        ("auto", "cpu", {"avx512_bf16": False, "avx512_f": True}, False),
        ("auto", "cpu", {}, False),
        ("bfloat16", "cpu", {}, True),
        ("float32", "cpu", {"avx512_bf16": True}, False),
    ],
)
def test_bfloat16_is_for_devices_that_have_it(precision, device, instructions, half, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert in_half_precision(precision, torch.device(device)) == half


def test_the_last_weights_are_kept_where_asked_for(tmp_path):
    done = run(command(tmp_path, "--set", "train.keep=last", "--set", "train.learning_rate=0.3"))
    assert done.returncode == 0, done.stderr
    content = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    kept = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert len(content["progress"]["history"]) == 3
    for name, value in kept.items():
        assert torch.equal(content["states"]["average"][f"module.{name}"], value), name


# Torch warns itself: it looks for a gradient at whatever comes into what it compiles.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_layers_compiled_compute_the_same_and_are_themselves_again(monkeypatch):
    ran = []

    def run_as_traced(graph, example):  # no C++ compiler is asked for
        return lambda *given: ran.append(graph) or graph(*given)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=run_as_traced))
    torch.manual_seed(0)
    network = TextClassifier(
        ModelConfig(vocab_size=50, classes=2, d_model=16, layers=2, heads=2, d_ff=16, dropout=0)
    )
    for rows, width in ((2, 5), (3, 9)):
        ids = torch.randint(3, 50, (rows, width))
        mask = torch.ones_like(ids)
        mask[0, width // 2 :] = 0
        expected = network(ids, mask)
        with compiled(network.encoder):
            torch.testing.assert_close(network(ids, mask), expected)
        assert all("forward" not in vars(layer) for layer in network.encoder.stack())
    assert len(ran) == 4  # each layer at both shapes
    assert len(set(map(id, ran))) == 1  # is the same graph


class Scored:
    """An objective whose scores are told beforehand, and that wants all weights to grow."""

    def __init__(self, *scores: float) -> None:
        self.left = list(scores)

    def outcome(self, network: TextClassifier, batch: TrainingBatch) -> Outcome:
        """See `Objective`."""
        loss = -sum(parameter.sum() for parameter in network.parameters()) * 1e-3
        return Outcome(loss, torch.tensor(0), batch.rows)

    def scores(self, network: TextClassifier, device: torch.device) -> dict[str, float]:
        """See `Objective`."""
        return {"held out": self.left.pop(0)}


def small_trainer(folder: Path, objective: Scored, **settings: object) -> Trainer:
    torch.manual_seed(0)
    shape = {"vocab_size": 20, "classes": 2, "d_model": 8, "heads": 2, "d_ff": 8}
    network = TextClassifier(ModelConfig(**shape, layers=1, max_tokens=8, ngrams=0))
    texts = [Encoding(np.array([5, 6, 7]), None, False)] * 4
    batches = TrainingBatches(
        dataset=Dataset.encode(texts, np.eye(2, dtype="f4")[[0, 1, 0, 1]]),
        source_of_row=np.zeros(4, np.int64),
        source_epochs=[1.0],
        source_stages=[1],
        max_batch_tokens=64,
        crop_tokens=8,
        seed=0,
        rank=0,
        world_size=1,
    )
    config = TrainConfig(**{"ema_decay": 0.0, "evaluations_per_epoch": 1} | settings)
    where = Ranks(0, 1, torch.device("cpu"))
    return Trainer(network, batches, objective, config, "small", folder, where)


@pytest.mark.parametrize(("fewest", "evaluations"), [(0, 5), (20, 5), (24, 6), (100, 7)])
def test_patience_ends_no_run_before_its_fewest_steps(fewest, evaluations, tmp_path, monkeypatch):
    monkeypatch.setattr("training.loop.trainer.FEWEST_STEPS", fewest)
    scores = [0.5, 0.9, 0.4, 0.9, 0.3, 0.2, 0.1]
    trainer = small_trainer(tmp_path, Scored(*scores), epochs=7, patience=3)
    assert len(trainer.fit(Display(quiet=True))) == evaluations, "each of four steps"


def test_few_steps_move_the_averaged_weights_nearly_as_far_as_the_weights(tmp_path):
    settings = {"epochs": 5, "warmup": 0.0, "ema_decay": 0.998}
    trainer = small_trainer(tmp_path, Scored(*[0.5] * 5), **settings)
    before = trainer.network.embedding.weight.detach().clone()
    trainer.fit(Display(quiet=True))
    states = torch.load(tmp_path / CHECKPOINT, weights_only=True)["states"]
    moved, average = (
        (weights - before).abs().mean()
        for weights in (
            states["network"]["embedding.weight"],
            states["average"]["module.embedding.weight"],
        )
    )
    assert average > 0.7 * moved


def test_averaging_warms_up_to_its_decay():
    decays = [averaging(step, 0.998) for step in (0, 8, 98, 10_000)]
    assert decays == pytest.approx([0.1, 0.5, 99 / 108, 0.998])
    assert averaging(10_000, 0.0) == 0.0


def test_the_weights_of_the_best_evaluation_are_kept_and_patience_counts_those_after_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("training.loop.trainer.FEWEST_STEPS", 0)
    scores = [0.5, 0.9, 0.4, 0.9, 0.3, 1.0, 1.0]
    trainer, seen = small_trainer(tmp_path, Scored(*scores), epochs=7, patience=3), []
    trainer.fit(Display(quiet=True), lambda _: seen.append(weights_of(trainer.network)))
    history = trainer.progress.history
    assert [entry["score"] for entry in history] == scores[:5], "0.9 once more is no gain"
    best = torch.load(tmp_path / BEST, weights_only=True)
    assert all(torch.equal(best[name], value) for name, value in seen[1].items())
    assert not torch.equal(best["embedding.weight"], seen[4]["embedding.weight"])
    kept = weights_of(trainer.network)
    assert all(torch.equal(kept[name], value) for name, value in best.items())


def weights_of(network: TextClassifier) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
