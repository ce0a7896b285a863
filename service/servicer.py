"""The gRPC methods: convert, call the engine, convert."""

import asyncio
import contextlib
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from operator import methodcaller
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status

from protos.realce.v1 import classifier_pb2 as pb
from service import converters
from service.engine import Engine
from service.errors import InvalidRequest, Overloaded, RealceError, Violation
from service.validation import Limits, check_model, check_request

SERVICE = "realce.v1.Classifier"
REQUEST_ID = "x-request-id"
STREAM_WINDOW = 8  # messages of one stream under way at a time
MAX_REQUEST_ID = 64

log = structlog.get_logger("realce.call")

M = TypeVar("M", bound=Message)
if TYPE_CHECKING:  # the library's classes take no parameters at run time
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.GenericRpcHandler[Any, Any]


def decoder(kind: type[M]) -> Callable[[bytes], M | None]:
    """A deserialiser that gives None for what is not a message of this kind."""

    def decode(content: bytes) -> M | None:
        try:
            return kind.FromString(content)
        except DecodeError:
            return None

    return decode


class ClassifierServicer:
    """Serves one engine as `realce.v1.Classifier`."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine, self._limits = engine, limits

    def handler(self) -> "Handler":
        """The methods with our own deserialisers, for `grpc.aio.Server`."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        write = methodcaller("SerializeToString")
        methods = {
            "Classify": unary(self.classify, decoder(pb.ClassifyRequest), write),
            "ClassifyStream": stream(
                self.classify_stream, decoder(pb.ClassifyStreamRequest), write
            ),
            "GetModel": unary(self.get_model, decoder(pb.GetModelRequest), write),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def classify(
        self, request: pb.ClassifyRequest | None, context: "Context"
    ) -> pb.ClassifyResponse:
        """See the protocol."""
        deadline = _deadline(context)
        return await _answer(context, "Classify", lambda: self._classify(request, deadline))

    async def get_model(
        self, request: pb.GetModelRequest | None, context: "Context"
    ) -> pb.GetModelResponse:
        """See the protocol."""

        async def describe() -> pb.GetModelResponse:
            check_model(_decoded(request).model, self._engine.description)
            model = converters.model(self._engine.description, self._limits)
            return pb.GetModelResponse(model=model)

        return await _answer(context, "GetModel", describe)

    async def classify_stream(
        self, requests: AsyncIterator[pb.ClassifyStreamRequest | None], context: "Context"
    ) -> AsyncIterator[pb.ClassifyStreamResponse]:
        """See the protocol. Reading stops while `STREAM_WINDOW` messages are under way."""
        request_id, deadline = _request_id(context), _deadline(context)
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        window: asyncio.Queue[asyncio.Task[pb.ClassifyStreamResponse] | None]
        window = asyncio.Queue(STREAM_WINDOW)
        tasks: set[asyncio.Task[pb.ClassifyStreamResponse]] = set()

        async def read() -> None:
            async for request in requests:
                task = asyncio.create_task(self._stream_answer(request, deadline, request_id))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await window.put(task)
            await window.put(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await window.get()) is not None:
                yield await task
            await reader
        finally:
            for unfinished in (reader, *tasks):
                unfinished.cancel()

    async def _stream_answer(
        self, request: pb.ClassifyStreamRequest | None, deadline: float | None, request_id: str
    ) -> pb.ClassifyStreamResponse:
        if request is None:
            return pb.ClassifyStreamResponse(error=_failed(_malformed(), "Stream", request_id))
        try:
            answer = await self._patiently(request.request, deadline)
        except Exception as error:
            failed = _failed(error, "ClassifyStream", request_id)
            return pb.ClassifyStreamResponse(id=request.id, error=failed)
        return pb.ClassifyStreamResponse(id=request.id, response=answer)

    async def _patiently(
        self, request: pb.ClassifyRequest, deadline: float | None
    ) -> pb.ClassifyResponse:
        """A stream waits where a call is refused: not reading on is its caller's back-pressure."""
        while True:
            try:
                return await self._classify(request, deadline)
            except Overloaded as full:
                await asyncio.sleep(min(full.retry_after_s, 1.0))

    async def _classify(
        self, request: pb.ClassifyRequest | None, deadline: float | None
    ) -> pb.ClassifyResponse:
        request = _decoded(request)
        model = self._engine.description
        views = check_request(request, model, self._limits)
        predictions = await self._engine.classify(request.texts, views, deadline)
        return converters.response(predictions, views, model)


async def _answer(context: "Context", method: str, work: Callable[[], Awaitable[M]]) -> M:
    """Do the work; turn what goes wrong into a status; write one line of log."""
    started = time.perf_counter()
    request_id = _request_id(context)
    try:
        message = await work()
    except asyncio.CancelledError:
        log.debug("call", method=method, code="CANCELLED", request_id=request_id)
        raise
    except Exception as error:
        failed = _failed(error, method, request_id)
        code = next(c for c in grpc.StatusCode if c.value[0] == failed.code)
        trailers = (
            (REQUEST_ID, request_id),
            ("grpc-status-details-bin", failed.SerializeToString()),
        )
        await context.abort(code, failed.message, trailers)
    context.set_trailing_metadata(((REQUEST_ID, request_id),))
    duration_ms = round((time.perf_counter() - started) * 1e3, 3)
    log.debug("call", method=method, code="OK", request_id=request_id, duration_ms=duration_ms)
    return message


def _failed(error: Exception, method: str, request_id: str) -> Status:
    """The status of an error, logged; never with the caller's text."""
    failed = converters.status(error, request_id)
    if isinstance(error, RealceError):
        fields = [v.field for v in error.violations] if isinstance(error, InvalidRequest) else None
        log.info(
            "call", method=method, code=type(error).__name__, request_id=request_id, fields=fields
        )
    else:
        # The message of an unknown error may quote what the caller sent: only its place is told.
        log.error(
            "fault",
            method=method,
            request_id=request_id,
            error=type(error).__name__,
            place=[f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)],
        )
    return failed


def _decoded(request: M | None) -> M:
    if request is None:
        raise _malformed()
    return request


def _malformed() -> InvalidRequest:
    return InvalidRequest(
        [Violation("request", "is not a valid message: its bytes, or the UTF-8 of a text, are bad")]
    )


def _deadline(context: "Context") -> float | None:
    """When the caller stops waiting, in seconds on the monotonic clock."""
    left_s = context.time_remaining()
    return None if left_s is None else time.monotonic() + left_s


def _request_id(context: "Context") -> str:
    """The caller's request id where it sent a decent one, else a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID:
            with contextlib.suppress(UnicodeDecodeError):
                text = value.decode("ascii") if isinstance(value, bytes) else value
                if 0 < len(text) <= MAX_REQUEST_ID and text.isprintable() and text.isascii():
                    return text
    return uuid.uuid4().hex
