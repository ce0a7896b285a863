"""Is a call well formed and within limits? Looked at before any work is done for it."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from protos.realce.v1 import classifier_pb2 as pb
from service.errors import InvalidRequest, ModelNotFound, Violation
from service.types import NO_VIEWS, ModelDescription, View, ViewRequest

VIEWS = {
    pb.VIEW_EVIDENCE: View.EVIDENCE,
    pb.VIEW_CONTRIBUTIONS: View.CONTRIBUTIONS,
    pb.VIEW_POOLING_ATTENTION: View.POOLING_ATTENTION,
    pb.VIEW_ATTENTIONS: View.ATTENTIONS,
}
DATA_TYPES: dict[int, type[np.float32] | type[np.float16]] = {
    pb.DATA_TYPE_UNSPECIFIED: np.float32,
    pb.DATA_TYPE_FLOAT32: np.float32,
    pb.DATA_TYPE_FLOAT16: np.float16,
}
MAX_VIOLATIONS = 16  # enough to see what is wrong with a call of a thousand texts
_KNOWN_VIEWS = ", ".join(f"{pb.View.Name(view)} ({view})" for view in VIEWS)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a call may hold."""

    max_texts: int
    max_text_bytes: int
    max_answer_bytes: int
    max_request_bytes: int
    max_request_tokens: int


def check_model(name: str, model: ModelDescription) -> None:
    """Raise `ModelNotFound` unless `name` is empty or the model in service."""
    if name and name != model.name:
        raise ModelNotFound(f"model {name[:64]!r} is not in service; {model.name!r} is")


def check_request(
    request: pb.ClassifyRequest, model: ModelDescription, limits: Limits
) -> ViewRequest:
    """The views a call wants.

    Raises `InvalidRequest` with its faults, the first `MAX_VIOLATIONS` of them, or `ModelNotFound`.
    """
    check_model(request.model, model)
    texts = request.texts
    faults = _texts(texts, limits)
    if request.abstain and model.abstention_threshold is None:
        fault = Violation("abstain", f"model {model.name!r} has no abstention threshold")
        faults = itertools.chain(faults, [fault])
    plain = not (request.views or request.data_type or request.HasField("attention_selection"))
    if not plain:
        faults = itertools.chain(faults, _views(request), _selection(request, model))
    if violations := list(itertools.islice(faults, MAX_VIOLATIONS)):
        raise InvalidRequest(violations)
    if plain:
        return NO_VIEWS
    views = frozenset(VIEWS[view] for view in request.views)
    selection, full = request.attention_selection, View.ATTENTIONS in views
    return ViewRequest(
        views=views,
        layers=tuple(selection.layers or range(model.layers)) if full else (),
        heads=tuple(selection.heads or range(model.heads)) if full else (),
        dtype=DATA_TYPES[request.data_type],
    )


def _texts(texts: Sequence[str], limits: Limits) -> Iterable[Violation]:
    if not texts:
        yield Violation("texts", f"0 texts; at least 1, at most {limits.max_texts}")
        return
    if len(texts) > limits.max_texts:
        yield Violation("texts", f"{len(texts)} texts, the limit is {limits.max_texts}")
        return
    for i, text in enumerate(texts):
        if not text or text.isspace():
            yield Violation(f"texts[{i}]", "is blank" if text else "is empty")
        # A code point takes 4 bytes at most: most texts are known to fit without encoding them.
        elif len(text) * 4 > limits.max_text_bytes:
            size = len(text.encode())
            if size > limits.max_text_bytes:
                reason = f"{size} bytes, the limit is {limits.max_text_bytes}"
                yield Violation(f"texts[{i}]", reason)


def _views(request: pb.ClassifyRequest) -> Iterable[Violation]:
    seen = set[int]()
    for i, view in enumerate(request.views):
        if view not in VIEWS:
            yield Violation(f"views[{i}]", f"{view} is no view; there are {_KNOWN_VIEWS}")
        elif view in seen:
            yield Violation(f"views[{i}]", f"{pb.View.Name(view)} is named twice")
        seen.add(view)
    if request.data_type not in DATA_TYPES:
        known = ", ".join(f"{pb.DataType.Name(kind)} ({kind})" for kind in DATA_TYPES if kind)
        yield Violation("data_type", f"{request.data_type} is no data type; there are {known}")


def _selection(request: pb.ClassifyRequest, model: ModelDescription) -> Iterable[Violation]:
    if not request.HasField("attention_selection"):
        return
    if pb.VIEW_ATTENTIONS not in request.views:
        yield Violation("attention_selection", "given without VIEW_ATTENTIONS in views")
    for axis, size in (("layers", model.layers), ("heads", model.heads)):
        chosen = getattr(request.attention_selection, axis)
        path = f"attention_selection.{axis}"
        if len(chosen) > size:
            yield Violation(path, f"{len(chosen)} {axis}, the limit is {size}")
            continue
        if len(set(chosen)) < len(chosen):
            yield Violation(path, "names one twice")
        for i, index in enumerate(chosen):
            if index >= size:
                yield Violation(f"{path}[{i}]", f"{index}, the limit is {size - 1}")
