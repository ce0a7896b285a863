"""Clients of a Realce server, for programs that are synchronous or not.

    with Classifier("127.0.0.1:50051") as classifier:
        answer = classifier.classify(["Não gostei nada."], views=["contributions"])

Addresses that name several hosts (`dns:///realce-headless:50051`) are used in turn. What found no
server, or too many callers before it, is tried again within its deadline, a stream as long as
nothing of it has been answered. A proxy of the environment is used, but not for this machine.
"""

import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt

from protos.realce.v1 import classifier_pb2 as pb
from protos.realce.v1 import classifier_pb2_grpc as rpc
from service.answers import (
    Answer,
    CallError,
    Model,
    add_texts,
    answers,
    failure_of,
    model_of,
    outcome_of,
    request_message,
)
from service.types import View

__all__ = ["Answer", "AsyncClassifier", "CallError", "Classifier", "Model"]

DEFAULT_TIMEOUT_S = 10.0
MAX_MESSAGE_BYTES = 128 << 20
THIS_MACHINE = re.compile(r"(localhost|127(\.\d+){3}|\[?::1\]?)(:\d+)?", re.IGNORECASE)
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


def channel_options(target: str) -> tuple[tuple[str, int | str], ...]:
    """The options of a channel to `target`, as gRPC takes them."""
    here = THIS_MACHINE.fullmatch(target)
    return (*_OPTIONS, ("grpc.enable_http_proxy", 0)) if here else _OPTIONS


class _Batches:
    """The messages of a stream. What goes wrong in making one ends the stream, so that those before
    it are answered, and is raised to who reads the answers: the library would lose it."""

    def __init__(self, views: Iterable[View | str], abstain: bool) -> None:
        # Of any batch: that there is no such view is no matter of one.
        self._of_any = request_message((), views, abstain=abstain)
        self._error: Exception | None = None

    def _message(self, texts: Sequence[str]) -> pb.ClassifyStreamRequest:
        message = pb.ClassifyStreamRequest(request=self._of_any)
        add_texts(message.request, texts)
        return message

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
    """A synchronous client; safe to share between threads.

    A call that fails raises `CallError`; one that cannot be made, `ValueError` or `TypeError`.
    """

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
            raise failure_of(error) from error

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
            yield from map(outcome_of, call)
        except grpc.RpcError as error:
            raise failure_of(error) from error
        finally:
            call.cancel()
        messages.check()

    def get_model(self, *, timeout_s: float | None = None) -> Model:
        """The model in service."""
        try:
            call = self._stub.GetModel(pb.GetModelRequest(), timeout=self._timeout(timeout_s))
        except grpc.RpcError as error:
            raise failure_of(error) from error
        return model_of(call.model)

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
            raise failure_of(error) from error

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
                yield outcome_of(message)
        except grpc.RpcError as error:
            raise failure_of(error) from error
        finally:
            call.cancel()
        messages.check()

    async def get_model(self, *, timeout_s: float | None = None) -> Model:
        """The model in service."""
        try:
            call = self._stub.GetModel(pb.GetModelRequest(), timeout=self._timeout(timeout_s))
            return model_of((await call).model)
        except grpc.RpcError as error:
            raise failure_of(error) from error

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
