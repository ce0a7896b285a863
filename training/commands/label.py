"""`realce-train label`: what bundles say of texts, for `fit` to read."""

import argparse
from pathlib import Path
from typing import Any, get_args

from model.bundle import read_bundle
from training.commands.options import add_texts, texts_of
from training.data.sources import Unit
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
    add_texts(command)
    command.add_argument(
        "--unit",
        choices=get_args(Unit),
        default="text",
        help="'sentences': label each sentence, by its text's label and its own",
    )
    command.add_argument(
        "--out", type=Path, required=True, help="file to write, with a name that ends in .jsonl.gz"
    )
    command.add_argument("--quiet", action="store_true", help="no progress")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; the exit status."""
    texts = texts_of(options)
    ensemble = Ensemble.of([read_bundle(path) for path in options.bundles])
    label(ensemble, texts, options.unit, options.out, Display(quiet=options.quiet))
    return 0
