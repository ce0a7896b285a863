"""One run from rows to bundle, in the order it happens."""

import datetime
import importlib.metadata
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from model.bundle import Bundle, Manifest, check_place, sha256, write_bundle
from model.classifier import TextClassifier
from model.config import ModelConfig
from model.tokenizer import Tokenizer
from training import report
from training.batches import Dataset, TrainingBatches
from training.calibrate import fit_temperature
from training.config import ConfigError, RunConfig
from training.data import Rows, SourceConfig, deduplicate, exclude, read_keys, read_rows, split
from training.evaluate import measure, predict, softmax
from training.export import check_parity, export, halve_weights
from training.progress import Display
from training.train import Ranks, Trainer

TOKENIZER_SAMPLE = 60_000  # texts are enough to learn a vocabulary; more only take longer


@dataclass(frozen=True, slots=True)
class Splits:
    """The rows of a run: one set to train on, named sets to choose and to measure with."""

    labels: tuple[str, ...]
    train: Rows
    validation: dict[str, Rows]
    test: dict[str, Rows]


def prepare(config: RunConfig, base: Path, display: Display) -> Splits:
    """Read, check, filter and split the rows; paths are relative to `base`."""
    labels = config.labels
    parts = []
    for source in config.sources:
        rows, found, dropped = read_rows(source, labels, base)
        labels = labels or found
        display.say(f"{source.name}: {len(rows):,} rows{_counts(dropped)}")
        parts.append(rows)
    assert labels is not None
    # One source at a time conflicts with itself; between sources the first, most trusted, wins.
    rows, dropped = deduplicate(parts)
    display.say(f"together: {len(rows):,} rows{_counts(dropped)}")
    if config.exclude_keys is not None:
        rows, count = exclude(rows, read_keys(base / config.exclude_keys))
        display.say(f"{count:,} rows left out: listed in {config.exclude_keys}")
    validation = _read_sets(config.validation, labels, base, display)
    test = _read_sets(config.test, labels, base, display)
    shares = (
        0.0 if validation else config.validation_share,
        0.0 if test else config.test_share,
    )
    if any(shares):
        rows, held_out, tested = split(rows, *shares)
        validation = validation or {"validation": held_out}
        test = test or {"test": tested}
    for name, part in (("train", rows), *validation.items(), *test.items()):
        if len(part) == 0:
            raise ConfigError(f"{name}: no rows left; give more rows or another share")
        missing = sorted(set(range(len(labels))) - set(part.labels.tolist()))
        if missing:
            display.say(f"warning: {name} has no row of {[labels[i] for i in missing]}")
    return Splits(labels, rows, validation, test)


def fit(
    config: RunConfig,
    base: Path,
    run: Path,
    out: Path,
    where: Ranks,
    display: Display,
    start: Path | None = None,
) -> Bundle | None:
    """Train and write the bundle into `out`; `run` keeps what a killed run needs to go on.

    `start` is the run folder of an earlier stage, whose tokenizer and best weights this one begins
    with. Returns the bundle in the first process, None in the others.
    """
    check_place(out)
    run.mkdir(parents=True, exist_ok=True)
    if start is not None and where.first and not (run / "tokenizer.json").exists():
        shutil.copy(start / "tokenizer.json", run)
    splits = prepare(config, base, display)
    tokenizer = _tokenizer(config, splits.train.texts, run, where)
    network_config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        classes=len(splits.labels),
        **config.network.model_dump(),
    )
    torch.manual_seed(config.train.seed)
    network = TextClassifier(network_config)
    identity = config.fingerprint
    if start is not None:
        identity += _begin_with(network, start / "best.pt")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    train = encode(splits.train, tokenizer)
    validation = {name: encode(rows, tokenizer) for name, rows in splits.validation.items()}
    display.say(
        f"{len(train):,} rows and {train.lengths.sum():,} tokens to train on, "
        f"{parameters:,} parameters, {where.world_size} process(es) on {where.device}"
    )
    batches = TrainingBatches(
        dataset=train,
        source_of_row=splits.train.sources,
        source_epochs=[source.epochs for source in config.sources],
        max_batch_tokens=config.train.max_batch_tokens,
        crop_tokens=config.train.crop_tokens,
        seed=config.train.seed,
        rank=where.rank,
        world_size=where.world_size,
    )
    trainer = Trainer(
        network, batches, validation, config.train, f"{identity}-{len(train)}", run, where
    )
    history = trainer.fit(display)
    if not where.first:
        return None
    return finish(config, splits, tokenizer, network, history, out, where, display)


def finish(
    config: RunConfig,
    splits: Splits,
    tokenizer: Tokenizer,
    network: TextClassifier,
    history: list[dict[str, float]],
    out: Path,
    where: Ranks,
    display: Display,
) -> Bundle:
    """From fitted weights to a bundle: calibrate, measure once on test, export, prove, write."""
    half = config.weights == "float16"
    if half:
        halve_weights(network)
    logits, labels = _scored(splits.validation, tokenizer, network, where)
    temperature = fit_temperature(logits, labels)
    metrics, probabilities, truth = _measure(splits.test, tokenizer, network, temperature, where)
    for name, values in metrics.items():
        display.say(
            f"test {name}: accuracy {values['accuracy']:.2%}, macro-F1 {values['macro_f1']:.2%}, "
            f"calibration error {values['ece']:.2%} over {values['rows']:,} rows"
        )
    network.cpu()
    graph = export(network, temperature, half_weights=half)
    parity = check_parity(graph, network, temperature)
    display.say(
        f"exported: differs from torch by {parity.worst:.1e} at most, "
        f"account complete to {parity.completeness:.1e}"
    )
    counts = np.bincount(splits.train.sources, minlength=len(config.sources))
    fields: dict[str, Any] = {
        "name": config.name,
        "version": config.version,
        "labels": splits.labels,
        "languages": tuple(sorted({source.language for source in config.sources})),
        "config": network.config,
        "bias": tuple(network.head.bias.tolist()),
        "temperature": temperature,
        "opset": graph.opset_import[0].version,
        "metrics": metrics,
        "sources": [
            {
                "name": source.name,
                "language": source.language,
                "rows": int(count),
                "license": source.license,
                "origin": source.origin,
            }
            for source, count in zip(config.sources, counts, strict=True)
        ],
        "license": config.license,
        "code": code_identity(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    plain = Manifest(
        files={"model.onnx": "0" * 64, "tokenizer.json": "0" * 64}, **fields
    ).model_dump(mode="json")
    settings = config.train.model_dump() | {"steps": int(history[-1]["step"])}
    parameters = sum(parameter.numel() for parameter in network.parameters())
    whole = measure(probabilities, truth)
    bundle = write_bundle(
        out,
        graph=graph,
        tokenizer=tokenizer,
        report={
            "model_card.md": report.model_card(plain, settings, parameters),
            "loss.png": report.loss_plot(history),
            "confusion.png": report.confusion_plot(whole["confusion"], splits.labels),
            "reliability.png": report.reliability_plot(probabilities, truth),
        },
        **fields,
    )
    display.say(f"wrote {out} ({bundle.fingerprint[:12]})")
    return bundle


def encode(rows: Rows, tokenizer: Tokenizer) -> Dataset:
    """Rows as token ids."""
    return Dataset.encode(tokenizer.encode_batch(rows.texts, offsets=False), rows.labels)


def code_identity() -> str:
    """Version of this code and, in a checkout, its commit."""
    version = importlib.metadata.version("realce")
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return version
    return f"{version}+{commit}"


def _begin_with(network: TextClassifier, path: Path) -> str:
    """Load the weights of an earlier stage; returns what identifies them."""
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path}: no weights for this network: {error}") from error
    return f"-{sha256(path.read_bytes())[:16]}"


def _tokenizer(config: RunConfig, texts: list[str], run: Path, where: Ranks) -> Tokenizer:
    """The run's tokenizer, learnt once by the first process and kept in the run folder."""
    path, max_tokens = run / "tokenizer.json", config.network.max_tokens
    if where.first and not path.exists():
        generator = np.random.default_rng(config.train.seed)
        sample = generator.permutation(len(texts))[:TOKENIZER_SAMPLE]
        tokenizer = Tokenizer.train(
            (texts[i][:1000] for i in sample),
            vocab_size=config.train.vocab_size,
            max_tokens=max_tokens,
        )
        path.write_text(tokenizer.to_json(), encoding="utf-8")
    if where.world_size > 1:
        dist.barrier()
    return Tokenizer.load(path, max_tokens=max_tokens)


def _read_sets(
    sources: tuple[SourceConfig, ...], labels: tuple[str, ...], base: Path, display: Display
) -> dict[str, Rows]:
    sets = {}
    for source in sources:
        sets[source.name], _, dropped = read_rows(source, labels, base)
        display.say(f"{source.name}: {len(sets[source.name]):,} held-out rows{_counts(dropped)}")
    return sets


def _counts(dropped: dict[str, int]) -> str:
    return "".join(f", {count:,} {reason} dropped" for reason, count in dropped.items() if count)


def _scored(
    sets: dict[str, Rows], tokenizer: Tokenizer, network: TextClassifier, where: Ranks
) -> tuple[np.ndarray, np.ndarray]:
    logits = [predict(network, encode(rows, tokenizer), where.device) for rows in sets.values()]
    return np.concatenate(logits), np.concatenate([rows.labels for rows in sets.values()])


def _measure(
    sets: dict[str, Rows],
    tokenizer: Tokenizer,
    network: TextClassifier,
    temperature: float,
    where: Ranks,
) -> tuple[dict[str, dict[str, Any]], np.ndarray, np.ndarray]:
    """Metrics by set and by language, and the probabilities and classes they come from."""
    logits, labels = _scored(sets, tokenizer, network, where)
    probabilities = softmax(logits, temperature)
    name_of_row = np.concatenate([np.full(len(rows), name) for name, rows in sets.items()])
    language_of_row = np.concatenate([rows.languages for rows in sets.values()])
    metrics = {
        name: measure(probabilities[at], labels[at])
        for name in sets
        if (at := name_of_row == name).any()
    }
    for language in sorted(set(language_of_row)):
        at = language_of_row == language
        metrics[f"language {language}"] = measure(probabilities[at], labels[at])
    return metrics, probabilities, labels
