"""Clients of a Realce server, for programs that are synchronous or not.

    with Classifier("127.0.0.1:50051") as classifier:
        answer = classifier.classify(["Não gostei nada."], views=["contributions"])

Addresses that name several hosts (`dns:///realce-headless:50051`) are used in turn. A call that
found no server or a full queue is tried again, within its deadline. A proxy of the environment is
used, but not for this machine.
"""

import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt
from google.rpc import error_details_pb2, status_pb2

from protos.realce.v1 import classifier_pb2 as pb
from protos.realce.v1 import classifier_pb2_grpc as rpc
from service.errors import Violation
from service.types import FloatArray, ModelDescription, Token, View

DEFAULT_TIMEOUT_S = 10.0
MAX_MESSAGE_BYTES = 128 << 20
THIS_MACHINE = re.compile(r"(localhost|127(\.\d+){3}|\[?::1\]?)(:\d+)?", re.IGNORECASE)
_DTYPES = {pb.DATA_TYPE_FLOAT32: "<f4", pb.DATA_TYPE_FLOAT16: "<f2"}
_DATA_TYPES = {np.dtype(np.float32): pb.DATA_TYPE_FLOAT32, np.dtype("f2"): pb.DATA_TYPE_FLOAT16}
_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [
                    {"service": "realce.v1.Classifier", "method": method}
                    for method in ("Classify", "GetModel")
                ],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    # Answers have no side effects. A full queue tells when to come back, and the
                    # library waits that long. A call is cancelled from there when too many wait.
                    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
                },
            }
        ],
        # When half of all calls fail, retries stop until it is better: they would only add load.
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
    }
)
_OPTIONS = (
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.enable_retries", 1),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Larger calls than it holds are sent once, and the library's own limit is 256 KiB.
    ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
)


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

    Raises `ValueError` for a view or dtype that there is not, and for texts that are one string.
    """
    if isinstance(texts, str):
        raise ValueError("texts: a string, must be a sequence of strings")
    message = pb.ClassifyRequest(texts=texts, abstain=abstain)
    for view in views:
        name = f"VIEW_{view.name if isinstance(view, View) else view.upper()}"
        if name not in pb.View.keys():  # noqa: SIM118 - the enum is no mapping
            known = ", ".join(one.value for one in View)
            raise ValueError(f"views: {name} is no view; there are {known}")
        message.views.append(pb.View.Value(name))  # type: ignore[arg-type]
    if layers or heads:
        message.attention_selection.layers.extend(layers)
        message.attention_selection.heads.extend(heads)
    if (kind := np.dtype(dtype)) not in _DATA_TYPES:
        raise ValueError(f"dtype: {kind}, must be float32 or float16")
    message.data_type = _DATA_TYPES[kind]
    return message


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


def _model(one: pb.Model) -> Model:
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


def _failure(error: Any) -> CallError:
    """What went wrong with a call, from the library's error."""
    status = status_pb2.Status(code=error.code().value[0], message=error.details() or "")
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.MergeFromString(value)
    return CallError(status)


def _outcome(message: pb.ClassifyStreamResponse) -> list[Answer] | CallError:
    failed = message.WhichOneof("result") == "error"
    return CallError(message.error) if failed else answers(message.response)


def channel_options(target: str) -> tuple[tuple[str, int | str], ...]:
    """The options of a channel to `target`, as gRPC takes them."""
    here = THIS_MACHINE.fullmatch(target)
    return (*_OPTIONS, ("grpc.enable_http_proxy", 0)) if here else _OPTIONS


class _Batches:
    """The messages of a stream. What goes wrong in making one ends the stream, so that those before
    it are answered, and is raised to who reads the answers: the library would lose it."""

    def __init__(self, views: Iterable[View | str], abstain: bool) -> None:
        self._views, self._abstain = tuple(views), abstain
        self._error: Exception | None = None
        self._message(())  # a view that there is not is no matter of a batch

    def _message(self, texts: Sequence[str]) -> pb.ClassifyStreamRequest:
        request = request_message(texts, self._views, abstain=self._abstain)
        return pb.ClassifyStreamRequest(request=request)

    def each(self, batches: Iterable[Sequence[str]]) -> Iterator[pb.ClassifyStreamRequest]:
        """A message for each batch."""
        try:
            for texts in batches:
                yield self._message(texts)
        except Exception as error:
            self._error = error

    async def each_of(
        self, batches: AsyncIterable[Sequence[str]]
    ) -> AsyncIterator[pb.ClassifyStreamRequest]:
        """The same of batches that are waited for."""
        try:
            async for texts in batches:
                yield self._message(texts)
        except Exception as error:
            self._error = error

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._error is not None:
            raise self._error


class _Client:
    """What both clients hold: the stub of their channel, and how long a call may take."""

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel, timeout_s: float) -> None:
        self._channel: Any = channel
        self._stub: Any = rpc.ClassifierStub(channel)  # type: ignore[no-untyped-call]
        self._timeout_s = timeout_s

    def _timeout(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s


class Classifier(_Client):
    """A synchronous client; safe to share between threads. All calls raise `CallError`."""

    def __init__(self, target: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        channel = grpc.insecure_channel(target, options=channel_options(target))
        super().__init__(channel, timeout_s)

    def classify(
        self,
        texts: Sequence[str],
        *,
        views: Iterable[View | str] = (),
        layers: Sequence[int] = (),
        heads: Sequence[int] = (),
        dtype: npt.DTypeLike = np.float32,
        abstain: bool = False,
        timeout_s: float | None = None,
    ) -> list[Answer]:
        """One answer a text, in order; `layers` and `heads` choose among attentions, `abstain`
        marks the answers that the model is not sure enough of."""
        message = request_message(texts, views, layers, heads, dtype, abstain=abstain)
        try:
            return answers(self._stub.Classify(message, timeout=self._timeout(timeout_s)))
        except grpc.RpcError as error:
            raise _failure(error) from error

    def classify_stream(
        self,
        batches: Iterable[Sequence[str]],
        *,
        views: Iterable[View | str] = (),
        abstain: bool = False,
        timeout_s: float | None = None,
    ) -> Iterator[list[Answer] | CallError]:
        """What came of each batch of texts, in order: its answers or why there are none.

        `timeout_s` bounds the whole stream; without it there is no bound. Raises, once those before
        it are answered, what taking or reading a batch raises.
        """
        messages = _Batches(views, abstain)
        call = self._stub.ClassifyStream(messages.each(batches), timeout=timeout_s)
        try:
            yield from map(_outcome, call)
        except grpc.RpcError as error:
            raise _failure(error) from error
        finally:
            call.cancel()
        messages.check()

    def get_model(self, *, timeout_s: float | None = None) -> Model:
        """The model in service."""
        try:
            call = self._stub.GetModel(pb.GetModelRequest(), timeout=self._timeout(timeout_s))
        except grpc.RpcError as error:
            raise _failure(error) from error
        return _model(call.model)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClassifier(_Client):
    """The same on asyncio."""

    def __init__(self, target: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__(
            grpc.aio.insecure_channel(target, options=channel_options(target)), timeout_s
        )

    async def classify(
        self,
        texts: Sequence[str],
        *,
        views: Iterable[View | str] = (),
        layers: Sequence[int] = (),
        heads: Sequence[int] = (),
        dtype: npt.DTypeLike = np.float32,
        abstain: bool = False,
        timeout_s: float | None = None,
    ) -> list[Answer]:
        """One answer a text, in order; `layers` and `heads` choose among attentions, `abstain`
        marks the answers that the model is not sure enough of."""
        message = request_message(texts, views, layers, heads, dtype, abstain=abstain)
        try:
            return answers(await self._stub.Classify(message, timeout=self._timeout(timeout_s)))
        except grpc.RpcError as error:
            raise _failure(error) from error

    async def classify_stream(
        self,
        batches: AsyncIterable[Sequence[str]],
        *,
        views: Iterable[View | str] = (),
        abstain: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[list[Answer] | CallError]:
        """What came of each batch of texts, in order: its answers or why there are none.

        `timeout_s` bounds the whole stream; without it there is no bound. Raises, once those before
        it are answered, what taking or reading a batch raises. Who leaves early closes it
        (`contextlib.aclosing`).
        """
        messages = _Batches(views, abstain)
        call = self._stub.ClassifyStream(messages.each_of(batches), timeout=timeout_s)
        try:
            async for message in call:
                yield _outcome(message)
        except grpc.RpcError as error:
            raise _failure(error) from error
        finally:
            call.cancel()
        messages.check()

    async def get_model(self, *, timeout_s: float | None = None) -> Model:
        """The model in service."""
        try:
            call = self._stub.GetModel(pb.GetModelRequest(), timeout=self._timeout(timeout_s))
            return _model((await call).model)
        except grpc.RpcError as error:
            raise _failure(error) from error

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
