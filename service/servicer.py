"""The gRPC methods: convert, call the engine, convert."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from protos.realce.v1 import classifier_pb2 as pb
from service import converters
from service.call import Call
from service.engine import Engine
from service.errors import InvalidRequest, Overloaded, Unavailable, Violation
from service.logs import Tally
from service.metrics import Metrics
from service.room import Hold
from service.stream import Stream
from service.underway import UnderWay
from service.validation import Limits, check_model, check_request

SERVICE = "realce.v1.Classifier"
STOPPING = "the server is stopping; send what was not answered to another"

M = TypeVar("M", bound=Message)
if TYPE_CHECKING:  # the library's classes take no parameters at run time
    from service.call import Context


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

    def __init__(self, engine: Engine, limits: Limits, metrics: Metrics | None = None) -> None:
        self.engine = engine
        self._limits = limits
        self._metrics = metrics or Metrics()
        self._draining = False
        self._streams: set[Stream[pb.ClassifyStreamRequest | InvalidRequest]] = set()
        self._under_way = UnderWay()
        self._refused = Tally("refused")

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve the methods with our own deserialisers. They give bytes: a message that waits to be
        sent would be held twice."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        most = self._limits.max_request_bytes
        methods = {
            "Classify": unary(self.classify, decoder(pb.ClassifyRequest, most)),
            "ClassifyStream": stream(self.classify_stream, decoder(pb.ClassifyStreamRequest, most)),
            "GetModel": unary(self.get_model, decoder(pb.GetModelRequest, most)),
        }
        server.add_registered_method_handlers(SERVICE, methods)  # type: ignore[attr-defined]

    def drain(self) -> None:
        """Refuse new calls and stop reading from streams; what was read is answered."""
        self._draining = True
        self._refused.tell()
        for stream in self._streams:
            stream.stop_reading()

    @property
    def calls(self) -> int:
        """Calls under way."""
        return self._under_way.calls

    async def wait_idle(self) -> None:
        """Wait until no call is under way."""
        await self._under_way.wait_idle()

    async def classify(
        self, request: pb.ClassifyRequest | InvalidRequest, context: "Context"
    ) -> bytes:
        """See the protocol."""
        call, hold = self._call("Classify", context), Hold(self.engine.room)
        if not isinstance(request, InvalidRequest):
            call.rows = len(request.texts)
            if request.views:  # its answer takes room until it is sent
                context.add_done_callback(lambda _: hold.release())  # type: ignore[arg-type]
        if self._draining:
            await call.abort(Unavailable(STOPPING))
        message = pb.ClassifyResponse()
        with self._under_way:
            return await call.answer(self._classify(request, call.deadline, hold, message, message))

    async def get_model(
        self, request: pb.GetModelRequest | InvalidRequest, context: "Context"
    ) -> bytes:
        """See the protocol."""
        call = self._call("GetModel", context)
        return (await call.answer(self._describe(request))).SerializeToString()

    async def classify_stream(
        self,
        requests: AsyncIterator[pb.ClassifyStreamRequest | InvalidRequest],
        context: "Context",
    ) -> AsyncIterator[bytes]:
        """See the protocol."""
        call = self._call("ClassifyStream", context)
        if self._draining:
            await call.abort(Unavailable(STOPPING))
        answer = functools.partial(self._stream_answer, call)
        stream = Stream(requests, answer, lambda: self.engine.room)
        self._streams.add(stream)
        try:
            with self._under_way:
                async for content in stream:
                    yield content
            if await stream.cut_short():
                await call.abort(Unavailable(STOPPING))
            # The library ends the reading of a late call as if its caller had sent all.
            call.end("DEADLINE_EXCEEDED" if call.late else "OK")
        except (asyncio.CancelledError, GeneratorExit):  # the latter while an answer is sent
            call.end_abandoned()
            raise
        except Exception as error:  # the abort of above, or what reading raised
            call.end("UNKNOWN", error)
            raise
        finally:
            self._streams.discard(stream)
            stream.close()

    async def _stream_answer(
        self,
        call: Call,
        request: pb.ClassifyStreamRequest | InvalidRequest,
        hold: Hold,
        on_queued: Callable[[], None],
    ) -> bytes:
        """The answer to a message, or what is wrong with it."""
        if isinstance(request, InvalidRequest):
            return self._failed(call, "", request)
        call.rows += len(request.request.texts)
        message = pb.ClassifyStreamResponse(id=request.id)
        into = message.response
        try:
            content = await self._patiently(
                request.request, call.deadline, hold, message, into, on_queued
            )
        except Exception as error:
            return self._failed(call, request.id, error)
        self._metrics.message("OK")
        return content

    async def _patiently(
        self,
        request: pb.ClassifyRequest,
        deadline: float | None,
        hold: Hold,
        message: pb.ClassifyStreamResponse,
        into: pb.ClassifyResponse,
        on_queued: Callable[[], None],
    ) -> bytes:
        """A stream waits where a call is refused: not reading on is its caller's back-pressure."""
        while True:
            try:
                return await self._classify(request, deadline, hold, message, into, on_queued)
            except Overloaded as full:
                await asyncio.sleep(min(full.retry_after_s, 1.0))

    async def _classify(
        self,
        request: pb.ClassifyRequest | InvalidRequest,
        deadline: float | None,
        hold: Hold,
        message: Message,
        into: pb.ClassifyResponse,
        on_queued: Callable[[], None] | None = None,
    ) -> bytes:
        """`message` as bytes, with the answer written `into` its place: those with attention are
        too large to be made twice."""
        if isinstance(request, InvalidRequest):
            raise request
        engine = self.engine
        model = engine.description
        views = check_request(request, model, self._limits)
        predictions = await engine.classify(request.texts, views, deadline, hold, on_queued)
        with self._metrics.serialize_s.time():
            converters.response(predictions, views, model, into, abstain=request.abstain)
            del predictions
            return message.SerializeToString()

    async def _describe(self, request: pb.GetModelRequest | InvalidRequest) -> pb.GetModelResponse:
        if isinstance(request, InvalidRequest):
            raise request
        model = self.engine.description
        check_model(request.model, model)
        return pb.GetModelResponse(model=converters.model(model, self._limits))

    def _call(self, method: str, context: "Context") -> Call:
        return Call(method, context, self._metrics, self._refused)

    def _failed(self, call: Call, number: str, error: Exception) -> bytes:
        code, failed = call.failed(error)
        self._metrics.message(code.name)
        return pb.ClassifyStreamResponse(id=number, error=failed).SerializeToString()
