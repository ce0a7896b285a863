"""`realce-train evaluate`: how good a bundle is on labelled texts."""

import argparse
import json
from typing import Any

from rich.console import Console

from training.commands.options import add_bundle_and_rows, bundle_and_rows
from training.encoding import encode
from training.evaluation.metrics import measure, predict_bundle


def add(commands: Any) -> None:
    """Its words on the command line."""
    command = commands.add_parser(
        "evaluate", help="measure a bundle on labelled texts", description="Measure a bundle."
    )
    add_bundle_and_rows(command)
    command.add_argument("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; the exit status."""
    bundle, rows, _ = bundle_and_rows(options)
    probabilities = predict_bundle(bundle, encode(rows, bundle.tokenizer))
    metrics = measure(probabilities, rows.labels)
    console = Console()
    if options.json:
        console.out(json.dumps(metrics), highlight=False)
    else:
        for name, value in metrics.items():
            said = f"{value:.4f}" if isinstance(value, float) else value
            console.out(f"{name}: {said}", highlight=False)
    return 0
