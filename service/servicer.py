"""The gRPC methods: convert, call the engine, convert."""

import asyncio
import contextlib
import random
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status

from protos.realce.v1 import classifier_pb2 as pb
from service import converters
from service.engine import Engine
from service.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RealceError,
    Unavailable,
    Violation,
)
from service.logs import Tally
from service.room import Hold
from service.validation import Limits, check_model, check_request

SERVICE = "realce.v1.Classifier"
REQUEST_ID, STATUS = "x-request-id", "grpc-status-details-bin"
PUSHBACK = "grpc-retry-pushback-ms"  # gRPC's own clients wait that long before they retry
STREAM_WINDOW = 8  # messages of one stream under way at a time
MAX_REQUEST_ID = 64
STOPPING = "the server is stopping; send what was not answered to another"

log = structlog.get_logger("realce.call")

M = TypeVar("M", bound=Message)
T = TypeVar("T")
if TYPE_CHECKING:  # the library's classes take no parameters at run time
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.GenericRpcHandler[Any, Any]
    Answers = asyncio.Queue["asyncio.Task[bytes] | None"]


def decoder(kind: type[M], max_bytes: int) -> Callable[[bytes], M | InvalidRequest]:
    """A deserialiser that gives, for what is no message of this kind, the error to answer with.

    Left to the library, invalid UTF-8 would be an unknown error and one too many bytes an
    exhausted resource, which clients retry.
    """

    def decode(content: bytes) -> M | InvalidRequest:
        if len(content) > max_bytes:
            reason = f"{len(content)} bytes, the limit is {max_bytes}"
            return InvalidRequest([Violation("request", reason)])
        try:
            return kind.FromString(content)
        except DecodeError:
            reason = f"is no valid {kind.DESCRIPTOR.name}: its bytes, or the UTF-8 of a text, are"
            return InvalidRequest([Violation("request", f"{reason} malformed")])

    return decode


class ClassifierServicer:
    """Serves an engine as `realce.v1.Classifier`; another may take its place at any time."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine = engine
        self._limits = limits
        self._draining = False
        self._readers: set[asyncio.Task[None]] = set()
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._refused = Tally("refused")

    def handler(self) -> "Handler":
        """The methods with our own deserialisers, for `grpc.aio.Server`. They give bytes: a message
        that waits to be sent would be held twice."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        most = self._limits.max_request_bytes
        methods = {
            "Classify": unary(self.classify, decoder(pb.ClassifyRequest, most)),
            "ClassifyStream": stream(self.classify_stream, decoder(pb.ClassifyStreamRequest, most)),
            "GetModel": unary(self.get_model, decoder(pb.GetModelRequest, most)),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def drain(self) -> None:
        """Refuse new calls and stop reading from streams; what was read is answered."""
        self._draining = True
        self._refused.tell()
        for reader in self._readers:
            reader.cancel()

    async def wait_idle(self) -> None:
        """Wait until no call is under way."""
        await self._idle.wait()

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        """Around a call, for `wait_idle`."""
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def classify(
        self, request: pb.ClassifyRequest | InvalidRequest, context: "Context"
    ) -> bytes:
        """See the protocol."""
        call, hold = Call("Classify", context, self._refused), Hold(self.engine.room)
        if not isinstance(request, InvalidRequest):
            call.rows = len(request.texts)
            if request.views:  # its answer takes room until it is sent
                context.add_done_callback(lambda _: hold.release())  # type: ignore[arg-type]
        if self._draining:
            await call.abort(Unavailable(STOPPING))
        message = pb.ClassifyResponse()
        with self._under_way():
            await call.answer(self._classify(request, call.deadline, hold, message))
        return message.SerializeToString()

    async def get_model(
        self, request: pb.GetModelRequest | InvalidRequest, context: "Context"
    ) -> bytes:
        """See the protocol."""
        call = Call("GetModel", context, self._refused)
        return (await call.answer(self._describe(request))).SerializeToString()

    async def classify_stream(
        self,
        requests: AsyncIterator[pb.ClassifyStreamRequest | InvalidRequest],
        context: "Context",
    ) -> AsyncIterator[bytes]:
        """See the protocol. Reading stops while `STREAM_WINDOW` messages are under way."""
        call = Call("ClassifyStream", context, self._refused)
        if self._draining:
            await call.abort(Unavailable(STOPPING))
        under_way: dict[asyncio.Task[bytes], Hold] = {}
        read: Answers = asyncio.Queue()
        room = asyncio.Semaphore(STREAM_WINDOW - 1)

        async def read_on() -> None:
            before = asyncio.Event()
            before.set()
            async for request in requests:
                hold, queued = Hold(self.engine.room), asyncio.Event()
                answer = self._stream_answer(request, call, hold, before, queued)
                task, before = asyncio.create_task(answer), queued
                under_way[task] = hold
                read.put_nowait(task)
                await room.acquire()

        reader = asyncio.create_task(read_on())
        reader.add_done_callback(lambda _: read.put_nowait(None))
        self._readers.add(reader)
        try:
            with self._under_way():
                while (task := await read.get()) is not None:
                    yield await task
                    under_way.pop(task).release()
                    room.release()
            if reader.cancelled():  # by `drain`: its caller has more to send
                await call.abort(Unavailable(STOPPING))
            await reader
            call.end("OK")
        except asyncio.CancelledError:
            call.end_abandoned()
            raise
        finally:
            self._readers.discard(reader)
            reader.cancel()
            for unfinished, hold in under_way.items():
                unfinished.cancel()
                hold.release()

    async def _stream_answer(
        self,
        request: pb.ClassifyStreamRequest | InvalidRequest,
        call: "Call",
        hold: Hold,
        before: asyncio.Event,
        queued: asyncio.Event,
    ) -> bytes:
        """The answer to a message, or what is wrong with it. It is queued once the message before
        it is: what comes later could else hold the room that an earlier one waits for."""
        await before.wait()
        try:
            if isinstance(request, InvalidRequest):
                return _failed(call, "", request)
            call.rows += len(request.request.texts)
            message = pb.ClassifyStreamResponse(id=request.id)
            work = (request.request, call.deadline, hold, message.response, queued.set)
            try:
                await self._patiently(*work)
            except Exception as error:
                return _failed(call, request.id, error)
        finally:
            queued.set()
        return message.SerializeToString()

    async def _patiently(
        self,
        request: pb.ClassifyRequest,
        deadline: float | None,
        hold: Hold,
        message: pb.ClassifyResponse,
        on_queued: Callable[[], None],
    ) -> None:
        """A stream waits where a call is refused: not reading on is its caller's back-pressure."""
        while True:
            try:
                return await self._classify(request, deadline, hold, message, on_queued)
            except Overloaded as full:
                await asyncio.sleep(min(full.retry_after_s, 1.0))

    async def _classify(
        self,
        request: pb.ClassifyRequest | InvalidRequest,
        deadline: float | None,
        hold: Hold,
        message: pb.ClassifyResponse,
        on_queued: Callable[[], None] | None = None,
    ) -> None:
        """Write the answer into `message`, in place: those with attention are large."""
        if isinstance(request, InvalidRequest):
            raise request
        engine = self.engine
        model = engine.description
        views = check_request(request, model, self._limits)
        predictions = await engine.classify(request.texts, views, deadline, hold, on_queued)
        converters.response(predictions, views, model, message, abstain=request.abstain)

    async def _describe(self, request: pb.GetModelRequest | InvalidRequest) -> pb.GetModelResponse:
        if isinstance(request, InvalidRequest):
            raise request
        model = self.engine.description
        check_model(request.model, model)
        return pb.GetModelResponse(model=converters.model(model, self._limits))


class Call:
    """One call: its id, its deadline, how it ends, and its one line of log."""

    __slots__ = (
        "_context",
        "_method",
        "_refused",
        "_started",
        "deadline",
        "errors",
        "request_id",
        "rows",
    )

    def __init__(self, method: str, context: "Context", refused: Tally) -> None:
        self._method, self._context, self._refused = method, context, refused
        self._started = time.monotonic()
        left_s = context.time_remaining()
        self.deadline = None if left_s is None else self._started + left_s
        self.request_id = _request_id(context)
        self.rows = self.errors = 0
        context.set_trailing_metadata(((REQUEST_ID, self.request_id),))

    async def answer(self, work: Awaitable[T]) -> T:
        """The outcome of `work`; what goes wrong in it becomes the status of the call."""
        try:
            message = await work
        except asyncio.CancelledError:
            self.end_abandoned()
            raise
        except Exception as error:
            await self.abort(error)
        self.end("OK")
        return message

    async def abort(self, error: Exception) -> NoReturn:
        """End the call with the status of an error; raises what the library ends calls by."""
        code, failed = self.failed(error)
        self.end(code.name, error)
        trailers = [(REQUEST_ID, self.request_id), (STATUS, failed.SerializeToString())]
        if isinstance(error, Overloaded):
            trailers.append((PUSHBACK, str(max(1, round(error.retry_after_s * 1e3)))))
        await self._context.abort(code, failed.message, tuple(trailers))

    def failed(self, error: Exception) -> tuple[grpc.StatusCode, Status]:
        """The status of an error, counted; a fault of ours is logged with its place.

        The message of an unknown error may quote what the caller sent, so it is not told.
        """
        self.errors += 1
        if not isinstance(error, RealceError):
            frames = traceback.extract_tb(error.__traceback__)
            log.error(
                "fault",
                request_id=self.request_id,
                method=self._method,
                error=type(error).__name__,
                place=[f"{frame.filename}:{frame.lineno}" for frame in frames],
            )
        return converters.status(error, self.request_id)

    def end_abandoned(self) -> None:
        """The caller is gone, or its deadline has passed."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        self.end("DEADLINE_EXCEEDED" if late else "CANCELLED")

    def end(self, code: str, error: Exception | None = None) -> None:
        """Write the line: what succeeded or was given up at debug level, what failed as warning;
        what was refused for lack of room or time is only counted, for it comes in masses."""
        fields: dict[str, Any] = {}
        refused = isinstance(error, (Overloaded, DeadlineExceeded))
        if refused:
            self._refused.add(code)
        if isinstance(error, InvalidRequest):
            fields["fields"] = [violation.field for violation in error.violations]
        if self._method == "ClassifyStream":
            fields["errors"] = self.errors
        write = log.debug if error is None or refused else log.warning
        write(
            "call",
            request_id=self.request_id,
            method=self._method,
            code=code,
            duration_ms=round((time.monotonic() - self._started) * 1e3, 3),
            rows=self.rows,
            **fields,
        )


def _failed(call: "Call", number: str, error: Exception) -> bytes:
    return pb.ClassifyStreamResponse(id=number, error=call.failed(error)[1]).SerializeToString()


def _request_id(context: "Context") -> str:
    """The caller's request id where it sent a decent one, else a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID:
            with contextlib.suppress(UnicodeDecodeError):
                text = value.decode("ascii") if isinstance(value, bytes) else value
                if 0 < len(text) <= MAX_REQUEST_ID and text.isprintable() and text.isascii():
                    return text
    # No secret; to ask the system for one would let go of the interpreter, with others waiting.
    return f"{random.getrandbits(128):032x}"
