"""`realce`: serve a bundle, ask a server, look into a bundle."""

import os
import signal


def _end_at_signals() -> None:
    """Until a server listens to them there is nothing to drain."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))


# The first process of a container hears only what it listens to, and the rest takes long to load.
if os.getpid() == 1:
    _end_at_signals()

import argparse
import asyncio
import importlib.util
import io
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.settings import (
    EMBEDDED_BUNDLE,
    Settings,
    SettingsError,
    count_in,
    flag,
    load_settings,
)

if TYPE_CHECKING:
    from service.answers import Answer

DEFAULT_TARGET = "127.0.0.1:50051"
BYTE_ORDER_MARK = "\ufeff"  # as some editors begin a file
TEXTS_A_CALL = 256
MOST_S = 86_400
REFUSED, FAILED = 2, 1
NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial|no commercial", re.IGNORECASE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when done, 2 when what was asked cannot be, 1 when it failed or nobody
    reads what it prints any more."""
    options = parser().parse_args(arguments)
    try:
        code = int(options.run(options))
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # `realce inspect | head`
            print(f"realce: {error.strerror or error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again
        return FAILED
    return code


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="realce",
        description="Sentiment with its reasons: serve a bundle, ask a server, look into a bundle.",
        epilog='`realce serve` in one terminal, `realce classify "I loved it" --explain` in '
        "another. Each command has its own --help.",
        allow_abbrev=False,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_classify(commands)
    _add_inspect(commands)
    return top


def _add_serve(commands: Any) -> None:
    command = commands.add_parser(
        "serve",
        allow_abbrev=False,
        help="serve a bundle over gRPC",
        description="Serve a bundle over gRPC. Every flag is also an environment variable: "
        "--max-texts is REALCE_MAX_TEXTS. The flag wins.",
    )
    for name, field in Settings.model_fields.items():
        default = "the embedded one" if field.default == EMBEDDED_BUNDLE else field.default
        text = f"{field.description} (default: {default})".replace("%", "%%")
        if field.annotation is bool:
            action = argparse.BooleanOptionalAction
            command.add_argument(flag(name), action=action, default=argparse.SUPPRESS, help=text)
        else:
            metavar = name.rpartition("_")[2].upper()
            command.add_argument(flag(name), default=argparse.SUPPRESS, metavar=metavar, help=text)
    command.add_argument("--count-in", help=argparse.SUPPRESS)  # what a parent tells its workers
    command.set_defaults(run=_serve)


def _add_classify(commands: Any) -> None:
    command = commands.add_parser(
        "classify",
        help="classify texts with a running server",
        allow_abbrev=False,
        description="Classify texts with a running server, in Portuguese or English.",
    )
    # With "+" the library would ask for a TEXT without a word of the other way.
    command.add_argument("texts", nargs="*", metavar="TEXT", help="a text; - reads one a line")
    command.add_argument("--explain", action="store_true", help="show what each word brought")
    command.add_argument(
        "--abstain", action="store_true", help="mark answers that the model is not sure enough of"
    )
    command.add_argument("--json", action="store_true", help="print everything as JSON")
    command.add_argument(
        "--target",
        type=_target,
        default=DEFAULT_TARGET,
        metavar="HOST:PORT",
        help=f"the server (default: {DEFAULT_TARGET})",
    )
    command.add_argument(
        "--timeout",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="seconds to wait for 256 texts (default: 10)",
    )
    command.set_defaults(run=_classify)


def _add_inspect(commands: Any) -> None:
    command = commands.add_parser(
        "inspect", help="verify a bundle and say what it is", description="Verify a bundle."
    )
    command.add_argument("bundle", nargs="?", type=Path, default=EMBEDDED_BUNDLE)
    command.add_argument("--json", action="store_true", help="print the manifest as JSON")
    command.set_defaults(run=_inspect)


def _serve(options: argparse.Namespace) -> int:
    # It asks for a reload, and until there is something to reload would end the process; workers
    # begin as their parent is.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _end_at_signals()
    flags = {name: value for name, value in vars(options).items() if name in Settings.model_fields}
    try:
        settings = load_settings(flags)
    except SettingsError as error:
        return _refuse(str(error))
    if importlib.util.find_spec("onnxruntime") is None:
        return _refuse(
            "ONNX Runtime is missing; install one of the extras 'cpu' and 'gpu', in a checkout by "
            "pip install -e '.[cpu]'"
        )
    count_in(options.count_in)
    # What computes is loaded only by the command that computes.
    from service.logs import configure_logs
    from service.ort_backend import DeviceError
    from service.server import StartError, run
    from service.transport import TransportError

    configure_logs(settings.log_level)
    try:
        if settings.workers > 1:
            from service.workers import run_workers

            return asyncio.run(run_workers(settings))
        asyncio.run(run(settings))
    except DeviceError as error:
        return _refuse(f"{settings.given('device')}: {error}")
    except (StartError, TransportError) as error:
        return _refuse(str(error))
    return 0


def _classify(options: argparse.Namespace) -> int:
    from service.client import CallError, Classifier

    if not options.texts:
        return _refuse("give a TEXT, or - to read one a line from standard input")
    texts: list[str] = []
    for number, given in enumerate(options.texts, start=1):
        for place, text in _lines() if given == "-" else [(f"text {number}", given)]:
            if not _is_unicode(text):
                return _refuse(f"{place}: {text[:40]!a} is not UTF-8")
            texts.append(text)
    if not texts:
        return _refuse("standard input holds no text")
    views = ("evidence", "contributions", "pooling_attention") if options.explain else ()
    predictions: list[dict[str, Any]] = []
    code = 0
    with Classifier(options.target, timeout_s=options.timeout) as classifier:
        for start in range(0, len(texts), TEXTS_A_CALL):
            part = texts[start : start + TEXTS_A_CALL]
            try:
                answers = classifier.classify(part, views=views, abstain=options.abstain)
            except CallError as error:
                which = (
                    f"texts {start + 1} to {start + len(part)}: " if len(part) < len(texts) else ""
                )
                hint = _hint(error.code, options.target)
                print(f"realce: {which}{error}{hint}", file=sys.stderr)
                code = FAILED
                break
            if options.json:
                predictions += map(_plain, answers)
            else:
                _show(part, answers, explain=options.explain)
    if options.json and (predictions or not code):
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        print(json.dumps({"predictions": predictions}, ensure_ascii=not utf8))
    return code


def _show(texts: list[str], answers: "list[Answer]", *, explain: bool) -> None:
    from service.highlight import show

    shares = [_toward_its_label(answer) for answer in answers] if explain else None
    show(texts, answers, shares)


def _hint(code: str, target: str) -> str:
    if code == "UNAVAILABLE":
        return f"; is a server running at {target}? `make serve` starts one"
    return "; --timeout gives it longer" if code == "DEADLINE_EXCEEDED" else ""


def _target(value: str) -> str:
    if value.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{value}: must be HOST:PORT, without http://")
    return value


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MOST_S:
        raise argparse.ArgumentTypeError(f"{value}: must be more than 0 and at most {MOST_S}")
    return seconds


def _lines() -> Iterator[tuple[str, str]]:
    """The lines of standard input that are not blank, each with its place."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # as arguments are read
    for number, line in enumerate(sys.stdin, start=1):
        text = line.rstrip("\r\n").removeprefix(BYTE_ORDER_MARK)
        if text.strip():
            yield f"line {number} of standard input", text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(answer: "Answer") -> dict[str, Any]:
    """An answer as JSON takes it."""
    plain: dict[str, Any] = {
        "label": answer.label,
        "probability": answer.probability,
        "probabilities": answer.probabilities,
        "logits": answer.logits,
        "truncated": answer.truncated,
        "abstained": answer.abstained,
    }
    if answer.views:
        tokens = [{"text": t.text, "start": t.start, "end": t.end} for t in answer.tokens]
        plain |= {"tokens": tokens, "bias": answer.bias}
        plain |= {name: view.tolist() for name, view in answer.views.items()}
    return plain


def _toward_its_label(answer: "Answer") -> list[float]:
    from model.account import toward

    own = list(answer.probabilities).index(answer.label)
    shares: list[float] = toward(answer.views["contributions"].astype(float), own).tolist()
    return shares


def _inspect(options: argparse.Namespace) -> int:
    from model.bundle import BundleError, read_bundle

    try:
        bundle = read_bundle(options.bundle)
    except BundleError as error:
        return _refuse(str(error))
    manifest = bundle.manifest
    if options.json:
        print(manifest.model_dump_json(indent=2))
        return 0
    config = manifest.config
    print(f"{manifest.name} {manifest.version}: verified, {bundle.fingerprint[:12]}")
    print(f"labels: {', '.join(manifest.labels)}; languages: {', '.join(manifest.languages)}")
    print(
        f"{config.layers} layers of width {config.d_model}, {config.heads} heads, "
        f"{config.vocab_size} word pieces, up to {config.max_tokens} tokens"
    )
    if manifest.abstention_threshold is not None:
        print(f"unsure, if asked to abstain, below {manifest.abstention_threshold:.1%}")
    print(f"licence: {manifest.license}")
    restricted = [
        source.name for source in manifest.sources if NON_COMMERCIAL.search(source.license)
    ]
    if restricted:
        print(
            f"NON-COMMERCIAL, for what it was trained on: {'; '.join(restricted)}. "
            "training/configs/embedded-open.toml trains without"
        )
    for name, metrics in manifest.metrics.items():
        figures = (_metric(*pair) for pair in metrics.items() if _is_number(pair[1]))
        print(f"{name}: {', '.join(figures)}")
    for source in manifest.sources:
        print(f"source {source.name} ({source.language}, {source.rows} rows): {source.license}")
    return 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metric(name: str, value: float) -> str:
    return f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"


def _refuse(reason: str) -> int:
    print(f"realce: {reason}", file=sys.stderr)
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())
