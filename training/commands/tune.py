"""`realce-train tune`: the settings that suit the texts."""

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

from training.commands.options import add_run, device_of, extra, run_config
from training.progress import Display


def add(commands: Any) -> None:
    """Its words on the command line."""
    command = commands.add_parser(
        "tune",
        help="search for the settings that suit the texts",
        description="Try a run with other settings, again and again, and write the config of the "
        "one that is best on validation rows; test rows have no say. `realce-train fit --config "
        "tuned.toml` then makes the bundle. Run it again after an interruption and it goes on "
        "where it stopped. One process a run folder.",
    )
    add_run(command)
    command.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="end when N are done, earlier starts included (default: 20, or as --minutes allow)",
    )
    command.add_argument(
        "--minutes", type=float, metavar="M", help="begin no further trial after M minutes"
    )
    command.add_argument(
        "--out", type=Path, default=Path("tuned.toml"), help="config to write (default: tuned.toml)"
    )
    command.add_argument(
        "--run-dir", type=Path, help="folder of the search (default: runs/NAME-tune)"
    )
    command.set_defaults(run=run, goes_on=True)


def run(options: argparse.Namespace) -> int:
    """Do what was asked; the exit status."""
    with extra("tune"):
        from training.tune import tune
    config, device = run_config(options), torch.device(device_of(options))
    folder = options.run_dir or Path("runs") / f"{config.name}-tune"
    search = tune(
        config,
        options.data_dir,
        folder,
        options.out,
        device,
        Display(quiet=options.quiet),
        options.trials,
        options.minutes,
    )
    console = Console()
    console.print(search.table())
    if importances := search.importances():
        table = Table("knob", Column("share in the differences", justify="right"))
        for name, share in importances.items():
            table.add_row(name, f"{share:.0%}")
        console.print(table)
    return 0
