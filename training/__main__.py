"""`realce-train`: from labelled rows to a bundle."""

import argparse
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType

from model.bundle import BundleError

try:
    from training.commands import (
        calibrate,
        check,
        evaluate,
        faithfulness,
        fit,
        label,
        pretrain,
        report,
        tune,
    )
    from training.config import ConfigError
    from training.data.formats import DataError
    from training.evaluation.results import ResultsError
    from training.loop.checkpoint import CheckpointError
    from training.release.export import ExportError
except ModuleNotFoundError as missing:  # who installed what serves has the command, too
    if missing.name is None or missing.name.partition(".")[0] in ("model", "training"):
        raise
    print(
        f"realce-train: {missing.name} is not installed; the extra 'train' has it: make train",
        file=sys.stderr,
    )
    sys.exit(2)

COMMANDS = (fit, pretrain, label, evaluate, calibrate, check, faithfulness, tune, report)
REFUSALS = (BundleError, CheckpointError, ConfigError, DataError, ExportError, ResultsError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it is done, 2 when what was asked cannot be."""
    options = parser().parse_args(arguments)
    # Kubernetes asks so, and the first process of a container hears only what it listens to.
    signal.signal(signal.SIGTERM, _stop)
    try:
        return int(options.run(options))
    except REFUSALS as error:
        print(f"realce-train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        more = "; the same command goes on from here" if getattr(options, "goes_on", False) else ""
        print(f"realce-train: stopped{more}", file=sys.stderr)
        return 130


def _stop(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="realce-train", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return top


if __name__ == "__main__":
    warnings.filterwarnings("default")
    sys.exit(main())
