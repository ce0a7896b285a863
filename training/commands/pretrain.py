"""`realce-train pretrain`: what layers learn from texts alone."""

import argparse
from pathlib import Path
from typing import Any

from training.commands.options import add_run, add_tensorboard, device_of, process, run_config
from training.pretrain import pretrain


def add(commands: Any) -> None:
    """Its words on the command line."""
    command = commands.add_parser(
        "pretrain",
        help="learn from texts alone what stands where, before `fit`",
        description="Let the layers learn, from the texts of all sources and from unlabelled ones, "
        "to tell which words were replaced by others. `realce-train fit --start-from RUN` begins "
        "with what they know. Run it again after an interruption and it goes on where it stopped.",
    )
    add_run(command)
    command.add_argument(
        "--run-dir", type=Path, help="folder of the run (default: runs/NAME-pretrained)"
    )
    add_tensorboard(command)
    command.set_defaults(run=run, goes_on=True)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; the exit status."""
    config, device = run_config(options), device_of(options)
    folder = options.run_dir or Path("runs") / f"{config.name}-pretrained"
    with process(options, device) as (where, display, board):
        watch = None if board is None else board.watch
        pretrain(config, options.data_dir, folder, where, display, watch)
    return 0
