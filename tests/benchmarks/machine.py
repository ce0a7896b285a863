"""What numbers depend on besides the code: the machine, the system, the versions."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.process import ROOT

PACKAGES = ("grpcio", "numpy", "onnxruntime", "onnxruntime-gpu", "protobuf", "tokenizers")


def describe() -> dict[str, Any]:
    """For a report."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def sentence(machine: dict[str, Any]) -> str:
    """For people."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['cpus']} × {machine['cpu']}, load average {machine['load_average'][0]:.1f} "
        f"at the start; Python {machine['python']}, {packages}; commit {machine['commit']}"
    )


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((one.split(":", 1)[1].strip() for one in lines if one.startswith("model name")), "")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
