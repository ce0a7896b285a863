"""pygrpc-native as a server that takes in no more calls than the event loop comes to.

Its threads speak HTTP/2 outside of the interpreter and hand over as many calls as come. Where the
loop is the limit they would pile up there until all of them are too late.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pygrpc_native.aio
from pygrpc_native import EVENT_CALL

from service import converters
from service.call import PUSHBACK, STATUS
from service.errors import Overloaded
from service.servicer import SERVICE

RETRY_S = 1.0  # what waits then has been answered, or is too late
AT_ONCE = 4096  # events taken in while the interpreter is ours, which under load is seldom


class NativeServer(pygrpc_native.aio.Server):
    """Refuses calls of our service beyond `most_waiting` that the loop has not begun, on the thread
    that takes them in; `on_refused` is then called there with the method. Health and all else is
    always let in.

    What it overrides is the library's own business, whose version is pinned for it.
    """

    def __init__(
        self,
        options: Iterable[tuple[str, Any]],
        most_waiting: int,
        on_refused: Callable[[str], None],
    ) -> None:
        super().__init__(options=options)
        self._most_waiting, self._on_refused = most_waiting, on_refused
        self._handed = self._begun = 0  # each counted by one thread alone
        full = Overloaded(f"{most_waiting} calls wait to be looked at", RETRY_S)
        code, status = converters.status(full, request_id="")
        self._refusal = code.value[0], status.message, [(STATUS, status.SerializeToString())]

    def _dispatch(self) -> None:
        front, loop = self._front, self._loop
        assert front is not None
        assert loop is not None
        while (events := front.recv_batch_details(AT_ONCE)) is not None:
            admitted = [event for event in events if self._admit(event)]
            try:
                loop.call_soon_threadsafe(self._on_events, admitted)
            except RuntimeError:  # the loop is gone, and nobody has stopped us
                front.close()
                return

    def _admit(self, event: tuple[Any, ...]) -> bool:
        kind, call_id, number = event[:3]
        if kind != EVENT_CALL or not _is_ours(method := self._table[number][0]):
            return True
        if self._handed - self._begun < self._most_waiting:
            self._handed += 1
            return True
        assert self._front is not None
        self._front.fail(call_id, *self._refusal)
        self._on_refused(method.rpartition("/")[2])
        return False

    async def _run(self, call: Any, payload: bytes) -> None:
        self._begun += _is_ours(call.method)
        await super()._run(call, payload)

    def _fail(self, call: Any, context: Any, details: str | None) -> None:
        # The front keeps the key to itself, and would not end a call that has it.
        told = context.trailing_metadata()
        context.set_trailing_metadata([pair for pair in told if pair[0] != PUSHBACK])
        super()._fail(call, context, details)


def _is_ours(method: str) -> bool:
    return method.startswith(f"/{SERVICE}/")
