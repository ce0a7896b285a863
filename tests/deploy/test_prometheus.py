"""Alerts and dashboard: they ask for metrics that there are, by labels that these have."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from service.metrics import Metrics
from tests.fakes import FakeEngine

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "deploy" / "prometheus"
OF_PROMETHEUS = {"job", "instance", "le"}


def alerts() -> list[str]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    return [rule["expr"] for rule in group["rules"]]


def panels() -> list[str]:
    board = json.loads((FOLDER / "dashboard.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def samples() -> dict[str, set[str]]:
    """The name of every sample, and the labels it has."""
    metrics = Metrics()
    metrics.call("Classify", "OK", 0.01)
    metrics.message("OK")
    metrics.reload("failed")
    metrics.serve(FakeEngine.description)
    found: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("expression", [*alerts(), *panels()])
def test_an_expression_names_what_the_server_tells(expression):
    known = samples()
    names = set(re.findall(r"\brealce_[a-z_]+", expression))
    assert names
    assert names <= known.keys()
    labels = {label for name in names for label in known[name]} | OF_PROMETHEUS
    filters = re.findall(r"(\w+)=~?\"", expression)
    groups = [
        one for group in re.findall(r"by \(([^)]*)\)", expression) for one in group.split(",")
    ]
    assert {label.strip() for label in [*filters, *groups]} <= labels


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_alerts_fire_when_they_should_and_else_not():
    command = ["promtool", "test", "rules", "alerts_test.yaml"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
