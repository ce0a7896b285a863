"""One run from rows to bundle, in the order it happens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from model.bundle import Bundle, check_place
from training.config import ConfigError, RunConfig
from training.data.rows import concatenate
from training.encoding import corpus, encode
from training.evaluation.calibration import abstention_threshold, fit_temperature, uncalibrated
from training.evaluation.metrics import Labels, Logits, measure_sets, predict, softmax
from training.initial import Start, begin_with, begin_with_vectors, interpolate
from training.linear.baseline import LinearBaseline, NoWords
from training.loop.trainer import Ranks, Trainer, Watch
from training.origin import Origin
from training.progress import Display
from training.release import report
from training.release.bundle import release
from training.release.export import halve_weights
from training.run import Run
from training.splits import Splits
from training.stacking import with_linear_part

BEGINNING = "--start-from service/bundle"


def fit(
    config: RunConfig,
    base: Path,
    folder: Path,
    out: Path,
    where: Ranks,
    display: Display,
    start_from: Path | None = None,
    watch: Watch | None = None,
) -> Bundle | None:
    """Train and write the bundle into `out`; `folder` keeps what a killed run needs to go on.

    `start_from` is the run folder of an earlier stage, or a bundle, whose tokenizer and weights
    this one begins with; `watch` follows the evaluations. Returns the bundle in the first process,
    None in the others.
    """
    check_place(out)
    start = None if start_from is None else Start.read(start_from)
    if start is None and config.train.epochs == 0:
        raise ConfigError("train.epochs=0 trains nothing; --start-from has to name what is trained")
    if out.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(f"--run-dir {folder}: must not be in the folder of the bundle, {out}")
    given = None if start is None else start.tokenizer
    with Run.open(config, base, folder, where, display, given) as run:
        if start is not None:
            start = start.with_labels(run.splits.labels, display)
        training = begin(run, start)
        origin = Origin.of_run(config, run.splits, start.origin if start else None)
        if where.first:  # once the folder has shown to be this run's
            origin.keep(folder)
        training.fit(display, watch)
        return finish(run, training, start, origin, out) if where.first else None


def begin(run: Run, start: Start | None) -> Trainer:
    """The loop, at the weights that the run begins with or at those it had come to."""
    config, network = run.config, run.network()
    identity = config.steps_fingerprint
    if start is not None:
        begin_with(network, start)
        identity += f"-{start.identity}"
    elif config.train.token_vectors and run.where.first and not Trainer.begun(run.folder):
        begin_with_vectors(network, corpus(run.splits, run.encoded), config.train.seed)
    training = run.trainer(network, identity)
    rows = run.encoded.train
    run.display.say(
        f"{len(rows):,} rows and {rows.lengths.sum():,} tokens to train on, "
        f"{network.parameter_count:,} parameters, {run.where.world_size} process(es) on "
        f"{run.where.device}"
    )
    return training


def finish(run: Run, training: Trainer, start: Start | None, origin: Origin, out: Path) -> Bundle:
    """From trained weights to a bundle: add the linear part, calibrate, measure once on test,
    release."""
    config, encoded, where, display = run.config, run.encoded, run.where, run.display
    network, history = training.network, training.progress.history
    if start is not None and config.train.start_share:
        interpolate(network, start, config.train.start_share)
    if config.network.ngrams:
        display.say("fitting the linear part")
        network = with_linear_part(config, encoded, network, run.folder, where)
    half = config.weights == "float16"
    if half:
        halve_weights(network)
    logits = encoded.logits(network, where)
    temperature, threshold = 1.0, None
    if not uncalibrated(logits, encoded.truth):
        temperature = fit_temperature(logits, encoded.truth, encoded.weights)
        threshold = abstention_threshold(softmax(logits, temperature))
    doubts = list(doubts_of(logits, encoded.truth, begun=start is not None))
    for doubt in doubts:
        display.warn(doubt)
    test = run.splits.test
    probabilities = {
        name: softmax(predict(network, encode(rows, encoded.tokenizer), where.device), temperature)
        for name, rows in test.items()
    }
    metrics = measure_sets(probabilities, test)
    if config.train.baseline:
        for name, values in _baseline(run.splits, display).items():
            metrics[name]["linear_accuracy"] = values["accuracy"]
    for name, values in metrics.items():
        display.say(_spoken(name, values))
    steps = {"epochs": training.epochs, "steps": int(history[-1]["step"])}
    everything = np.concatenate(list(probabilities.values()))
    truth = concatenate(list(test.values())).labels
    return release(
        out,
        network,
        encoded.tokenizer,
        {
            "name": config.name,
            "version": config.version,
            "labels": run.splits.labels,
            "languages": tuple(sorted({source.language for source in run.splits.sources})),
            "temperature": temperature,
            "abstention_threshold": threshold,
            "metrics": metrics,
            "sources": origin.sources,
            "license": origin.license,
        },
        half_weights=half,
        settings=config.train.model_dump() | steps,
        warnings=(*run.splits.warnings, *doubts),
        plots={
            "loss.png": report.loss_plot(history),
            **report.measured_plots(everything, truth, run.splits.labels),
        },
        display=display,
    )


def doubts_of(logits: Logits, labels: Labels, *, begun: bool) -> Iterator[str]:
    """What the validation rows, their logits [N, C] and labels [N], leave open of a model, and what
    helps; `begun` is true of one that did not begin with random weights."""
    helps = "more rows help" if begun else f"more rows help, or {BEGINNING}"
    answers = logits.argmax(axis=1)
    right, often = (answers == labels).mean(), np.bincount(labels).max() / len(labels)
    if (answers == answers[0]).all():
        yield f"validation: every row gets the same answer, so nothing was learnt: {helps}"
    elif right <= often:
        yield (
            f"validation: {right:.1%} of the rows are answered right, and always giving the most "
            f"frequent label would be right in {often:.1%}: {helps}"
        )
    if reason := uncalibrated(logits, labels):
        yield (
            f"validation: {reason}, so the temperature stays 1 and there is no abstention "
            f"threshold: {helps}, or `realce-train calibrate` with other rows"
        )


def _baseline(splits: Splits, display: Display) -> dict[str, dict[str, Any]]:
    """The linear baseline's metrics of every test set, learnt from the labelled rows; none where
    they have no words to learn from."""
    display.say("fitting the linear baseline on the labelled rows")
    rows = splits.train.take(np.flatnonzero(splits.linear))
    weights = splits.linear[splits.linear > 0, None]
    try:
        baseline = LinearBaseline.fit(rows.texts, rows.targets * weights)
    except NoWords as error:
        display.say(f"no linear baseline: {error}")
        return {}
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
