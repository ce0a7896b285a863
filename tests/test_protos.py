"""The committed code is what the protocol generates."""

import re
import subprocess
import sys
import sysconfig
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROTOCOLS = sorted(path.relative_to(ROOT) for path in (ROOT / "protos").rglob("*.proto"))
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")


def generated(root: Path) -> dict[str, str]:
    """Generated code under a root, by path."""
    paths = [path for pattern in GENERATED for path in (root / "protos").rglob(pattern)]
    return {path.relative_to(root).as_posix(): path.read_text() for path in paths}


def test_generated_code_has_not_drifted(tmp_path):
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    paths = [f"--proto_path={path}" for path in (ROOT, sysconfig.get_path("purelib"))]
    command = [sys.executable, "-m", "grpc_tools.protoc", *paths, *outputs, *map(str, PROTOCOLS)]
    subprocess.run(command, cwd=ROOT, check=True)
    fresh, committed = generated(tmp_path), generated(ROOT)
    assert fresh.keys() == committed.keys()
    drifted = [path for path in fresh if fresh[path] != committed[path]]
    assert not drifted, "run `make protos`"


@pytest.mark.parametrize("path", PROTOCOLS, ids=str)
def test_everything_declared_is_commented(path):
    declares = re.compile(r"(message|service|enum|  rpc|  oneof) |  +[\w.<>, ]+ = \d+;")
    lines = (ROOT / path).read_text().splitlines()
    bare = [
        line.strip()
        for before, line in pairwise(lines)
        if declares.match(line) and not before.lstrip().startswith("//")
    ]
    assert not bare
