"""`realce-train fit`: from labelled rows to a bundle."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from training.commands.options import add_run, add_tensorboard, device_of, process, run_config
from training.evaluation import results
from training.pipeline import fit


def add(commands: Any) -> None:
    """Its words on the command line."""
    command = commands.add_parser(
        "fit",
        help="train on labelled texts and write a bundle",
        description="Train on labelled texts and write a bundle. The simplest call: "
        "realce-train fit reviews.csv --out bundle. Run it again after an interruption and it goes "
        "on where it stopped; `torchrun --nproc-per-node N -m training fit ...` uses N processes.",
    )
    add_run(command)
    command.add_argument("--out", type=Path, required=True, help="folder to write the bundle into")
    command.add_argument("--run-dir", type=Path, help="folder for checkpoints (default: runs/NAME)")
    command.add_argument(
        "--start-from",
        type=Path,
        help="run folder of an earlier stage, or a bundle, to begin with the weights of",
    )
    add_tensorboard(command)
    command.add_argument(
        "--results", type=Path, metavar="CSV", help="table of runs to add this one's figures to"
    )
    command.add_argument("--json", action="store_true", help="print the manifest when done")
    command.set_defaults(run=run, goes_on=True)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; the exit status."""
    config, device = run_config(options), device_of(options)
    folder = options.run_dir or Path("runs") / config.name
    if options.results is not None:
        results.check(options.results)
    with process(options, device) as (where, display, board):
        paths = options.data_dir, folder, options.out
        watch = None if board is None else board.watch
        bundle = fit(config, *paths, where, display, options.start_from, watch)
        if bundle is not None and board is not None:
            board.test(bundle.manifest.metrics)
    if bundle is not None and options.results is not None:
        results.append(options.results, bundle.manifest, config.train.seed)
    if bundle is not None and options.json:
        Console().out(bundle.manifest.model_dump_json(indent=2), highlight=False)
    return 0
