"""What several commands ask for, and how it is read."""

import argparse
import contextlib
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from model.bundle import Bundle, read_bundle
from model.faults import faults
from training.config import ConfigError, RunConfig, load_config
from training.data.rows import Rows
from training.data.sources import SourceConfig, read_rows, read_texts
from training.loop.trainer import Ranks, ranks
from training.progress import Display

if TYPE_CHECKING:
    from training.tensorboard import Board


def add_run(command: argparse.ArgumentParser) -> None:
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
    add_columns(command)
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
    command.add_argument("--threads", type=int, metavar="N", help="CPU threads of each process")
    command.add_argument("--quiet", action="store_true", help="no progress, warnings alone")


def add_tensorboard(command: argparse.ArgumentParser) -> None:
    """Where TensorBoard reads."""
    command.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="folder to write TensorBoard's files into"
    )


def add_columns(command: argparse.ArgumentParser) -> None:
    """What a file of labelled texts looks like."""
    command.add_argument("--text-column", default="text", help="column of the text (default: text)")
    command.add_argument(
        "--label-column", default="label", help="column of the label (default: label)"
    )
    command.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="VALUE=NAME",
        help="call label VALUE by NAME, as in --label 0=negative; VALUE= leaves its rows out; "
        "where one is named all have to be",
    )
    command.add_argument("--language", default="und", help="language of the texts, as in pt or en")


def add_bundle_and_rows(command: argparse.ArgumentParser) -> None:
    """What `bundle_and_rows` reads."""
    command.add_argument("bundle", type=Path, help="folder of the bundle")
    command.add_argument("data", help="file of labelled texts")
    add_columns(command)


def add_texts(command: argparse.ArgumentParser) -> None:
    """What `texts_of` reads."""
    command.add_argument("--texts", required=True, metavar="FILE", help="file of texts")
    command.add_argument("--text-column", default="text", help="column of the text (default: text)")
    command.add_argument("--strip-html", action="store_true", help="turn <br /> into a space")
    command.add_argument(
        "--skip", type=int, default=0, metavar="N", help="leave the first N texts out (default: 0)"
    )
    command.add_argument("--limit", type=int, metavar="N", help="read N texts at most")


def run_config(options: argparse.Namespace) -> RunConfig:
    """The configuration of a run, flags before what the file says."""
    overrides: dict[str, Any] = {}
    for assignment in options.set:
        key, sign, value = assignment.partition("=")
        if not (key and sign):
            raise ConfigError(f"--set {assignment}: must be KEY=VALUE")
        overrides[key] = _toml_value(value)
    flags = {"name": "name", "version": "version", "epochs": "train.epochs", "seed": "train.seed"}
    for flag, key in flags.items():
        if (value := getattr(options, flag)) is not None:
            overrides[key] = value
    if options.data:
        if "sources" in overrides:
            files = " ".join(options.data)
            raise ConfigError(f"--set sources: rows come from {files}; leave one out")
        overrides["sources"] = _named_apart(_source(data, options) for data in options.data)
    elif options.config is None:
        raise ConfigError("nothing to train on: name a data file or give --config")
    return load_config(options.config, overrides)


def device_of(options: argparse.Namespace) -> str:
    """The device to compute on, its threads set."""
    if options.threads is not None:
        if options.threads < 1:
            raise ConfigError(f"--threads {options.threads}: must be 1 or more")
        torch.set_num_threads(options.threads)
    device = str(options.device)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no CUDA device")
    return device


@contextlib.contextmanager
def process(
    options: argparse.Namespace, device: str
) -> Iterator[tuple[Ranks, Display, "Board | None"]]:
    """This process of a run, what it speaks through and, if asked for, its TensorBoard."""
    with ranks(device) as where, contextlib.ExitStack() as stack:
        board = None
        if options.tensorboard is not None and where.first:
            with extra("tensorboard"):
                from training.tensorboard import Board
            board = stack.enter_context(Board(options.tensorboard))
        yield where, Display(quiet=options.quiet, silent=not where.first), board


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Around an import of what only the extra `name` installs."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{name}: {error.name} is not installed; the extra {name!r} has it, as in "
            f"pip install -e '.[{name}]'"
        ) from error


def bundle_and_rows(options: argparse.Namespace) -> tuple[Bundle, Rows, str]:
    """A bundle, labelled rows of its classes, and what they are called."""
    bundle, source = read_bundle(options.bundle), _source(options.data, options)
    rows, _, _ = read_rows(source, bundle.manifest.labels, Path())
    return bundle, rows, source.name


def texts_of(options: argparse.Namespace) -> list[str]:
    """Texts, each once, of which no label is asked."""
    try:
        source = SourceConfig(
            **place(options.texts), text=options.text_column, strip_html=options.strip_html
        )
    except ValidationError as error:
        raise ConfigError(f"--texts {options.texts}: {faults(error)}") from error
    for flag, value, least in (("--skip", options.skip, 0), ("--limit", options.limit, 1)):
        if value is not None and value < least:
            raise ConfigError(f"{flag} {value}: must be {least} or more")
    return read_texts(source, Path())[options.skip :][: options.limit]


def _named_apart(sources: Iterable[SourceConfig]) -> list[dict[str, Any]]:
    """Sources as a configuration has them; of one name the later are numbered."""
    seen, named = Counter[str](), []
    for source in sources:
        seen[source.name] += 1
        times = seen[source.name]
        name = source.name if times == 1 else f"{source.name} {times}"
        named.append(source.model_dump() | {"name": name})
    return named


def _source(data: str, options: argparse.Namespace) -> SourceConfig:
    names: dict[str, str | None] = {}
    for assignment in options.label:
        value, sign, name = assignment.partition("=")
        if not sign:
            raise ConfigError(f"--label {assignment}: must be VALUE=NAME")
        names[value] = name or None
    return SourceConfig(
        **place(data),
        text=options.text_column,
        label=options.label_column,
        labels=names or None,
        language=options.language,
    )


def place(data: str) -> dict[str, Any]:
    """What a source says of where its rows are: in a file, or on a hub."""
    if data.startswith("hub:"):
        hub = data.removeprefix("hub:")
        if not hub:
            raise ConfigError(f"{data}: names no set; must be hub:OWNER/NAME")
        return {"name": hub, "hub": hub}
    return {"name": Path(data).name.split(".")[0], "path": str(Path(data).absolute())}


def write(flag: str, path: Path, content: str) -> None:
    """Write what a command was asked for; raises `ConfigError` naming flag and path."""
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot be written: {error.strerror}") from error


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
