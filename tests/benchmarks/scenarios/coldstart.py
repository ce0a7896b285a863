"""From process start to SERVING, and what importing the service costs."""

import collections
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.benchmarks.bench import Bench, Key, Phase
from tests.benchmarks.figures import Figures
from tests.benchmarks.process import ROOT, ProcessFailed
from tests.benchmarks.report import Result

MODULES = "service.__main__, service.server"  # what `realce serve` imports
IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s*([\w.]+)")
LIMIT_S = 60
MOST_NAMED = 10
SHOWN: tuple[str, ...] = ("ready_s", "import_s", "cpu_s", "rss_mb")


def run(bench: Bench) -> Result:
    """Start it anew in every round."""
    phases: dict[Key, Phase] = {}
    for name, folder in bench.bundles.items():
        phases["realce", name, "start"] = partial(start, bench, folder)
    phases["realce", "", "import"] = import_time
    result = Result("coldstart", bench.interleave(phases), SHOWN)
    shares = costs(import_log())
    top = ", ".join(f"{name} {us / 1e3:,.0f}" for name, us in shares.most_common(MOST_NAMED))
    result.notes.append(f"own import time by package, ms: {top}")
    return result


def start(bench: Bench, bundle: Path) -> Figures:
    """A server of its own, asked for its health once it says that it serves."""
    with bench.serve(bundle) as server, grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise ProcessFailed(f"{' '.join(server.command)}: says that it serves, and does not")
        return {"ready_s": server.ready_s, "cpu_s": server.cpu_s(), "rss_mb": server.rss() / 1e6}


def import_time() -> Figures:
    """In a process of its own, the start of the interpreter left out."""
    code = f"import time; s = time.perf_counter(); import {MODULES}; print(time.perf_counter() - s)"
    return {"import_s": float(_python("-c", code).stdout)}


def import_log() -> str:
    """What `-X importtime` says."""
    return _python("-X", "importtime", "-c", f"import {MODULES}").stderr


def costs(log: str) -> collections.Counter[str]:
    """Microseconds that each top-level package took for itself, by an import log."""
    shares = collections.Counter[str]()
    for found in IMPORT.finditer(log):
        shares[found[2].partition(".")[0]] += int(found[1])
    return shares


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=LIMIT_S
    )
