"""A bundle once more, at the temperature and the threshold that suit other rows.

No one temperature suits all kinds of text: what is sure enough of short sentences is too sure of
long reviews. Weights and answers stay as they are; how sure the answers are does not.
"""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from model.bundle import Bundle, BundleError, Version, check_place
from model.classifier import TextClassifier
from model.faults import faults
from training.config import ConfigError
from training.data.formats import DataError
from training.data.rows import Rows
from training.encoding import encode
from training.evaluation.calibration import (
    abstention_threshold,
    cross_calibrated,
    fit_temperature,
    uncalibrated,
)
from training.evaluation.metrics import measure, measure_sets, predict_bundle, softmax
from training.progress import Display
from training.release.bundle import release
from training.release.export import HALVED, exported_weights
from training.release.report import measured_plots

SUFFIX = "+calibrated"  # of the version, where no other is given


def recalibrate(
    bundle: Bundle, name: str, rows: Rows, out: Path, display: Display, version: str | None = None
) -> Bundle:
    """Write the bundle into `out`, calibrated by `rows`, which should be none that it has seen.

    Its metrics are those of the rows, under `name`, each row at the temperature of the others.
    Raises `DataError` where the rows do not say how sure to be.
    """
    check_place(out)
    before = bundle.manifest
    version = _version(version or before.version.removesuffix(SUFFIX) + SUFFIX)
    encoded = encode(rows, bundle.tokenizer)
    logits = predict_bundle(bundle, encoded, "logits")
    if reason := uncalibrated(logits, rows.labels):
        raise DataError(f"{name}: {reason}")
    was = measure(softmax(logits, before.temperature), rows.labels)
    temperature = fit_temperature(logits, rows.labels)
    threshold = abstention_threshold(softmax(logits, temperature))
    probabilities = cross_calibrated(logits, rows.labels)
    metrics = measure_sets({name: probabilities}, {name: rows})
    display.say(
        f"temperature {before.temperature:.2f} to {temperature:.2f}: calibration error "
        f"{was['ece']:.2%} to {metrics[name]['ece']:.2%} over {len(rows):,} rows, by chance alone "
        f"{metrics[name]['ece_by_chance']:.2%}; a fifth is less sure than {threshold:.1%}"
    )
    return release(
        out,
        _network(bundle),
        bundle.tokenizer,
        before.model_dump(include={"name", "labels", "languages", "sources", "license"})
        | {
            "version": version,
            "temperature": temperature,
            "abstention_threshold": threshold,
            "metrics": metrics,
        },
        half_weights=any(one.name.endswith(HALVED) for one in bundle.graph.graph.initializer),
        settings={
            "calibrated": f"on {len(rows):,} rows of {name}",
            "from": f"{before.name} {before.version}, {bundle.fingerprint}",
            "temperature before": before.temperature,
        },
        warnings=(),
        plots=measured_plots(probabilities, rows.labels, before.labels),
        display=display,
    )


def _version(text: str) -> str:
    try:
        return TypeAdapter(Version).validate_python(text)
    except ValidationError as error:
        raise ConfigError(f"version={text!r}: {faults(error)}") from error


def _network(bundle: Bundle) -> TextClassifier:
    network = TextClassifier(bundle.manifest.config)
    try:
        network.load_state_dict(exported_weights(bundle.graph))
    except RuntimeError as error:
        raise BundleError(f"{bundle.path}: holds not all of the weights: {error}") from error
    return network.eval()
