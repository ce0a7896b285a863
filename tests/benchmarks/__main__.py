"""Measure the server: `python -m tests.benchmarks unary bulk --rounds 5 --out results`."""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from model.bundle import BundleError
from service.ort_backend import DeviceError, choose_provider
from tests.benchmarks import machine, plots, report
from tests.benchmarks.bench import Bench, say
from tests.benchmarks.bundles import MissingTorch, find
from tests.benchmarks.process import ProcessFailed

SCENARIOS = (
    "unary",
    "bulk",
    "coldstart",
    "views",
    "overload",
    "mixed",
    "dead",
    "memory",
    "reload",
    "workers",
    "parity",
    "training",
    "precision",
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure the server on loopback against a raw ONNX Runtime loop and peers.",
    )
    add = top.add_argument
    add("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; default: all")
    add("--rounds", type=int, default=5, help="default: 5; tables show the medians of them")
    add("--seconds", type=float, default=5.0, help="of each phase (default: 5)")
    add("--out", type=Path, metavar="DIR", help="write JSON and plots there")
    add(
        "--bundles",
        nargs="+",
        default=["embedded", "4x256"],
        metavar="BUNDLE",
        help="embedded, a folder, or LAYERSxWIDTH with random weights (default: embedded 4x256); "
        "scenarios that use one bundle use the first",
    )
    add("--texts", type=Path, metavar="FILE", help="real texts: lines, or the column text of a CSV")
    add("--count", type=int, default=1280, help="how many different texts (default: 1280)")
    add("--calls", type=int, default=20_000, help="calls of the scenario memory (default: 20000)")
    add("--reloads", type=int, default=50, help="of the scenario reload (default: 50)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of all that computes")
    add("--serve", default="", metavar="FLAGS", help="more flags of our server, as one word")
    add("--channels", type=int, default=1, help="connections of each load (default: 1)")
    add(
        "--apart",
        action="store_true",
        help="load on one half of the CPUs, servers and raw loops on the other",
    )
    add("--seed", type=int, default=0)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the scenarios; 0 when all were measured, 1 when one could not be."""
    top = parser()
    options = top.parse_args(arguments)
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        top.error(f"no such scenario: {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    if options.texts and not options.texts.is_file():
        top.error(f"--texts {options.texts}: no such file")
    if options.apart and len(os.sched_getaffinity(0)) < 2:
        top.error("--apart: there is one CPU only")
    try:
        choose_provider(options.device)
    except DeviceError as error:
        top.error(f"--device={options.device}: {error}")
    failed = False
    with tempfile.TemporaryDirectory(prefix="realce-bundles-") as temporary:
        cache = options.out / "bundles" if options.out else Path(temporary)
        bundles = {}
        for name in options.bundles:
            try:
                bundles[name] = find(name, cache)
            except BundleError as error:
                top.error(f"--bundles {error}")
            except MissingTorch as error:
                say(f"left out: {error}")
        bench = Bench(options, bundles)
        context = {"options": vars(options), "machine": machine.describe()}
        print(machine.sentence(context["machine"]))
        for name in options.scenarios or SCENARIOS:
            scenario = importlib.import_module(f"tests.benchmarks.scenarios.{name}")
            try:
                result = scenario.run(bench)
            except (ProcessFailed, subprocess.SubprocessError) as error:
                failed = True
                print(f"{name}: {error}", file=sys.stderr)
                continue
            report.show(result)
            if options.out:
                report.write(result, options.out / f"{name}.json", context)
                for path in plots.draw(result, options.out):
                    say(f"drew {path}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
