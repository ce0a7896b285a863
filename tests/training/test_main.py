"""The command line, as far as it is not another file's."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REVIEWS
from training.__main__ import main


def test_evaluate_measures_a_bundle_on_a_file(tiny_bundle, capsys):
    assert main(["evaluate", str(tiny_bundle), str(REVIEWS), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    turned = ["--label", "positive=negative", "--label", "negative=positive"]
    assert main(["evaluate", str(tiny_bundle), str(REVIEWS), *turned]) == 0
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert figures["rows"] == int(said["rows"])
    assert figures["accuracy"] > 0.9, "it knows its few sentences by heart"
    assert float(said["accuracy"]) == pytest.approx(1 - figures["accuracy"], abs=1e-4)


def test_evaluate_says_nothing_where_nobody_reads_any_more(tiny_bundle):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "training", "evaluate", str(tiny_bundle), str(REVIEWS)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_who_installed_only_what_serves_is_told_what_is_missing():
    code = "import sys; sys.modules['torch'] = None; import training.__main__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "realce-train: torch is not installed; the extra 'train' has it: make train\n"
    )
