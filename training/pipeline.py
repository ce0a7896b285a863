"""One run from rows to bundle, in the order it happens."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.bundle import Bundle, check_place
from model.classifier import TextClassifier
from model.config import ModelConfig
from training.config import ConfigError, RunConfig
from training.data.batches import TrainingBatches
from training.data.rows import concatenate
from training.encoding import Encoded, corpus, encode, encode_splits
from training.evaluation.calibration import abstention_threshold, fit_temperature
from training.evaluation.metrics import measure_sets, predict, softmax
from training.initial import Start, begin_with, begin_with_vectors, drawn_back
from training.linear.baseline import LinearBaseline
from training.loop.objectives import Classification
from training.loop.trainer import Ranks, Trainer, Watch
from training.origin import Origin
from training.progress import Display
from training.release import report
from training.release.bundle import release
from training.release.export import halve_weights
from training.splits import Splits, prepare
from training.stacking import with_linear_part


def fit(
    config: RunConfig,
    base: Path,
    run: Path,
    out: Path,
    where: Ranks,
    display: Display,
    start_from: Path | None = None,
    watch: Watch | None = None,
) -> Bundle | None:
    """Train and write the bundle into `out`; `run` keeps what a killed run needs to go on.

    `start_from` is the run folder of an earlier stage, or a bundle, whose tokenizer and weights
    this one begins with; `watch` follows the evaluations. Returns the bundle in the first process,
    None in the others.
    """
    check_place(out)
    start = None if start_from is None else Start.read(start_from)
    if start is None and config.train.epochs == 0:
        raise ConfigError("train.epochs=0 trains nothing; --start-from has to name what is trained")
    if out.resolve() in (run.resolve(), *run.resolve().parents):
        raise ConfigError(f"--run-dir {run}: must not be in the folder of the bundle, {out}")
    make_run_folder(run)
    splits = prepare(config, base, display)
    encoded = encode_splits(config, splits, run, where, given=start.tokenizer if start else None)
    network = untrained(config, splits, encoded)
    alone = start is None and where.first and not Trainer.begun(run)
    if config.train.token_vectors and alone:
        begin_with_vectors(network, corpus(splits, encoded), config.train.seed)
    identity = config.steps_fingerprint
    if start is not None:
        start = start.speaking_of(splits.labels)
        begin_with(network, start)
        identity += f"-{start.identity}"
    training = trainer(config, splits, encoded, network, identity, run, where)
    origin = Origin.of_run(config, splits, start.origin if start else None)
    if where.first:  # once the folder has shown to be this run's
        origin.keep(run)
    display.say(
        f"{len(encoded.train):,} rows and {encoded.train.lengths.sum():,} tokens to train on, "
        f"{network.parameter_count:,} parameters, {where.world_size} process(es) on {where.device}"
    )
    history = training.fit(display, watch)
    if not where.first:
        return None
    if start is not None and config.train.start_share:
        drawn_back(network, start, config.train.start_share)
    if config.network.ngrams:
        display.say("fitting the linear part")
        network = with_linear_part(config, encoded, network, run, where)
    epochs = training.epochs
    return finish(config, splits, encoded, network, history, epochs, origin, out, where, display)


def make_run_folder(run: Path) -> None:
    """Raises `ConfigError` where there can be none."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--run-dir {run}: cannot be made: {error.strerror}") from error


def untrained(config: RunConfig, splits: Splits, encoded: Encoded) -> TextClassifier:
    """The network as its seed draws it, its linear part to come."""
    network_config = ModelConfig(
        vocab_size=encoded.tokenizer.vocab_size,
        classes=len(splits.labels),
        **config.network.model_dump() | {"ngrams": 0},
    )
    torch.manual_seed(config.train.seed)
    return TextClassifier(network_config)


def trainer(
    config: RunConfig,
    splits: Splits,
    encoded: Encoded,
    network: TextClassifier,
    identity: str,
    run: Path,
    where: Ranks,
) -> Trainer:
    """The loop over these rows; its checkpoints in `run` are known by `identity`."""
    batches = TrainingBatches(
        dataset=encoded.train,
        source_of_row=splits.train.sources,
        source_epochs=[source.epochs for source in splits.sources],
        source_stages=[source.stage for source in splits.sources],
        max_batch_tokens=config.train.max_batch_tokens,
        crop_tokens=config.train.crop_tokens,
        seed=config.train.seed,
        rank=where.rank,
        world_size=where.world_size,
    )
    objective = Classification(
        encoded.validation, config.train.token_dropout, config.train.label_smoothing
    )
    fingerprint = f"{identity}-{splits.digest}"
    return Trainer(network, batches, objective, config.train, fingerprint, run, where)


def finish(
    config: RunConfig,
    splits: Splits,
    encoded: Encoded,
    network: TextClassifier,
    history: list[dict[str, float]],
    epochs: int,
    origin: Origin,
    out: Path,
    where: Ranks,
    display: Display,
) -> Bundle:
    """From fitted weights to a bundle: calibrate, measure once on test, release."""
    half = config.weights == "float16"
    if half:
        halve_weights(network)
    tokenizer = encoded.tokenizer
    logits = encoded.logits(network, where)
    temperature = fit_temperature(logits, encoded.truth, encoded.weights)
    threshold = abstention_threshold(softmax(logits, temperature))
    probabilities = {
        name: softmax(predict(network, encode(rows, tokenizer), where.device), temperature)
        for name, rows in splits.test.items()
    }
    metrics = measure_sets(probabilities, splits.test)
    if config.train.baseline:
        display.say("fitting the linear baseline on the labelled rows")
        for name, values in _baseline(splits).items():
            metrics[name]["linear_accuracy"] = values["accuracy"]
    for name, values in metrics.items():
        display.say(_spoken(name, values))
    everything = np.concatenate(list(probabilities.values()))
    truth = concatenate(list(splits.test.values())).labels
    return release(
        out,
        network,
        tokenizer,
        {
            "name": config.name,
            "version": config.version,
            "labels": splits.labels,
            "languages": tuple(sorted({source.language for source in config.sources})),
            "temperature": temperature,
            "abstention_threshold": threshold,
            "metrics": metrics,
            "sources": origin.sources,
            "license": origin.license,
        },
        half_weights=half,
        settings=config.train.model_dump() | {"epochs": epochs, "steps": int(history[-1]["step"])},
        warnings=splits.warnings,
        plots={
            "loss.png": report.loss_plot(history),
            **report.measured_plots(everything, truth, splits.labels),
        },
        display=display,
    )


def _baseline(splits: Splits) -> dict[str, dict[str, Any]]:
    """The linear baseline's metrics of every test set, learnt from the labelled rows."""
    rows = splits.train.take(np.flatnonzero(splits.linear))
    weights = splits.linear[splits.linear > 0, None]
    baseline = LinearBaseline.fit(rows.texts, rows.targets * weights)
    probabilities = {name: baseline.probabilities(rows.texts) for name, rows in splits.test.items()}
    return measure_sets(probabilities, splits.test)


def _spoken(name: str, values: dict[str, Any]) -> str:
    linear = values.get("linear_accuracy")
    beside = "" if linear is None else f" (linear baseline {linear:.2%})"
    return (
        f"test {name}: accuracy {values['accuracy']:.2%}{beside}, "
        f"{values['accuracy_at_80']:.2%} on the surest 80%, "
        f"macro-F1 {values['macro_f1']:.2%}, calibration error {values['ece']:.2%} "
        f"over {values['rows']:,} rows"
    )
