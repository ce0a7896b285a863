import importlib.metadata
import subprocess

import numpy as np
import pytest
import torch

from model.bundle import Bundle, read_bundle
from model.classifier import TextClassifier
from training.data.batches import Dataset
from training.evaluation.metrics import predict, predict_bundle
from training.progress import Display
from training.release import bundle as module
from training.release.bundle import code_identity, release
from training.release.export import ExportError, export

FACTS = {
    "name": "mine",
    "version": "3.1",
    "labels": ("bad", "good"),
    "languages": ("pt",),
    "temperature": 1.7,
    "abstention_threshold": 0.8,
    "metrics": {},
    "sources": (),
    "license": "Apache-2.0",
}
SAID = {
    "half_weights": False,
    "settings": {"steps": 12},
    "warnings": ("few rows",),
    "plots": {"loss.png": b"a plot"},
    "display": Display(quiet=True),
}


@pytest.fixture
def network(bundle: Bundle) -> TextClassifier:
    torch.manual_seed(0)
    network = TextClassifier(bundle.manifest.config).eval()
    torch.nn.init.constant_(network.head.bias, 0.25)
    return network


def test_what_is_written_is_the_network_and_what_is_said_of_it(network, bundle, tmp_path):
    released = release(tmp_path / "out", network, bundle.tokenizer, FACTS, **SAID)
    read = read_bundle(tmp_path / "out")
    assert read.fingerprint == released.fingerprint
    assert {key: getattr(read.manifest, key) for key in FACTS} == FACTS
    assert read.manifest.config == network.config
    assert read.manifest.bias == (0.25, 0.25)
    assert read.manifest.code == code_identity()
    report = tmp_path / "out" / "report"
    assert (report / "loss.png").read_bytes() == b"a plot"
    card = (report / "model_card.md").read_text(encoding="utf-8")
    assert "- steps: 12" in card
    assert "- few rows" in card
    texts = bundle.tokenizer.encode_batch(["muito bom", "não gostei"], offsets=False)
    rows = Dataset.encode(texts, np.eye(2, dtype="f4"))
    np.testing.assert_allclose(
        predict_bundle(read, rows, "logits"),
        predict(network, rows, torch.device("cpu")),
        atol=1e-5,
    )


def test_a_graph_that_answers_otherwise_is_not_written(network, bundle, tmp_path, monkeypatch):
    def colder(network, temperature, *, half_weights):
        return export(network, temperature / 2, half_weights=half_weights)

    monkeypatch.setattr(module, "export", colder)
    with pytest.raises(ExportError, match="probabilities"):
        release(tmp_path / "out", network, bundle.tokenizer, FACTS, **SAID)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [OSError, subprocess.CalledProcessError(128, "git")])
def test_code_outside_of_a_checkout_is_known_by_its_version(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert code_identity() == importlib.metadata.version("realce")


def test_code_is_known_by_the_commit_of_its_own_checkout_and_not_of_one_around_it(
    tmp_path, monkeypatch
):
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    version = importlib.metadata.version("realce")
    installed = tmp_path / "bundle.py"
    monkeypatch.setattr(module, "__file__", str(installed))
    git("init")
    git("commit", "--allow-empty", "--message", "of somebody else")
    installed.write_text("code")
    assert code_identity() == version
    git("add", ".")
    git("commit", "--message", "ours")
    commit = code_identity().removeprefix(f"{version}+")
    assert len(commit) == 12
    installed.write_text("other code")
    assert code_identity() == f"{version}+{commit}.changed"
