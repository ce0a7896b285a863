"""`realce-train calibrate`: a bundle as sure as it is right on other texts."""

import argparse
from pathlib import Path
from typing import Any

from training.commands.options import add_bundle_and_rows, bundle_and_rows
from training.progress import Display
from training.recalibration import recalibrate


def add(commands: Any) -> None:
    """Its words on the command line."""
    command = commands.add_parser(
        "calibrate",
        help="make a bundle as sure as it is right on your texts",
        description="Write a bundle once more, at the temperature and the abstention threshold "
        "that suit these texts. Its answers stay as they are, how sure they are does not. The "
        "texts should be such as it is to answer, and none that it was trained on.",
    )
    add_bundle_and_rows(command)
    command.add_argument("--out", type=Path, required=True, help="folder to write the bundle into")
    command.add_argument("--version", help="version of the bundle (default: VERSION+calibrated)")
    command.add_argument("--quiet", action="store_true", help="no progress")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; the exit status."""
    bundle, rows, name = bundle_and_rows(options)
    display = Display(quiet=options.quiet)
    recalibrate(bundle, name, rows, options.out, display, options.version)
    return 0
