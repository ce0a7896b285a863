"""Whether an answer hangs on the tokens that its account names: erasure tests.

A text is read once more without the tokens that a view ranks first, and once more with them alone
(ERASER, DeYoung et al. 2020, section 4.2). An erased token becomes the mask token, which a network
that was trained with `train.token_dropout` has seen in every text.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from model.account import toward
from model.bundle import Bundle
from model.tokenizer import MASK_ID
from training.data.batches import Dataset
from training.evaluation.metrics import Graph, Logits

SHARES = (0.05, 0.1, 0.2, 0.5)  # of a text's tokens, erased or left
FEWEST_TOKENS = 8  # of fewer, the smaller shares are all the same token
EXPLAINED_TOKENS = 2048  # of a batch: attention over all pairs takes room
CHANCE = "chance"
MEASURES = ("comprehensiveness", "sufficiency")  # of an `Erasure`
# Each as a score of every token; the first two are signed, toward the answer.
VIEWS = ("contributions", "evidence", "pooling_attention", "attentions")

Scores = npt.NDArray[np.float32]  # [T], of the tokens of all rows end to end, as `Dataset.ids`


@dataclass(frozen=True, slots=True)
class Erasure:
    """How far the probability of the answer falls, the mean over `SHARES`, for each text [N]."""

    comprehensiveness: Logits  # without the tokens ranked first: the more, the better
    sufficiency: Logits  # with them alone: the less, the better

    def figures(self) -> dict[str, float]:
        """Means over the texts, and their standard errors."""
        figures = {}
        for name in MEASURES:
            falls = getattr(self, name)
            figures[name] = float(falls.mean())
            figures[f"{name}_error"] = float(falls.std(ddof=1) / len(falls) ** 0.5)
        return figures


def faithfulness(bundle: Bundle, dataset: Dataset, seed: int = 0) -> dict[str, Erasure]:
    """Erasure of `dataset`'s texts in the order of each of `VIEWS`, and of one drawn by chance.

    Texts have to be of `FEWEST_TOKENS` or more.
    """
    graph = Graph(bundle)
    probabilities = graph.predict(dataset)
    answers = probabilities.argmax(axis=1)
    rankings = dict(zip(VIEWS, views(graph, dataset, answers), strict=True))
    drawn = np.random.default_rng(seed).random(len(dataset.ids), np.float32)

    def fall(erased: npt.NDArray[np.bool_]) -> Logits:
        left = Dataset(np.where(erased, MASK_ID, dataset.ids), dataset.starts, dataset.targets)
        own = np.arange(len(dataset)), answers
        return probabilities[own] - graph.predict(left)[own]

    erasures = {}
    for name, scores in (rankings | {CHANCE: drawn}).items():
        first = [ranked_first(scores, dataset.starts, share) for share in SHARES]
        erasures[name] = Erasure(
            np.mean([fall(erased) for erased in first], axis=0),
            np.mean([fall(~erased) for erased in first], axis=0),
        )
    return erasures


def ranked_first(
    scores: Scores, starts: npt.NDArray[np.int64], share: float
) -> npt.NDArray[np.bool_]:
    """Which tokens [T] are among the `share` of their text with the highest scores; one at least.

    Row i is `scores[starts[i]:starts[i + 1]]`.
    """
    lengths = np.diff(starts)
    row = np.repeat(np.arange(len(lengths)), lengths)
    places = np.empty(len(scores), np.int64)
    places[np.lexsort((-scores, row))] = np.arange(len(scores)) - np.repeat(starts[:-1], lengths)
    return places < np.maximum(1, np.rint(share * lengths))[row]


def views(graph: Graph, dataset: Dataset, answers: npt.NDArray[np.int64]) -> tuple[Scores, ...]:
    """The scores of each of `VIEWS` for the answers [N].

    Contributions and evidence count toward the answer's logit less the mean of the others';
    attention as the mean over heads, and over layers and the tokens that look.
    """
    found = tuple(np.zeros(len(dataset.ids), np.float32) for _ in VIEWS)
    for row, outputs in _explained(graph, dataset):
        start, end = dataset.starts[row : row + 2]
        there = slice(0, end - start)
        attention = outputs["attentions"][:, :, there, there]  # [L, H, S, S]
        scored = (
            toward(outputs["contributions"][there], answers[row]),
            toward(outputs["evidence"][there], answers[row]),
            outputs["pooling_attention"][:, there].mean(axis=0),
            attention.mean(axis=(0, 1, 2)) if len(attention) else np.zeros(end - start),
        )
        for scores, of_row in zip(found, scored, strict=True):
            scores[start:end] = of_row
    return found


def _explained(graph: Graph, dataset: Dataset) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The outputs of each row, its padding still there."""
    for rows, outputs in graph.run(dataset, VIEWS, EXPLAINED_TOKENS):
        for place, row in enumerate(rows):
            yield int(row), {name: of_all[place] for name, of_all in outputs.items()}


def table(erasures: Mapping[str, Erasure], texts: int) -> Table:
    """For the terminal: a line a view."""
    table = Table(title=f"how far the answer's probability falls, mean of {texts:,} texts")
    table.add_column("tokens first in")
    table.add_column("erased (comprehensiveness)", justify="right")
    table.add_column("left alone (sufficiency)", justify="right")
    for name, erasure in erasures.items():
        figures = erasure.figures()
        table.add_row(name.replace("_", " "), *_cells(figures))
    return table


def _cells(figures: Mapping[str, float]) -> list[str]:
    return [f"{figures[name]:.3f} ± {1.96 * figures[f'{name}_error']:.3f}" for name in MEASURES]
