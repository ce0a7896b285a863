"""The READMEs hold what they say: their code runs, their tree is the tree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_its_tree_is_the_tree():
    text = READMES[0].read_text(encoding="utf-8")
    tree = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert tree
    folder, named = "", set()
    for line in tree[1].splitlines():
        if line.startswith("  "):
            named.add(f"{folder}/{line.split()[0]}")
        else:
            folder = line.split()[0].rstrip("/")
    named = {path for path in named if path.startswith(LISTED) and path.endswith(".py")}
    actual = {
        path.relative_to(ROOT).as_posix()
        for folder in LISTED
        for path in (ROOT / folder).glob("*.py")
        if path.name != "__init__.py"
    }
    assert named == actual


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_its_links_lead_somewhere(path: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("target", ["serve", "test", "train", "image"])
def test_its_make_targets_exist(target: str):
    command = ["make", "--dry-run", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
