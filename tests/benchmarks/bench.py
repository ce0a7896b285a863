"""The bench: servers under test, load upon them, and rounds in which all take turns."""

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console

from tests.benchmarks.calls import together
from tests.benchmarks.figures import Figures, per_thousand
from tests.benchmarks.process import Process, ProcessFailed, end_group, launch
from tests.benchmarks.report import Row

READY = "READY\n"
SPARE_S = 90.0  # beyond its seconds, for the answers that are still to come
LEAD_S = 1.0  # of a load beside another
SETTLE_S = 0.3  # between two phases, for what the last one left running
RAW, NATIVE, UNBATCHED = "raw loop", "realce, native", "grpc.aio, unbatched"

Key = tuple[str, str, str]  # system, bundle, load
Phase = Callable[[], Figures]

console = Console(stderr=True)


class Load:
    """A load generator's process: connected once made, sends once begun. A context manager."""

    def __init__(
        self, mode: str, target: str, flags: Mapping[str, Any], cpus: Collection[int] | None = None
    ) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.load", mode, target, "--wait"]
        self.command = command + as_flags(flags)
        self._limit_s = float(flags["seconds"]) + SPARE_S
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self._process = launch(self.command, cpus, **pipes)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != READY:
            _, words = self._process.communicate()
            raise self._failed("did not get ready", words)

    def begin(self) -> None:
        """Send from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def finish(self, *, now: bool = False) -> dict[str, Any]:
        """Wait for the end, or ask for it `now`; the summary. Raises `ProcessFailed`."""
        if now:
            self._process.terminate()
        try:
            output, words = self._process.communicate(timeout=self._limit_s)
        except subprocess.TimeoutExpired as error:
            raise self._failed(f"not done after {self._limit_s:.0f} s", "") from error
        if self._process.returncode:
            raise self._failed("failed", words)
        summary = json.loads(output)
        return {name: float("nan") if one is None else one for name, one in summary.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end_group(self._process, 1.0)

    def _failed(self, what: str, words: str) -> ProcessFailed:
        return ProcessFailed(f"{' '.join(self.command)}: {what}\n{words[-2000:]}")


class Bench:
    """What all scenarios share, from the command line. `bundles` are folders by name."""

    def __init__(self, options: argparse.Namespace, bundles: Mapping[str, Path]) -> None:
        self.options = options
        self.rounds: int = options.rounds
        self.seconds: float = options.seconds
        self.bundles = dict(bundles)
        self._load_cpus: Collection[int] | None = None
        if options.apart:  # what else is started inherits the CPUs of this process
            half, self._load_cpus = halves(os.sched_getaffinity(0))
            os.sched_setaffinity(0, half)
        self.texts: dict[str, Any] = {
            "texts": options.texts.resolve() if options.texts else None,
            "count": options.count,
            "seed": options.seed,
        }

    @property
    def first(self) -> tuple[str, Path]:
        """Name and folder of the bundle for scenarios that use only one."""
        return next(iter(self.bundles.items()))

    def serve(self, bundle: Path, *flags: str) -> Process:
        """Our server, as `realce serve` starts it, with these flags and those of `--serve`."""
        return Process([sys.executable, "-m", "service", "serve", *self._flags(bundle), *flags])

    def measured(self, bundle: Path, backend: str, *flags: str) -> Process:
        """Our server with a backend of `tests.benchmarks.server`."""
        command = [sys.executable, "-m", "tests.benchmarks.server", "--backend", backend]
        return Process([*command, "--", *self._flags(bundle), *flags])

    def peer(self, name: str, bundle: Path, *flags: str) -> Process:
        """Another server, one of `tests.benchmarks.peers`."""
        command = [sys.executable, "-m", f"tests.benchmarks.peers.{name}", *flags]
        return Process([*command, "--bundle", str(bundle), "--device", self.options.device])

    def systems(self, name: str, bundle: Path) -> dict[str, Process]:
        """Ours, by each transport there is, and its peers on a bundle; on the first one ours
        without a backend, too."""
        transports = {"realce": ["--transport", "grpc"]}
        if self.installed("pygrpc_native"):
            transports[NATIVE] = ["--transport", "native"]
        systems = {ours: self.serve(bundle, *flags) for ours, flags in transports.items()}
        systems[UNBATCHED] = self.peer("unbatched", bundle)
        systems[f"{UNBATCHED}, 1 thread"] = self.peer("unbatched", bundle, "--threads", "1")
        if self.installed("mosec"):
            systems["mosec"] = self.peer("mosec", bundle)
        if (name, bundle) == self.first:
            for ours, flags in transports.items():
                systems[f"{ours}, null backend"] = self.measured(bundle, "null", *flags)
        return systems

    def installed(self, package: str) -> bool:
        """Whether a peer's package is there; says so where it is not."""
        found = importlib.util.find_spec(package) is not None
        if not found:
            say(f"left out: {package} is not installed")
        return found

    def load(self, server: Process, mode: str, **flags: Any) -> Load:
        """A load generator for that server; flags as of `tests.benchmarks.load`."""
        shared = {"seconds": self.seconds, "channels": self.options.channels}
        return Load(mode, server.address, self.texts | shared | flags, self._load_cpus)

    def measure(
        self,
        server: Process,
        mode: str,
        *,
        beside: Load | None = None,
        loads: int = 1,
        **flags: Any,
    ) -> Figures:
        """Run a load, or several alike, to the end; the summary, and the CPU-seconds that it cost
        the server.

        A load `beside` it, where one is given, begins `LEAD_S` before.
        """
        with contextlib.ExitStack() as stack:
            alike = [stack.enter_context(self.load(server, mode, **flags)) for _ in range(loads)]
            if beside is not None:
                beside.begin()
                time.sleep(LEAD_S)
            before_s = server.cpu_s()
            for load in alike:
                load.begin()
            summary = together([load.finish() for load in alike])
            cpu_s = server.cpu_s() - before_s
        figures: Figures = {
            name: value for name, value in summary.items() if isinstance(value, int | float)
        }
        figures |= {f"calls_{code.lower()}": n for code, n in summary.get("codes", {}).items()}
        figures |= {"cpu_s": cpu_s, "cpu_s_per_1000": per_thousand(cpu_s, summary["texts_ok"])}
        figures["rss_mb"] = server.rss() / 1e6
        return figures

    def raw(self, kind: str, bundle: Path, **flags: Any) -> Figures:
        """The raw loop, in a process of its own; flags as of `tests.benchmarks.raw`."""
        command = [sys.executable, "-m", "tests.benchmarks.raw", kind, "--bundle", str(bundle)]
        shared = {"seconds": self.seconds, "device": self.options.device}
        command += as_flags(self.texts | shared | flags)
        process = launch(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            output, words = process.communicate(timeout=self.seconds + SPARE_S)
        finally:
            end_group(process, 0.0)
        if process.returncode:
            raise ProcessFailed(f"{' '.join(command)}: failed\n{words[-2000:]}")
        figures = json.loads(output)
        return {name: float("nan") if one is None else one for name, one in figures.items()}

    def warm_up(self, server: Process, **flags: Any) -> None:
        """A second of load that is not measured, for pools and caches to fill."""
        self.measure(server, "closed", **({"callers": 4} | flags | {"seconds": 1.0}))

    def interleave(self, phases: Mapping[Key, Phase]) -> list[Row]:
        """Rounds of all phases in turn, so that a machine that changes does so for all of them."""
        rows = [Row(*key) for key in phases]
        turns = list(zip(rows, phases.values(), strict=True))
        for number in range(self.rounds):
            for row, phase in turns:
                say(f"round {number + 1}/{self.rounds}: {row.system}, {row.bundle}, {row.load}")
                row.rounds.append(phase())
                time.sleep(SETTLE_S)
        return rows

    def _flags(self, bundle: Path) -> list[str]:
        place = ["--grpc", "127.0.0.1:0", "--http", "", "--device", self.options.device]
        return [*place, "--bundle", str(bundle), *shlex.split(self.options.serve)]


def halves(cpus: Collection[int]) -> tuple[list[int], list[int]]:
    """The CPUs in two: the first half, with the odd one, and the others."""
    known, middle = sorted(cpus), (len(cpus) + 1) // 2
    return known[:middle], known[middle:]


def say(text: str) -> None:
    """A line on what is going on, apart from the results."""
    console.print(text, style="dim", markup=False, highlight=False)


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Command-line flags: True is a flag alone, False and None are none, a list has its values."""
    flags: list[str] = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        flags.append("--" + name.replace("_", "-"))
        if isinstance(value, Sequence) and not isinstance(value, str):
            flags += map(str, value)
        elif value is not True:
            flags.append(str(value))
    return flags
