"""What texts alone teach, up to the run that begins with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.bundle import read_bundle
from tests.conftest import REVIEWS, TINY, source
from training.__main__ import main
from training.config import ConfigError, RunConfig, load_config
from training.initial import Start
from training.loop.trainer import Ranks
from training.pipeline import fit
from training.pretrain import pretrain
from training.progress import Display

ROOT = Path(__file__).parents[2]
HERE = Ranks(0, 1, torch.device("cpu"))
QUIET = Display(quiet=True)
SHORT = {"train.epochs": 2, "train.checkpoint_every_steps": 1, "network.ngrams": 64}


def config(tmp_path: Path, **more: object) -> RunConfig:
    texts = tmp_path / "texts.csv"
    texts.write_text("text\n" + "the room was clean and the staff kind\n" * 40, encoding="utf-8")
    unlabelled = [{"name": "texts", "path": str(texts), "language": "en"}]
    rows = {"sources": [source()], "unlabelled": unlabelled}
    return load_config(None, TINY | SHORT | rows | more)


def command(run: Path) -> list[str]:
    settings = [f"{key}={value}" for key, value in (TINY | SHORT).items()]
    chosen = [part for setting in settings for part in ("--set", setting)]
    return ["pretrain", str(REVIEWS), *chosen, "--run-dir", str(run), "--threads", "1"]


class Stopped(Exception):
    pass


def stop(history: object) -> None:
    raise Stopped


def best(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "best.pt", weights_only=True)


def test_it_learns_to_tell_what_was_replaced(tmp_path):
    told = []
    run = config(tmp_path, **{"train.epochs": 15})
    pretrain(run, Path(), tmp_path / "run", HERE, QUIET, lambda history: told.append(history[-1]))
    assert told[-1]["loss"] < 0.8 * told[0]["loss"]
    assert told[-1]["accuracy/validation"] > told[0]["accuracy/validation"]


def test_a_run_begins_with_what_the_texts_taught(tmp_path):
    run = config(tmp_path, **{"train.token_vectors": True})
    pretrain(run, Path(), tmp_path / "run", HERE, QUIET)
    taught = Start.read(tmp_path / "run")
    still = config(tmp_path, **{"train.token_vectors": True, "train.epochs": 0})
    out = tmp_path / "bundle"
    fit(still, Path(), tmp_path / "fit", out, HERE, QUIET, start_from=tmp_path / "run")
    assert read_bundle(out).tokenizer.to_json() == taught.tokenizer
    begun = best(tmp_path / "fit")
    assert taught.weights.keys() == begun.keys()
    assert all(torch.equal(begun[name], value) for name, value in taught.weights.items())


def test_one_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    run = config(tmp_path)
    pretrain(run, Path(), tmp_path / "whole", HERE, QUIET)
    with pytest.raises(Stopped):
        pretrain(run, Path(), tmp_path / "broken", HERE, QUIET, stop)
    pretrain(run, Path(), tmp_path / "broken", HERE, QUIET)
    whole, broken = best(tmp_path / "whole"), best(tmp_path / "broken")
    assert all(torch.equal(broken[name], value) for name, value in whole.items())


def test_two_processes_learn_together(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    start = [sys.executable, *launcher, "-m", "training", *command(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        start, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Start.read(tmp_path).weights


def test_a_run_of_another_kind_does_not_go_on_in_its_folder(tmp_path):
    run = config(tmp_path)
    pretrain(run, Path(), tmp_path / "run", HERE, QUIET)
    with pytest.raises(ValueError, match="belongs to another configuration"):
        fit(run, Path(), tmp_path / "run", tmp_path / "out", HERE, QUIET)


def test_other_texts_are_not_gone_on_with(tmp_path):
    pretrain(config(tmp_path), Path(), tmp_path / "run", HERE, QUIET)
    others = config(tmp_path)
    texts = tmp_path / "texts.csv"
    texts.write_text(texts.read_text("utf-8").replace("kind", "rude"), encoding="utf-8")
    with pytest.raises(ValueError, match="belongs to another configuration or other data"):
        pretrain(others, Path(), tmp_path / "run", HERE, QUIET)


def test_nothing_to_learn_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.epochs=0 trains nothing"):
        pretrain(config(tmp_path, **{"train.epochs": 0}), Path(), tmp_path / "r", HERE, QUIET)


def test_the_command_says_what_to_do_next(tmp_path, capsys):
    assert main(command(tmp_path)) == 0
    assert f"fit --start-from {tmp_path}" in capsys.readouterr().err
