"""Views of an answer: how large they will be, and how they are cut out of a batch."""

from collections.abc import Iterable

import numpy as np

from service.backend import Outputs
from service.errors import InvalidRequest, Violation
from service.types import FloatArray, ModelDescription, View, ViewRequest


def answer_bytes(lengths: Iterable[int], request: ViewRequest, model: ModelDescription) -> int:
    """Bytes of tensor data that texts of these many tokens are answered with."""
    if not request.views:
        return 0
    per_token = per_pair = 0
    for view in request.views:
        if view is View.POOLING_ATTENTION:
            per_token += model.heads
        elif view is View.ATTENTIONS:
            per_pair += len(request.layers) * len(request.heads)
        else:
            per_token += len(model.labels)
    elements = sum(length * (per_token + length * per_pair) for length in lengths)
    return elements * np.dtype(request.dtype).itemsize


def check_answer_bytes(
    lengths: Iterable[int], request: ViewRequest, model: ModelDescription, limit: int
) -> int:
    """The bytes of `answer_bytes`; refuses, before inference, what would be too large to send."""
    size = answer_bytes(lengths, request, model)
    if size > limit:
        names = ", ".join(sorted(view.name for view in request.views))
        raise InvalidRequest(
            [
                Violation(
                    "views",
                    f"{names} would take {size} bytes, the limit is {limit}; send fewer texts, or "
                    "select layers and heads, or use DATA_TYPE_FLOAT16",
                )
            ]
        )
    return size


def cut(outputs: Outputs, row: int, length: int, request: ViewRequest) -> dict[View, FloatArray]:
    """The views of one row of a batch, without its padding, as arrays of their own.

    evidence and contributions [S, C], pooling_attention [H, S], attentions [L, H, S, S] over the
    selected layers and heads.
    """
    views: dict[View, FloatArray] = {}
    for view in request.views:
        whole = outputs[view.value][row]
        if view is View.ATTENTIONS:
            part = whole[np.ix_(request.layers, request.heads)][..., :length, :length]
        elif view is View.POOLING_ATTENTION:
            part = whole[:, :length]
        else:
            part = whole[:length]
        # A copy: the answer must not keep the whole batch alive.
        views[view] = part.astype(request.dtype, order="C")
    return views
