"""`realce-train report`: bundles compared on a page."""

import argparse
from pathlib import Path
from typing import Any

from training.commands.options import write
from training.release.page import page


def add(commands: Any) -> None:
    """Its words on the command line."""
    command = commands.add_parser(
        "report",
        help="compare bundles on an HTML page",
        description="Compare bundles on one HTML page, plots included, that needs no network.",
    )
    command.add_argument(
        "bundles",
        type=Path,
        nargs="+",
        metavar="BUNDLE_OR_RUN",
        help="folder of a bundle, or one that keeps it in bundle/",
    )
    command.add_argument("--out", type=Path, required=True, help="HTML file to write")
    command.add_argument(
        "--behaviour",
        type=Path,
        action="extend",
        nargs="+",
        default=[],
        metavar="FILE",
        help="what `realce-train check --json FILE` wrote, one for each bundle, in their order",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; the exit status."""
    write("--out", options.out, page(options.bundles, options.behaviour))
    return 0
