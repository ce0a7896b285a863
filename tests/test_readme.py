"""The READMEs hold what they say: their code runs, their tree is the tree."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import service.__main__
import training.__main__
from service.server import Server

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.pt-BR.md"]
LISTED = ("model", "training", "service")


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
async def test_its_python_runs_against_a_server(path: Path, server: Server):
    import asyncio

    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        code = block.replace("127.0.0.1:50051", f"127.0.0.1:{server.port}")
        assert code != block
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, cwd=ROOT, stderr=asyncio.subprocess.PIPE
        )
        _, error = await process.communicate()
        assert process.returncode == 0, error.decode()


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_its_tree_is_the_tree(path: Path):
    text = path.read_text(encoding="utf-8")
    tree = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert tree
    folder, named = "", set()
    for line in tree[1].splitlines():
        if line.startswith("  "):
            named.add(f"{folder}/{line.split()[0]}")
        else:
            folder = line.split()[0].rstrip("/")
    code = {path for path in named if path.startswith(LISTED) and path.endswith(".py")}
    actual = {
        path.relative_to(ROOT).as_posix()
        for folder in LISTED
        for path in (ROOT / folder).glob("*.py")
        if path.name != "__init__.py"
    }
    assert code == actual
    packages = {
        f"{path.parent.relative_to(ROOT).as_posix()}/"
        for folder in LISTED
        for path in (ROOT / folder).glob("*/__init__.py")
    }
    assert packages <= named


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_its_links_lead_somewhere(path: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("target", ["serve", "test", "train", "image"])
def test_its_make_targets_exist(target: str):
    command = ["make", "--dry-run", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def commands(path: Path) -> list[list[str]]:
    """Every command that a README shows, as words."""
    lines = path.read_text(encoding="utf-8").splitlines()
    shown = [line[4:] for line in lines if line.startswith("    ") and line[4:5].strip()]
    shown += [line[2:] for line in lines if line.startswith("$ ")]
    starts = ("make ", "kubectl ", ".venv/bin/")
    return [shlex.split(line) for line in shown if line.startswith(starts)]


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_its_commands_are_understood(path: Path):
    seen = set()
    for program, *words in commands(path):
        seen.add(program)
        if program == ".venv/bin/realce":
            service.__main__.parser().parse_args(words)
        elif program == ".venv/bin/realce-train":
            training.__main__.parser().parse_args(words)
        elif words[0] == "train":
            arguments = words[1].removeprefix("ARGS=").split()
            training.__main__.parser().parse_args(["fit", *arguments])
        elif "-k" in words:
            assert (ROOT / words[-1] / "kustomization.yaml").exists()
    assert seen == {".venv/bin/realce", ".venv/bin/realce-train", "make", "kubectl"}


def test_both_languages_show_the_same_commands():
    english, portuguese = (
        [one[:2] for one in commands(path) if one[0] != "make"] for path in READMES
    )
    assert english == portuguese
