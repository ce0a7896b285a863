"""Clients of a Realce server, for programs that are synchronous or not.

    with Classifier("127.0.0.1:50051") as classifier:
        answer = classifier.classify(["Não gostei nada."], views=["contributions"])

Addresses that name several hosts (`dns:///realce-headless:50051`) are used in turn. A call that
found no server is tried again, within its deadline.
"""

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
import numpy as np

from protos.realce.v1 import classifier_pb2 as pb
from protos.realce.v1 import classifier_pb2_grpc as rpc
from service.types import FloatArray, Token

DEFAULT_TIMEOUT_S = 10.0
MAX_MESSAGE_BYTES = 128 << 20
_DTYPES = {pb.DATA_TYPE_FLOAT32: "<f4", pb.DATA_TYPE_FLOAT16: "<f2"}
_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{"service": "realce.v1.Classifier"}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    # Only what is certain not to have been computed; a full queue tells when to
                    # come back, and the library waits that long.
                    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
                },
            }
        ],
    }
)
_OPTIONS = (
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.enable_retries", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer for one text of S tokens.

    `probabilities` and `logits` by label; `views` by name: evidence and contributions [S, C],
    pooling_attention [H, S], attentions [L, H, S, S]. `bias` by label, with the first two: what
    their sums over S lack to the logits.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    logits: dict[str, float]
    truncated: bool
    tokens: list[Token] = field(default_factory=list)
    views: dict[str, FloatArray] = field(default_factory=dict)
    bias: dict[str, float] = field(default_factory=dict)


def request_message(
    texts: Sequence[str],
    views: Iterable[str] = (),
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
    half: bool = False,
    model: str = "",
) -> pb.ClassifyRequest:
    """The message of a call. `views` by name in any case, as in "evidence"; ValueError if none."""
    message = pb.ClassifyRequest(texts=texts, model=model)
    for view in views:
        message.views.append(pb.View.Value(f"VIEW_{view.upper()}"))  # type: ignore[arg-type]
    if layers or heads:
        message.attention_selection.layers.extend(layers)
        message.attention_selection.heads.extend(heads)
    if half:
        message.data_type = pb.DATA_TYPE_FLOAT16
    return message


def answers(message: pb.ClassifyResponse) -> list[Answer]:
    """The answers in a message, with arrays."""
    return [_answer(one, message.bias) for one in message.predictions]


def _answer(one: pb.Prediction, bias: Sequence[float]) -> Answer:
    names = ("evidence", "contributions", "pooling_attention", "attentions")
    return Answer(
        label=one.label,
        probability=one.probability,
        probabilities={score.label: score.probability for score in one.scores},
        logits={score.label: score.logit for score in one.scores},
        truncated=one.truncated,
        tokens=[Token(token.text, token.start, token.end) for token in one.tokens],
        views={name: array(getattr(one, name)) for name in names if one.HasField(name)},
        bias={score.label: value for score, value in zip(one.scores, bias, strict=False)},
    )


def array(tensor: pb.Tensor) -> FloatArray:
    """The array in a tensor message, read-only."""
    return np.frombuffer(tensor.data, dtype=_DTYPES[tensor.data_type]).reshape(tensor.shape)


class Classifier:
    """A synchronous client; safe to share between threads."""

    def __init__(self, target: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._stub: Any = rpc.ClassifierStub(self._channel)  # type: ignore[no-untyped-call]
        self._timeout_s = timeout_s

    def classify(
        self,
        texts: Sequence[str],
        *,
        views: Iterable[str] = (),
        layers: Sequence[int] = (),
        heads: Sequence[int] = (),
        half: bool = False,
        timeout_s: float | None = None,
    ) -> list[Answer]:
        """One answer a text, in order. Raises `grpc.RpcError`."""
        message = request_message(texts, views, layers, heads, half)
        return answers(self._stub.Classify(message, timeout=timeout_s or self._timeout_s))

    def model(self, *, timeout_s: float | None = None) -> pb.Model:
        """The model in service."""
        call = self._stub.GetModel(pb.GetModelRequest(), timeout=timeout_s or self._timeout_s)
        model: pb.Model = call.model
        return model

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClassifier:
    """The same on asyncio, with the bulk stream."""

    def __init__(self, target: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._stub: Any = rpc.ClassifierStub(self._channel)  # type: ignore[no-untyped-call]
        self._timeout_s = timeout_s

    async def classify(
        self,
        texts: Sequence[str],
        *,
        views: Iterable[str] = (),
        layers: Sequence[int] = (),
        heads: Sequence[int] = (),
        half: bool = False,
        timeout_s: float | None = None,
    ) -> list[Answer]:
        """One answer a text, in order. Raises `grpc.aio.AioRpcError`."""
        message = request_message(texts, views, layers, heads, half)
        return answers(await self._stub.Classify(message, timeout=timeout_s or self._timeout_s))

    async def classify_stream(
        self, messages: AsyncIterable[pb.ClassifyStreamRequest], *, timeout_s: float | None = None
    ) -> AsyncIterator[pb.ClassifyStreamResponse]:
        """Answers to a stream of messages, in order, each with a response or an error."""
        async for answer in self._stub.ClassifyStream(messages, timeout=timeout_s):
            yield answer

    async def model(self, *, timeout_s: float | None = None) -> pb.Model:
        """The model in service."""
        call = self._stub.GetModel(pb.GetModelRequest(), timeout=timeout_s or self._timeout_s)
        model: pb.Model = (await call).model
        return model

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
