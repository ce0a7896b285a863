"""`realce-train`: from labelled rows to a bundle."""

import argparse
import contextlib
import json
import sys
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.table import Column, Table

from model.bundle import Bundle, BundleError, read_bundle
from model.faults import faults
from training import results
from training.behaviour import check
from training.checkpoint import CheckpointError
from training.config import ConfigError, RunConfig, load_config
from training.encoding import encode
from training.evaluate import measure, predict_bundle
from training.export import ExportError
from training.formats import DataError
from training.labelling import Ensemble, label
from training.page import page
from training.pipeline import fit
from training.pretrain import pretrain
from training.progress import Display
from training.recalibration import recalibrate
from training.rows import Rows
from training.sources import SourceConfig, Unit, read_rows, read_texts
from training.train import Ranks, ranks

if TYPE_CHECKING:
    from training.tensorboard import Board

REFUSALS = (
    BundleError,
    CheckpointError,
    ConfigError,
    DataError,
    ExportError,
    results.ResultsError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it is done, 2 when what was asked cannot be."""
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except REFUSALS as error:
        print(f"realce-train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("realce-train: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="realce-train", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_fit(commands)
    _add_pretrain(commands)
    _add_label(commands)
    _add_evaluate(commands)
    _add_calibrate(commands)
    _add_check(commands)
    _add_tune(commands)
    _add_report(commands)
    return top


def _add_fit(commands: Any) -> None:
    command = commands.add_parser(
        "fit",
        help="train on labelled texts and write a bundle",
        description="Train on labelled texts and write a bundle. The simplest call: "
        "realce-train fit reviews.csv --out bundle. Run it again after an interruption and it goes "
        "on where it stopped; `torchrun --nproc-per-node N -m training fit ...` uses N processes.",
    )
    _add_run(command)
    command.add_argument("--out", type=Path, required=True, help="folder to write the bundle into")
    command.add_argument("--run-dir", type=Path, help="folder for checkpoints (default: runs/NAME)")
    command.add_argument(
        "--start-from",
        type=Path,
        help="run folder of an earlier stage, or a bundle, to begin with the weights of",
    )
    _add_tensorboard(command)
    command.add_argument(
        "--results", type=Path, metavar="CSV", help="table of runs to add this one's figures to"
    )
    command.add_argument("--json", action="store_true", help="print the manifest when done")
    command.set_defaults(run=_fit)


def _add_pretrain(commands: Any) -> None:
    command = commands.add_parser(
        "pretrain",
        help="learn from texts alone what stands where, before `fit`",
        description="Let the layers learn, from the texts of all sources and from unlabelled ones, "
        "to tell which words were replaced by others. `realce-train fit --start-from RUN` begins "
        "with what they know. Run it again after an interruption and it goes on where it stopped.",
    )
    _add_run(command)
    command.add_argument(
        "--run-dir", type=Path, help="folder of the run (default: runs/NAME-pretrained)"
    )
    _add_tensorboard(command)
    command.set_defaults(run=_pretrain)


def _add_label(commands: Any) -> None:
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
    command.add_argument("--limit", type=int, metavar="N", help="read the first N texts only")
    command.add_argument(
        "--out", type=Path, required=True, help="file to write, with a name that ends in .jsonl.gz"
    )
    command.add_argument("--quiet", action="store_true", help="no progress")
    command.set_defaults(run=_label)


def _add_tune(commands: Any) -> None:
    command = commands.add_parser(
        "tune",
        help="search for the settings that suit the texts",
        description="Try a run with other settings, again and again, and write the config of the "
        "one that is best on validation rows; test rows have no say. `realce-train fit --config "
        "tuned.toml` then makes the bundle. Run it again after an interruption and it goes on "
        "where it stopped. One process a run folder.",
    )
    _add_run(command)
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
    command.set_defaults(run=_tune)


def _add_run(command: argparse.ArgumentParser) -> None:
    """What says which run it is, and how it is computed and shown."""
    command.add_argument(
        "data",
        nargs="*",
        help="CSV, TSV, JSONL or Parquet (plain or .gz), or a hub name hub:OWNER/NAME",
    )
    command.add_argument("--config", type=Path, help="TOML file of a run; see training/configs")
    command.add_argument(
        "--data-dir", type=Path, default=Path(), help="folder that paths in the config start from"
    )
    _add_columns(command)
    command.add_argument("--name", help="name of the bundle")
    command.add_argument("--version", help="version of the bundle")
    command.add_argument("--epochs", type=int, help="passes over the rows")
    command.add_argument("--seed", type=int, help="seed of everything random")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting of the config, as in --set train.learning_rate=5e-4",
    )
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--threads", type=int, help="CPU threads of each process")
    command.add_argument("--quiet", action="store_true", help="no progress")


def _add_tensorboard(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="folder to write TensorBoard's files into"
    )


def _add_columns(command: argparse.ArgumentParser) -> None:
    command.add_argument("--text-column", default="text", help="column of the text (default: text)")
    command.add_argument(
        "--label-column", default="label", help="column of the label (default: label)"
    )
    command.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="VALUE=NAME",
        help="call label VALUE by NAME, as in --label 0=negative; VALUE= leaves its rows out",
    )
    command.add_argument("--language", default="und", help="language of the texts, as in pt or en")


def _add_bundle_and_rows(command: argparse.ArgumentParser) -> None:
    """What `_bundle_and_rows` reads."""
    command.add_argument("bundle", type=Path, help="folder of the bundle")
    command.add_argument("data", help="file of labelled texts")
    _add_columns(command)


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate", help="measure a bundle on labelled texts", description="Measure a bundle."
    )
    _add_bundle_and_rows(command)
    command.add_argument("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(run=_evaluate)


def _add_calibrate(commands: Any) -> None:
    command = commands.add_parser(
        "calibrate",
        help="make a bundle as sure as it is right on your texts",
        description="Write a bundle once more, at the temperature and the abstention threshold "
        "that suit these texts. Its answers stay as they are, how sure they are does not. The "
        "texts should be such as it is to answer, and none that it was trained on.",
    )
    _add_bundle_and_rows(command)
    command.add_argument("--out", type=Path, required=True, help="folder to write the bundle into")
    command.add_argument("--version", help="version of the bundle (default: VERSION+calibrated)")
    command.add_argument("--quiet", action="store_true", help="no progress")
    command.set_defaults(run=_calibrate)


def _add_check(commands: Any) -> None:
    command = commands.add_parser(
        "check",
        help="test what a bundle is able to do",
        description="Test how a bundle behaves on sentences that leave no doubt: negation, "
        "contrast, typos, names and more. training/behaviour.py says the form of a suite.",
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
    command.set_defaults(run=_check)


def _add_report(commands: Any) -> None:
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
    command.set_defaults(run=_report)


def _fit(options: argparse.Namespace) -> int:
    config, device = _config(options), _device(options)
    run = options.run_dir or Path("runs") / config.name
    if options.results is not None:
        results.check(options.results)
    with _process(options, device) as (where, display, board):
        paths = options.data_dir, run, options.out
        watch = None if board is None else board.watch
        bundle = fit(config, *paths, where, display, options.start_from, watch)
        if bundle is not None and board is not None:
            board.test(bundle.manifest.metrics)
    if bundle is not None and options.results is not None:
        results.append(options.results, bundle.manifest, config.train.seed)
    if bundle is not None and options.json:
        Console().out(bundle.manifest.model_dump_json(indent=2), highlight=False)
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    config, device = _config(options), _device(options)
    run = options.run_dir or Path("runs") / f"{config.name}-pretrained"
    with _process(options, device) as (where, display, board):
        watch = None if board is None else board.watch
        pretrain(config, options.data_dir, run, where, display, watch)
    return 0


@contextlib.contextmanager
def _process(
    options: argparse.Namespace, device: str
) -> Iterator[tuple[Ranks, Display, "Board | None"]]:
    """This process of a run, what it speaks through and, if asked for, its TensorBoard."""
    with ranks(device) as where, contextlib.ExitStack() as stack:
        board = None
        if options.tensorboard is not None and where.first:
            with _extra("tensorboard"):
                from training.tensorboard import Board
            board = stack.enter_context(Board(options.tensorboard))
        yield where, Display(quiet=options.quiet or not where.first), board


def _tune(options: argparse.Namespace) -> int:
    with _extra("tune"):
        from training.tune import tune
    config, device = _config(options), torch.device(_device(options))
    run = options.run_dir or Path("runs") / f"{config.name}-tune"
    search = tune(
        config,
        options.data_dir,
        run,
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


def _report(options: argparse.Namespace) -> int:
    _write("--out", options.out, page(options.bundles, options.behaviour))
    return 0


def _write(flag: str, path: Path, content: str) -> None:
    """Write what a command was asked for; raises `ConfigError` naming flag and path."""
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be written: {error.strerror}") from error


def _config(options: argparse.Namespace) -> RunConfig:
    overrides: dict[str, Any] = {}
    for assignment in options.set:
        key, sign, value = assignment.partition("=")
        if not sign:
            raise ConfigError(f"--set {assignment}: must be KEY=VALUE")
        overrides[key] = _toml_value(value)
    flags = {"name": "name", "version": "version", "epochs": "train.epochs", "seed": "train.seed"}
    for flag, key in flags.items():
        if (value := getattr(options, flag)) is not None:
            overrides[key] = value
    if options.data:
        overrides["sources"] = [_source(data, options).model_dump() for data in options.data]
    elif options.config is None:
        raise ConfigError("nothing to train on: name a data file or give --config")
    return load_config(options.config, overrides)


def _device(options: argparse.Namespace) -> str:
    """The device to compute on, its threads set."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = str(options.device)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device")
    return device


@contextlib.contextmanager
def _extra(name: str) -> Iterator[None]:
    """Around an import of what only the extra `name` installs."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{name}: {error.name} is not installed; pip install 'realce[{name}]' installs it"
        ) from error


def _bundle_and_rows(options: argparse.Namespace) -> tuple[Bundle, Rows, str]:
    """A bundle, labelled rows of its classes, and what they are called."""
    bundle, source = read_bundle(options.bundle), _source(options.data, options)
    rows, _, _ = read_rows(source, bundle.manifest.labels, Path())
    return bundle, rows, source.name


def _label(options: argparse.Namespace) -> int:
    try:
        source = SourceConfig(
            **_place(options.texts),
            text=options.text_column,
            strip_html=options.strip_html,
            limit=options.limit,
        )
    except ValidationError as error:
        raise ConfigError(f"--texts {options.texts}: {faults(error)}") from error
    texts = read_texts(source, Path())
    ensemble = Ensemble.of([read_bundle(place) for place in options.bundles])
    label(ensemble, texts, options.unit, options.out, Display(quiet=options.quiet))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    bundle, rows, _ = _bundle_and_rows(options)
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


def _calibrate(options: argparse.Namespace) -> int:
    bundle, rows, name = _bundle_and_rows(options)
    display = Display(quiet=options.quiet)
    recalibrate(bundle, name, rows, options.out, display, options.version)
    return 0


def _check(options: argparse.Namespace) -> int:
    reports = check(read_bundle(options.bundle), options.suite)
    if options.json is not None:
        content = [{"suite": path.name} | report.to_json() for path, report in reports.items()]
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        _write("--json", options.json, text)
    console = Console()
    for path, report in reports.items():
        console.print(report.table(path.stem))
        if options.examples > 0 and any(outcome.failures for outcome in report.outcomes):
            console.print(report.examples(options.examples))
    return 0


def _source(data: str, options: argparse.Namespace) -> SourceConfig:
    names: dict[str, str | None] = {}
    for assignment in options.label:
        value, sign, name = assignment.partition("=")
        if not sign:
            raise ConfigError(f"--label {assignment}: must be VALUE=NAME")
        names[value] = name or None
    return SourceConfig(
        **_place(data),
        text=options.text_column,
        label=options.label_column,
        labels=names or None,
        language=options.language,
    )


def _place(data: str) -> dict[str, Any]:
    """What a source says of where its rows are: in a file, or on a hub."""
    if data.startswith("hub:"):
        hub = data.removeprefix("hub:")
        return {"name": hub, "hub": hub}
    return {"name": Path(data).name.split(".")[0], "path": str(Path(data).absolute())}


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


if __name__ == "__main__":
    warnings.filterwarnings("default")
    sys.exit(main())
