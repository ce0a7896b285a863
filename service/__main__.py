"""`realce`: serve a bundle, ask a server, look into a bundle."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.settings import EMBEDDED_BUNDLE, Settings, SettingsError, flag, load_settings

if TYPE_CHECKING:
    from service.client import Answer

DEFAULT_TARGET = "127.0.0.1:50051"
REFUSED, FAILED = 2, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when done, 2 when what was asked cannot be, 1 when it failed."""
    options = parser().parse_args(arguments)
    return int(options.run(options))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="realce", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_classify(commands)
    _add_inspect(commands)
    return top


def _add_serve(commands: Any) -> None:
    command = commands.add_parser(
        "serve",
        help="serve a bundle over gRPC",
        description="Serve a bundle over gRPC. Every flag is also an environment variable: "
        "--max-texts is REALCE_MAX_TEXTS. The flag wins.",
    )
    for name, field in Settings.model_fields.items():
        text = f"{field.description} (default: {field.default})"
        if field.annotation is bool:
            action = argparse.BooleanOptionalAction
            command.add_argument(flag(name), action=action, default=argparse.SUPPRESS, help=text)
        else:
            metavar = name.rpartition("_")[2].upper()
            command.add_argument(
                flag(name), default=argparse.SUPPRESS, metavar=metavar, help=text.replace("%", "%%")
            )
    command.set_defaults(run=_serve)


def _add_classify(commands: Any) -> None:
    command = commands.add_parser(
        "classify",
        help="classify texts with a running server",
        description="Classify texts with a running server.",
    )
    command.add_argument("texts", nargs="+", metavar="TEXT", help="a text; - reads one a line")
    command.add_argument("--explain", action="store_true", help="show what each word brought")
    command.add_argument("--json", action="store_true", help="print everything as JSON")
    command.add_argument("--target", default=DEFAULT_TARGET, help=f"default: {DEFAULT_TARGET}")
    command.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds to wait")
    command.set_defaults(run=_classify)


def _add_inspect(commands: Any) -> None:
    command = commands.add_parser(
        "inspect", help="verify a bundle and say what it is", description="Verify a bundle."
    )
    command.add_argument("bundle", nargs="?", type=Path, default=EMBEDDED_BUNDLE)
    command.add_argument("--json", action="store_true", help="print the manifest as JSON")
    command.set_defaults(run=_inspect)


def _serve(options: argparse.Namespace) -> int:
    flags = {name: value for name, value in vars(options).items() if name in Settings.model_fields}
    try:
        settings = load_settings(flags)
    except SettingsError as error:
        return _refuse(str(error))
    # What computes is loaded only by the command that computes.
    from service.logs import configure_logs
    from service.ort_backend import DeviceError
    from service.server import StartError, run

    configure_logs(settings.log_level)
    try:
        asyncio.run(run(settings))
    except (StartError, DeviceError) as error:
        return _refuse(str(error))
    return 0


def _classify(options: argparse.Namespace) -> int:
    import grpc

    from service.client import Classifier

    texts = [t for text in options.texts for t in (_lines() if text == "-" else [text])]
    views = ("evidence", "contributions", "pooling_attention") if options.explain else ()
    with Classifier(options.target, timeout_s=options.timeout) as classifier:
        try:
            answers = classifier.classify(texts, views=views)
        except grpc.RpcError as error:
            hint = ""
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                hint = f"; is a server running at {options.target}? `make serve` starts one"
            code = error.code().name
            print(f"realce: {code}: {error.details()}{hint}", file=sys.stderr)
            return FAILED
    if options.json:
        print(json.dumps({"predictions": [_plain(a) for a in answers]}, ensure_ascii=False))
    else:
        _show(texts, answers, options.explain)
    return 0


def _lines() -> list[str]:
    return [line.rstrip("\n") for line in sys.stdin if line.strip()]


def _plain(answer: "Answer") -> dict[str, Any]:
    """An answer as JSON takes it."""
    plain: dict[str, Any] = {
        "label": answer.label,
        "probability": answer.probability,
        "probabilities": answer.probabilities,
        "logits": answer.logits,
        "truncated": answer.truncated,
    }
    if answer.views:
        tokens = [{"text": t.text, "start": t.start, "end": t.end} for t in answer.tokens]
        plain |= {"tokens": tokens, "bias": answer.bias}
        plain |= {name: view.tolist() for name, view in answer.views.items()}
    return plain


def _show(texts: Sequence[str], answers: Sequence["Answer"], explain: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    for text, answer in zip(texts, answers, strict=True):
        head = f"{answer.label} {answer.probability:.1%}"
        if not explain:
            console.print(f"{head}  ", Text(text), sep="")
            continue
        shares = toward(answer)
        painted = Text(text)
        largest = max((abs(share) for share in shares), default=0.0) or 1.0
        for token, share in zip(answer.tokens, shares, strict=True):
            strength = round(40 + 160 * abs(share) / largest)
            colour = f"rgb(0,{strength},0)" if share > 0 else f"rgb({strength},0,0)"
            if abs(share) > largest / 8:
                painted.stylize(f"white on {colour}", token.start, token.end)
        console.print(f"{head}  ", painted, sep="")
        ranked = sorted(zip(answer.tokens, shares, strict=True), key=lambda p: -abs(p[1]))
        parts = (f"{token.text} {share:+.2f}" for token, share in ranked[:8] if token.text)
        console.print(Text("  " + "  ".join(parts)))
    if explain:
        console.print(
            "[dim]green and +: toward the answer, red and -: against it; all tokens together, "
            "with the bias, are its logit less the mean of the others'[/dim]"
        )


def toward(answer: "Answer") -> list[float]:
    """Each token's contribution to the answer's logit less the mean of the other classes'."""
    contributions = answer.views["contributions"].astype(float)
    best = list(answer.probabilities).index(answer.label)
    others = (contributions.sum(axis=1) - contributions[:, best]) / (contributions.shape[1] - 1)
    shares: list[float] = (contributions[:, best] - others).tolist()
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
    print(f"licence: {manifest.license}")
    restricted = [source.name for source in manifest.sources if "-NC" in source.license]
    if restricted:
        print(f"NON-COMMERCIAL: trained on {', '.join(restricted)}, which allow no commercial use")
    for name, metrics in manifest.metrics.items():
        print(
            f"test {name}: accuracy {metrics['accuracy']:.1%}, macro-F1 {metrics['macro_f1']:.1%}, "
            f"calibration error {metrics['ece']:.1%}, {metrics['rows']} rows"
        )
    for source in manifest.sources:
        print(f"source {source.name} ({source.language}, {source.rows} rows): {source.license}")
    return 0


def _refuse(reason: str) -> int:
    print(f"realce: {reason}", file=sys.stderr)
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())
