"""Imports go down only. The rules are in pyproject.toml, under tool.importlinter."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "training", "service", "protos")


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    script = "from importlinter import cli; raise SystemExit(cli.lint_imports(no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources, to break."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        names = shutil.ignore_patterns("__pycache__", "bundle")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=names)
    return tmp_path


def test_the_rules_hold():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("path", "line", "rule"),
    [
        ("service/scheduler.py", "from service import batcher", "A request goes down"),
        ("service/novelty.py", "X = 1", "A request goes down"),
        ("service/views.py", "import torch", "Serving never loads torch"),
        ("service/engine.py", "import model.classifier", "Serving never loads torch"),
        ("model/tokenizer.py", "import model.attention", "Configuration, tokenizer, bundle"),
        ("service/engine.py", "import grpc", "Only the edge speaks gRPC"),
        ("training/data/rows.py", "import protos.realce.v1.classifier_pb2", "Only the edge"),
        ("training/data/rows.py", "import training.data.sources", "Folders and files of training"),
        ("training/loop/trainer.py", "import service.types", "Training and service stand on model"),
        ("model/config.py", "import training.config", "Training and service stand on model"),
    ],
)
def test_a_breach_is_seen(tree: Path, path: str, line: str, rule: str):
    target = tree / path
    text = target.read_text() if target.exists() else '"""New."""\n'
    target.write_text(f"{text}\n{line}\n")
    done = lint(tree)
    assert done.returncode == 1, done.stdout + done.stderr
    assert any(out.startswith(rule) and "BROKEN" in out for out in done.stdout.splitlines())


def test_serving_loads_no_torch():
    code = "import sys, service.server, service.__main__; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def reads_environment(path: Path) -> bool:
    names = {"environ", "environb", "getenv", "getenvb"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in names:
            return True
        if isinstance(node, ast.ImportFrom) and names & {one.name for one in node.names}:
            return True
    return False


def test_only_the_settings_read_the_environment():
    readers = [path.name for path in (ROOT / "service").rglob("*.py") if reads_environment(path)]
    assert readers == ["settings.py"]
