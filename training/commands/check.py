"""`realce-train check`: how a bundle behaves on sentences that leave no doubt."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from model.bundle import read_bundle
from training.commands.options import write
from training.evaluation.behaviour import check


def add(commands: Any) -> None:
    """Its words on the command line."""
    command = commands.add_parser(
        "check",
        help="test what a bundle is able to do",
        description="Test how a bundle behaves on sentences that leave no doubt: negation, "
        "contrast, typos, names and more. The form of a suite: training/evaluation/behaviour.py.",
    )
    command.add_argument("bundle", type=Path, help="folder of the bundle")
    command.add_argument(
        "--suite",
        type=Path,
        action="extend",
        nargs="+",
        default=[],
        metavar="FILE",
        help="TOML file of tests (default: ours in the bundle's languages)",
    )
    command.add_argument(
        "--examples", type=int, default=1, metavar="N", help="failures shown a test (default: 1)"
    )
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures and all failures as JSON"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; the exit status."""
    reports = check(read_bundle(options.bundle), options.suite)
    if options.json is not None:
        content = [{"suite": path.name} | report.to_json() for path, report in reports.items()]
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write("--json", options.json, text)
    console = Console()
    for path, report in reports.items():
        console.print(report.table(path.stem))
        if options.examples > 0 and any(outcome.failures for outcome in report.outcomes):
            console.print(report.examples(options.examples))
    return 0
