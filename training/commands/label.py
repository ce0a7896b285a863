"""`realce-train label`: what bundles say of texts, for `fit` to read."""

import argparse
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from model.bundle import read_bundle
from model.faults import faults
from training.commands.options import place
from training.config import ConfigError
from training.data.sources import SourceConfig, Unit, read_texts
from training.labelling import Ensemble, label
from training.progress import Display


def add(commands: Any) -> None:
    """Its words on the command line."""
    command = commands.add_parser(
        "label",
        help="let bundles label texts for `fit` to read",
        description="Write each text of a file and the share of each class in its label, the mean "
        "of what bundles say, as a source for `realce-train fit`: a network that reads many texts "
        "so learns what several know, or what a larger one does.",
    )
    command.add_argument(
        "bundles", type=Path, nargs="+", metavar="BUNDLE", help="folder of a bundle"
    )
    command.add_argument("--texts", required=True, metavar="FILE", help="file of texts")
    command.add_argument("--text-column", default="text", help="column of the text (default: text)")
    command.add_argument(
        "--unit",
        choices=get_args(Unit),
        default="text",
        help="'sentences': label each sentence, by its text's label and its own",
    )
    command.add_argument("--strip-html", action="store_true", help="turn <br /> into a space")
    command.add_argument(
        "--skip", type=int, default=0, metavar="N", help="leave the first N texts out (default: 0)"
    )
    command.add_argument("--limit", type=int, metavar="N", help="label N texts at most")
    command.add_argument(
        "--out", type=Path, required=True, help="file to write, with a name that ends in .jsonl.gz"
    )
    command.add_argument("--quiet", action="store_true", help="no progress")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; the exit status."""
    try:
        source = SourceConfig(
            **place(options.texts),
            text=options.text_column,
            strip_html=options.strip_html,
        )
    except ValidationError as error:
        raise ConfigError(f"--texts {options.texts}: {faults(error)}") from error
    for flag, value, least in (("--skip", options.skip, 0), ("--limit", options.limit, 1)):
        if value is not None and value < least:
            raise ConfigError(f"{flag} {value}: must be {least} or more")
    texts = read_texts(source, Path())[options.skip :][: options.limit]
    ensemble = Ensemble.of([read_bundle(path) for path in options.bundles])
    label(ensemble, texts, options.unit, options.out, Display(quiet=options.quiet))
    return 0
