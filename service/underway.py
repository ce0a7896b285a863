"""Calls under way: counted, so that one can wait until there are none."""

import asyncio
from types import TracebackType


class UnderWay:
    """`with` it around each call; `calls` are within, and `wait_idle` returns once none is. On the
    event loop only."""

    def __init__(self) -> None:
        self.calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        self.calls += 1
        self._idle.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        place: TracebackType | None,
    ) -> None:
        self.calls -= 1
        if not self.calls:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no call is under way."""
        await self._idle.wait()
