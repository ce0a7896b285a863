"""What flows through a request, from its texts to its answers. Axes: B, S, L, H, D, C."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float16]
IntArray = npt.NDArray[np.int64]


class View(enum.Enum):
    """What an answer can carry besides its probabilities; the value is the graph output's name."""

    EVIDENCE = "evidence"
    CONTRIBUTIONS = "contributions"
    POOLING_ATTENTION = "pooling_attention"
    ATTENTIONS = "attentions"


class Variant(enum.Enum):
    """Which part of the graph a row needs; the value names the outputs that are computed.

    ONNX Runtime computes every output of a graph, fetched or not, so a row that asks for no view
    must run in a graph that has none.
    """

    PLAIN = ("logits", "probabilities")
    EXPLAIN = (*PLAIN, "evidence", "contributions", "pooling_attention")
    FULL = (*EXPLAIN, "attentions")

    __hash__ = object.__hash__  # members are looked up for every row, and Enum's own is slow


@dataclass(frozen=True, slots=True)
class ViewRequest:
    """Which views a call wants.

    `layers` and `heads` are checked, and never empty when ATTENTIONS is among the views; `dtype` is
    the element type of the tensors answered. `variant` is the smallest graph that holds all of the
    views.
    """

    views: frozenset[View] = frozenset()
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    dtype: type[np.float32] | type[np.float16] = np.float32
    variant: Variant = field(init=False)

    def __post_init__(self) -> None:
        variant = Variant.EXPLAIN if self.views else Variant.PLAIN
        if View.ATTENTIONS in self.views:
            variant = Variant.FULL
        object.__setattr__(self, "variant", variant)


NO_VIEWS = ViewRequest()


@dataclass(frozen=True, slots=True)
class Token:
    """One token: what it covers of the text as sent, in code points."""

    text: str
    start: int
    end: int


class Result(NamedTuple):
    """What the network says of one row of S tokens.

    `logits` and `probabilities` are C numbers; `views` holds what was asked for, cut to S.
    """

    logits: list[float]
    probabilities: list[float]
    views: dict[View, FloatArray]


class Prediction(NamedTuple):
    """The answer for one text: the result of its row, and how the text was read."""

    logits: list[float]
    probabilities: list[float]
    views: dict[View, FloatArray]
    truncated: bool = False
    tokens: Sequence[Token] = ()


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The model in service, as the edge needs to know it: for validation, GetModel and labels."""

    name: str
    version: str
    labels: tuple[str, ...]
    languages: tuple[str, ...]
    max_tokens: int
    layers: int
    heads: int
    bias: tuple[float, ...]
    temperature: float
    abstention_threshold: float | None
    license: str
    provider: str
    fingerprint: str
