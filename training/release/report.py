"""What goes with a bundle for people: a model card and three plots."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from model.bundle import About
from training.evaluation.metrics import Labels, Logits, margin, measure

matplotlib.use("Agg")


def loss_plot(history: Sequence[dict[str, float]]) -> bytes:
    """Training loss and validation accuracies over steps, as PNG."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [entry["step"] for entry in history]
    left.plot(steps, [entry["loss"] for entry in history], marker=".")
    left.set(xlabel="step", ylabel="training loss")
    for name in (key for key in history[0] if key.startswith("accuracy/")):
        values = [entry[name] for entry in history]
        right.plot(steps, values, marker=".", label=name.removeprefix("accuracy/"))
    right.set(xlabel="step", ylabel="validation accuracy")
    right.legend(fontsize=7)
    return _png(figure)


def confusion_plot(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> bytes:
    """Confusion matrix [C, C], rows being the true classes, as PNG."""
    figure = Figure(figsize=(3.6, 3.2), layout="constrained")
    axes = figure.subplots()
    matrix = np.array(confusion)
    axes.imshow(
        matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1), cmap="Greens", vmin=0, vmax=1
    )
    for (row, column), count in np.ndenumerate(matrix):
        axes.text(column, row, str(count), ha="center", va="center")
    ticks = range(len(labels))
    axes.set(xlabel="predicted", ylabel="true", xticks=ticks, yticks=ticks)
    axes.set_xticklabels(labels)
    axes.set_yticklabels(labels)
    return _png(figure)


def reliability_plot(probabilities: Logits, labels: Labels, bins: int = 10) -> bytes:
    """Accuracy against confidence (DeGroot and Fienberg 1983), as PNG."""
    figure = Figure(figsize=(3.6, 3.2), layout="constrained")
    axes = figure.subplots()
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    filled = [b for b in range(bins) if (which == b).any()]
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey")
    axes.plot(
        [confidence[which == b].mean() for b in filled],
        [correct[which == b].mean() for b in filled],
        marker="o",
    )
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    return _png(figure)


def measured_plots(probabilities: Logits, truth: Labels, labels: Sequence[str]) -> dict[str, bytes]:
    """What the answers to some rows look like, as files of a report."""
    confusion = measure(probabilities, truth)["confusion"]
    return {
        "confusion.png": confusion_plot(confusion, labels),
        "reliability.png": reliability_plot(probabilities, truth),
    }


def model_card(
    about: About, settings: Mapping[str, Any], parameters: int, warnings: Sequence[str]
) -> bytes:
    """The model card, as Markdown: what it is, how good, from what, under which licence."""
    network = about.config
    beside = ""
    if network.ngrams:
        beside = f", beside a linear part over tokens and {network.ngrams:,} rows of n-grams"
        if network.domains > 1:
            beside += f", with weights for each of {network.domains} domains"
        if network.ends:
            beside += f", a text's last token counting {1 + network.ends:g} times"
    lines = [
        f"# {about.name} {about.version}",
        "",
        f"Text classifier: {', '.join(about.labels)}. Languages: {', '.join(about.languages)}.",
        f"Licence: {about.license}.",
        "",
        f"{network.layers} encoder layers of width {network.d_model} with {network.heads} heads, "
        f"learned-query pooling{beside}, {parameters:,} parameters, {network.vocab_size:,} word "
        f"pieces; reads at most {network.max_tokens} tokens. Trained from nothing but "
        f"the texts named below. Temperature {about.temperature:.3f}.",
        "",
        "## Measured on rows it was not trained on",
        "",
        "The linear baseline is logistic regression over words and word pairs of the labelled "
        "rows. An accuracy has half of its 95% interval beside it, by chance of the rows alone; a "
        "calibration error has what perfect probabilities would show on as many rows.",
        "",
        "| set | rows | accuracy | linear baseline | on the surest 80% | macro-F1 | calibration "
        "error (by chance) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, metrics in about.metrics.items():
        linear = metrics.get("linear_accuracy")
        lines.append(
            f"| {name} | {metrics['rows']:,} | {metrics['accuracy']:.1%} ± "
            f"{100 * margin(metrics['accuracy'], metrics['rows']):.1f} | "
            f"{'–' if linear is None else f'{linear:.1%}'} | "
            f"{metrics['accuracy_at_80']:.1%} | {metrics['macro_f1']:.1%} | {metrics['ece']:.1%} "
            f"({metrics['ece_by_chance']:.1%}) |"
        )
    lines += [
        "",
        "## Trained on",
        "",
        "| set | language | domain | rows | licence | origin |",
        "|---|---|---|---|---|---|",
    ]
    for source in about.sources:
        lines.append(
            f"| {source.name} | {source.language} | {source.domain or '–'} | {source.rows:,} | "
            f"{source.license} | {source.origin} |"
        )
    if warnings:
        lines += ["", "## Warnings about the data", "", *(f"- {warning}" for warning in warnings)]
    lines += ["", "## Settings of the run", ""]
    lines += [f"- {key}: {value}" for key, value in settings.items()]
    lines += [
        "",
        "## Limits",
        "",
        "It knows the kinds of text named above and nothing else. It sees one text at a time, can "
        "miss irony, and can repeat what its reviews were biased in. Do not decide about people "
        "with it.",
        "",
    ]
    return "\n".join(lines).encode()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Neither date nor version: the same run writes the same bytes.
        figure.savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    return buffer.getvalue()
