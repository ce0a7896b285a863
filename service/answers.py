"""What a caller asks for and what comes back, as plain data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.rpc import error_details_pb2, status_pb2

from protos.realce.v1 import classifier_pb2 as pb
from service.errors import Violation
from service.types import FloatArray, ModelDescription, Token, View

_DTYPES = {pb.DATA_TYPE_FLOAT32: "<f4", pb.DATA_TYPE_FLOAT16: "<f2"}
_DATA_TYPES = {np.dtype(np.float32): pb.DATA_TYPE_FLOAT32, np.dtype("f2"): pb.DATA_TYPE_FLOAT16}


class CallError(Exception):
    """A call failed. `code` is gRPC's name for why, as in "INVALID_ARGUMENT".

    `violations` names the fields at fault, `retry_after_s` when to come back, where the server said
    so; `request_id` is what its log knows the call by.
    """

    def __init__(self, status: status_pb2.Status) -> None:
        names = {code.value[0]: code.name for code in grpc.StatusCode}
        self.code = names.get(status.code, "UNKNOWN")
        super().__init__(f"{self.code}: {status.message}")
        self.message = status.message
        self.violations: tuple[Violation, ...] = ()
        self.retry_after_s: float | None = None
        self.request_id = ""
        for detail in status.details:
            bad = error_details_pb2.BadRequest()
            retry, info = error_details_pb2.RetryInfo(), error_details_pb2.RequestInfo()
            if detail.Unpack(bad):
                self.violations = tuple(
                    Violation(one.field, one.description) for one in bad.field_violations
                )
            elif detail.Unpack(retry):
                self.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
            elif detail.Unpack(info):
                self.request_id = info.request_id


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer for one text of S tokens.

    `probabilities` and `logits` by label; `views` by name: evidence and contributions [S, C],
    pooling_attention [H, S], attentions [L, H, S, S]. `bias` by label, with the first two: what
    their sums over S lack to the logits. `abstained` where the call asked to `abstain` and the
    probability is below the model's threshold.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    logits: dict[str, float]
    truncated: bool
    tokens: list[Token] = field(default_factory=list)
    views: dict[str, FloatArray] = field(default_factory=dict)
    bias: dict[str, float] = field(default_factory=dict)
    abstained: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """The model in service and what a call to it may hold."""

    description: ModelDescription
    max_texts: int
    max_text_bytes: int
    max_response_bytes: int
    max_request_bytes: int
    max_request_tokens: int


def request_message(
    texts: Sequence[str],
    views: Iterable[View | str] = (),
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
    dtype: npt.DTypeLike = np.float32,
    abstain: bool = False,
) -> pb.ClassifyRequest:
    """The message of a call. `views` as `View` or by name in any case, as in "evidence".

    Raises `ValueError` or `TypeError` for what cannot be asked; either names it.
    """
    message = pb.ClassifyRequest(abstain=abstain)
    add_texts(message, texts)
    if isinstance(views, str):
        raise ValueError("views: a string, must be a sequence of views")
    for i, view in enumerate(views):
        try:
            name = View(view.lower() if isinstance(view, str) else view).name
        except ValueError:
            known = ", ".join(one.value for one in View)
            raise ValueError(f"views[{i}]: {view!r} is no view; there are {known}") from None
        message.views.append(pb.View.Value(f"VIEW_{name}"))  # type: ignore[arg-type]
    for axis, chosen in (("layers", layers), ("heads", heads)):
        if chosen:
            try:
                getattr(message.attention_selection, axis).extend(chosen)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{axis}: {error}") from error
    if (kind := np.dtype(dtype)) not in _DATA_TYPES:
        raise ValueError(f"dtype: {kind}, must be float32 or float16")
    message.data_type = _DATA_TYPES[kind]
    return message


def add_texts(message: pb.ClassifyRequest, texts: Sequence[str]) -> None:
    """Put texts into the message of a call. Raises `ValueError` or `TypeError`, naming the text."""
    if isinstance(texts, str):
        raise ValueError("texts: a string, must be a sequence of strings")
    for i, text in enumerate(texts):
        try:
            message.texts.append(text)
        except UnicodeError as error:
            raise ValueError(f"texts[{i}]: {error}") from error
        except TypeError as error:
            raise TypeError(f"texts[{i}]: {type(text).__name__}, must be a string") from error


def answers(message: pb.ClassifyResponse) -> list[Answer]:
    """The answers in a message, with arrays."""
    return [_answer(one, message.bias) for one in message.predictions]


def _answer(one: pb.Prediction, bias: Sequence[float]) -> Answer:
    return Answer(
        label=one.label,
        probability=one.probability,
        probabilities={score.label: score.probability for score in one.scores},
        logits={score.label: score.logit for score in one.scores},
        truncated=one.truncated,
        tokens=[Token(token.text, token.start, token.end) for token in one.tokens],
        views={v.value: array(getattr(one, v.value)) for v in View if one.HasField(v.value)},
        bias={score.label: value for score, value in zip(one.scores, bias, strict=False)},
        abstained=one.abstained,
    )


def array(tensor: pb.Tensor) -> FloatArray:
    """The array in a tensor message, read-only."""
    return np.frombuffer(tensor.data, dtype=_DTYPES[tensor.data_type]).reshape(tensor.shape)


def model_of(one: pb.Model) -> Model:
    """The model in a message."""
    return Model(
        ModelDescription(
            name=one.name,
            version=one.version,
            labels=tuple(one.labels),
            languages=tuple(one.languages),
            max_tokens=one.max_tokens,
            layers=one.layers,
            heads=one.heads,
            bias=tuple(one.bias),
            temperature=one.temperature,
            abstention_threshold=one.abstention_threshold or None,
            license=one.license,
            provider=one.provider,
            fingerprint=one.fingerprint,
        ),
        max_texts=one.limits.max_texts,
        max_text_bytes=one.limits.max_text_bytes,
        max_response_bytes=one.limits.max_response_bytes,
        max_request_bytes=one.limits.max_request_bytes,
        max_request_tokens=one.limits.max_request_tokens,
    )


def failure_of(error: Any) -> CallError:
    """What went wrong with a call, from the library's error."""
    said = error.details() or ""
    if said == grpc.StatusCode.CANCELLED.name:  # all that the library has to say
        said = "cut off by the server, for which too many calls wait"
    status = status_pb2.Status(code=error.code().value[0], message=said)
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.MergeFromString(value)
    return CallError(status)


def outcome_of(message: pb.ClassifyStreamResponse) -> list[Answer] | CallError:
    """What came of a message of a stream."""
    failed = message.WhichOneof("result") == "error"
    return CallError(message.error) if failed else answers(message.response)
