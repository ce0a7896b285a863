"""The images: made of what exists, without torch where they serve, and never root."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def stages() -> dict[str, tuple[str, list[str]]]:
    """Each stage's base and instructions, by name."""
    found: dict[str, tuple[str, list[str]]] = {}
    instructions: list[str] = []
    for line in LINES:
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            instructions = []
            found[match[2]] = (match[1], instructions)
        else:
            instructions.append(line.strip())
    return found


def history(target: str) -> list[str]:
    """A stage's instructions after those of the stages it is built on."""
    base, instructions = stages()[target]
    return (history(base) if base in stages() else []) + instructions


def extras(target: str) -> set[str]:
    """The extras in the environment that a target copies."""
    (source,) = re.findall(r"COPY --from=(\S+) /opt/realce", "\n".join(history(target)))
    (installed,) = re.findall(
        r"--constraint constraints.txt '\.\[(.+?)\]'", "\n".join(history(source))
    )
    return set(installed.split(","))


def test_what_is_copied_exists_and_reaches_the_builder():
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    sources = [
        source
        for line in LINES
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    assert "pyproject.toml" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("cpu", {"cpu", "native"}),
        ("gpu", {"gpu", "native"}),
        ("training", {"cpu", "train", "tune"}),
    ],
)
def test_a_target_installs_its_extras(target, expected):
    assert extras(target) == expected
    assert expected <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("extra", ["cpu", "gpu", "native"])
def test_what_serves_needs_no_torch(extra):
    needs = PROJECT["dependencies"] + PROJECT["optional-dependencies"][extra]
    assert not [one for one in needs if one.startswith(("torch", "datasets", "scikit"))]


@pytest.mark.parametrize("target", ["cpu", "gpu", "training"])
def test_no_image_runs_as_root(target):
    users = [line for line in history(target) if line.startswith("USER ")]
    assert users == ["USER 65532:65532"]  # a number, so that Kubernetes can see it is not root


@pytest.mark.parametrize(
    ("target", "command"), [("cpu", "realce"), ("gpu", "realce"), ("training", "realce-train")]
)
def test_entry_points_are_scripts_of_the_project(target, command):
    assert f'ENTRYPOINT ["{command}"]' in history(target)
    assert command in PROJECT["scripts"]


def test_a_plain_build_makes_the_cpu_image():
    assert list(stages())[-1] == "cpu"
