"""pygrpc-native as a server that takes in no more calls than the event loop comes to.

Its threads speak HTTP/2 outside of the interpreter and hand over as many calls as come. Where the
loop is the limit they would pile up there until all of them are too late.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import pygrpc_native.aio
from pygrpc_native import EVENT_CALL

from service import converters
from service.call import PUSHBACK, STATUS, is_late
from service.errors import Overloaded
from service.servicer import SERVICE

RETRY_S = 1.0  # what waits then has been answered, or is too late
AT_ONCE = 4096  # events taken in while the interpreter is ours, which under load is seldom
LOOK_S = 0.01  # between looks at what has not been written yet


class NativeServer(pygrpc_native.aio.Server):
    """Refuses calls of our service beyond `most_waiting` that the loop has not come to, on the
    thread that takes them in; health and all else is always let in. `on_unseen` is called with
    method and status, on any thread, for calls that end before our service hears of them.

    What it overrides is the library's own business, whose version is pinned for it.
    """

    def __init__(
        self,
        options: Iterable[tuple[str, Any]],
        most_waiting: int,
        on_unseen: Callable[[str, str], None],
    ) -> None:
        super().__init__(options=options)
        self._front_args["metrics"] = True  # it tells which answers have been written
        self._most_waiting, self._on_unseen = most_waiting, on_unseen
        self._handed = self._taken = 0  # each counted by one thread alone
        full = Overloaded(f"{most_waiting} calls wait to be looked at", RETRY_S)
        code, status = converters.status(full, request_id="")
        self._refusal = code.value[0], status.message, [(STATUS, status.SerializeToString())]

    async def stop(self, grace: float | None) -> None:  # type: ignore[override]
        """See `grpc.aio.Server.stop`; answers that are still being written have the grace, too."""
        end = time.monotonic() + (grace or 0.0)
        # The front tells nobody by itself.
        while self._unwritten() and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        await super().stop(max(end - time.monotonic(), 0.0) if grace else grace)

    def _unwritten(self) -> int:
        told = self._front.metrics() if self._front is not None else None
        methods = told["methods"].values() if told else ()
        ended = (status["count"] for one in methods for status in one["status"].values())
        return int(sum(one["started"] for one in methods) - sum(ended))

    def _dispatch(self) -> None:
        """On a thread of its own: hand what comes to the loop, or refuse it."""
        front, loop = self._front, self._loop
        assert front is not None
        assert loop is not None
        while (events := front.recv_batch_details(AT_ONCE)) is not None:
            came = time.monotonic()
            admitted = [event for event in events if self._admit(event)]
            try:
                loop.call_soon_threadsafe(self._take, admitted, came)
            except RuntimeError:  # the loop is gone, and nobody has stopped us
                front.close()
                return

    def _admit(self, event: tuple[Any, ...]) -> bool:
        kind, call_id, number = event[:3]
        if kind != EVENT_CALL or not _is_ours(method := self._table[number][0]):
            return True
        if self._handed - self._taken < self._most_waiting:
            self._handed += 1
            return True
        assert self._front is not None
        self._front.fail(call_id, *self._refusal)
        with contextlib.suppress(Exception):  # nobody would take calls in any more
            self._on_unseen(_name(method), "RESOURCE_EXHAUSTED")
        return False

    def _take(self, events: list[tuple[Any, ...]], came: float) -> None:
        """On the loop: begin what came at that time."""
        waited = time.monotonic() - came
        calls = [event for event in events if event[0] == EVENT_CALL]
        self._taken += sum(_is_ours(self._table[number][0]) for _, _, number, *_ in calls)
        self._on_events([_after(waited, event) for event in events])
        for _, call_id, *_ in calls:
            if (call := self._calls.get(call_id)) is not None and call.task is not None:
                call.task.add_done_callback(functools.partial(self._forget, call))

    def _forget(self, call: Any, task: object) -> None:
        """A call has ended; one that was cancelled before its first step nobody has heard of."""
        if self._calls.pop(call.call_id, None) is not None and _is_ours(call.method):
            code = "DEADLINE_EXCEEDED" if is_late(call.deadline) else "CANCELLED"
            self._on_unseen(_name(call.method), code)

    def _fail(self, call: Any, context: Any, details: str | None) -> None:
        # The front keeps the key to itself, and would not end a call that has it.
        told = context.trailing_metadata()
        context.set_trailing_metadata([pair for pair in told if pair[0] != PUSHBACK])
        super()._fail(call, context, details)


def _after(waited: float, event: tuple[Any, ...]) -> tuple[Any, ...]:
    """An event whose call has so much less time left than when it came."""
    *same, details = event
    if details is None or details[2] is None:
        return event
    metadata, peer, left = details
    return (*same, (metadata, peer, left - waited))


def _is_ours(method: str) -> bool:
    return method.startswith(f"/{SERVICE}/")


def _name(method: str) -> str:
    return method.rpartition("/")[2]
