"""Between the wire and the service's own types; nothing is decided here."""

from collections.abc import Sequence

import grpc
import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from protos.realce.v1 import classifier_pb2 as pb
from service.errors import (
    BackendFailed,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RealceError,
    Unavailable,
)
from service.types import FloatArray, ModelDescription, Prediction, View, ViewRequest
from service.validation import VIEWS, Limits

CODES: dict[type[RealceError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    BackendFailed: grpc.StatusCode.INTERNAL,
}


def response(
    predictions: Sequence[Prediction],
    request: ViewRequest,
    model: ModelDescription,
    message: pb.ClassifyResponse,
    *,
    abstain: bool = False,
) -> None:
    """Write the answer to a call into `message`, an empty one; with `abstain`, answers under the
    model's threshold are marked."""
    message.model_name, message.model_version = model.name, model.version
    if View.EVIDENCE in request.views or View.CONTRIBUTIONS in request.views:
        message.bias.extend(model.bias)
    for one in predictions:
        _add(message, one, model.labels)
    if abstain and model.abstention_threshold is not None:
        for prediction in message.predictions:
            prediction.abstained = prediction.probability < model.abstention_threshold


def _add(message: pb.ClassifyResponse, one: Prediction, labels: Sequence[str]) -> None:
    highest = max(one.probabilities)
    label = labels[one.probabilities.index(highest)]
    added = message.predictions.add(label=label, probability=highest, truncated=one.truncated)
    for label, probability, logit in zip(labels, one.probabilities, one.logits, strict=True):
        added.scores.add(label=label, probability=probability, logit=logit)
    for token in one.tokens:
        added.tokens.add(text=token.text, start=token.start, end=token.end)
    for view, array in one.views.items():
        _tensor(getattr(added, view.value), array)


def _tensor(message: pb.Tensor, array: FloatArray) -> None:
    message.shape.extend(array.shape)
    half = array.dtype == np.float16
    message.data_type = pb.DATA_TYPE_FLOAT16 if half else pb.DATA_TYPE_FLOAT32
    message.data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def model(description: ModelDescription, limits: Limits) -> pb.Model:
    """The model in service."""
    return pb.Model(
        name=description.name,
        version=description.version,
        labels=description.labels,
        languages=description.languages,
        max_tokens=description.max_tokens,
        layers=description.layers,
        heads=description.heads,
        bias=description.bias,
        temperature=description.temperature,
        views=VIEWS,
        license=description.license,
        provider=description.provider,
        fingerprint=description.fingerprint,
        abstention_threshold=description.abstention_threshold or 0.0,
        limits=pb.Limits(
            max_texts=limits.max_texts,
            max_text_bytes=limits.max_text_bytes,
            max_response_bytes=limits.max_answer_bytes,
            max_request_bytes=limits.max_request_bytes,
            max_request_tokens=limits.max_request_tokens,
        ),
    )


def status(error: Exception, request_id: str) -> tuple[grpc.StatusCode, Status]:
    """The status of a call that failed; faults of ours say no more than the request id."""
    code = CODES.get(type(error)) if isinstance(error, RealceError) else None
    text = str(error) if code else "internal error"
    details: list[Message] = [error_details_pb2.RequestInfo(request_id=request_id)]
    if isinstance(error, InvalidRequest):
        bad = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad.field_violations.add(field=violation.field, description=violation.description)
        details.insert(0, bad)
        # The details name them all; twice over they would outgrow what HTTP/2 headers may hold.
        first, more = error.violations[0], len(error.violations) - 1
        text = f"{first.field}: {first.description}" + (f" (and {more} more)" if more else "")
    elif isinstance(error, Overloaded):
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.insert(0, error_details_pb2.RetryInfo(retry_delay=delay))
    code = code or grpc.StatusCode.INTERNAL
    if code is grpc.StatusCode.INTERNAL:
        text = f"{text} (request {request_id})"
    message = Status(code=code.value[0], message=text)
    for detail in details:
        message.details.add().Pack(detail)
    return code, message
