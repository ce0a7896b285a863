"""One call: its id, its deadline, how it ends, and its one line of log."""

import asyncio
import contextlib
import random
import time
import traceback
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc
import structlog
from google.rpc.status_pb2 import Status

from service import converters
from service.errors import DeadlineExceeded, InvalidRequest, Overloaded, RealceError
from service.logs import Tally
from service.metrics import Metrics

REQUEST_ID, STATUS = "x-request-id", "grpc-status-details-bin"
PUSHBACK = "grpc-retry-pushback-ms"  # gRPC's own clients wait that long before they retry
MAX_REQUEST_ID = 64
EARLY_S = 0.01  # that a library's timer ends a call before its deadline
NEVER_S = 1e9  # left until a deadline, to who has none, in some servers

log = structlog.get_logger("realce.call")

T = TypeVar("T")
if TYPE_CHECKING:  # the library's classes take no parameters at run time
    Context = grpc.aio.ServicerContext[Any, Any]


class Call:
    """A call under way."""

    __slots__ = (
        "_context",
        "_ended",
        "_method",
        "_metrics",
        "_refused",
        "_started",
        "deadline",
        "errors",
        "request_id",
        "rows",
    )

    def __init__(self, method: str, context: "Context", metrics: Metrics, refused: Tally) -> None:
        self._method, self._context = method, context
        self._metrics, self._refused = metrics, refused
        self._started, self._ended = time.monotonic(), False
        left_s = context.time_remaining()
        never = left_s is None or left_s >= NEVER_S
        self.deadline = None if never else self._started + left_s
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

    @property
    def late(self) -> bool:
        """Has its deadline passed?"""
        return is_late(self.deadline)

    def end_abandoned(self) -> None:
        """The caller is gone, or its deadline has passed."""
        self.end("DEADLINE_EXCEEDED" if self.late else "CANCELLED")

    def end(self, code: str, error: Exception | None = None) -> None:
        """Count the call and write its line: what succeeded or was given up at debug level, what
        failed as warning; what was refused for lack of room or time comes in masses, and is told by
        a line a second. A call ends once: a caller may go while it is told why."""
        if self._ended:
            return
        self._ended = True
        seconds = time.monotonic() - self._started
        self._metrics.call(self._method, code, seconds)
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
            duration_ms=round(seconds * 1e3, 3),
            rows=self.rows,
            **fields,
        )


def is_late(deadline: float | None) -> bool:
    """Has a deadline of `time.monotonic` passed, by a timer that may be a little early?"""
    return deadline is not None and time.monotonic() >= deadline - EARLY_S


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
