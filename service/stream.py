"""One stream of messages: read ahead as far as there is room, answered in order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, Self, TypeVar

from service.room import Hold, Room

WINDOW = 8  # messages of one stream under way at a time

M = TypeVar("M")
# The answer to a message: what it takes of the room is in the hold; the function is called once
# nothing can refuse the message any more.
Answer = Callable[[M, Hold, Callable[[], None]], Awaitable[bytes]]


class Stream(Generic[M]):
    """The answers to `messages`, in their order; `async for` takes the next when the one before it
    has been sent. Reading stops while `WINDOW` messages are under way.
    """

    def __init__(
        self, messages: AsyncIterator[M], answer: Answer[M], room: Callable[[], Room]
    ) -> None:
        self._messages, self._answer, self._room_of = messages, answer, room
        self._under_way: dict[asyncio.Task[bytes], Hold] = {}
        self._sending: asyncio.Task[bytes] | None = None
        self._read: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        self._window = asyncio.Semaphore(WINDOW - 1)
        self._reader = asyncio.create_task(self._read_on())
        self._reader.add_done_callback(lambda _: self._read.put_nowait(None))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._sending is not None:
            self._under_way.pop(self._sending).release()
            self._window.release()
            self._sending = None
        task = await self._read.get()
        if task is None:
            raise StopAsyncIteration
        answer = await task
        self._sending = task
        return answer

    async def _read_on(self) -> None:
        before = asyncio.Event()
        before.set()
        async for message in self._messages:
            hold, queued = Hold(self._room_of()), asyncio.Event()
            task = asyncio.create_task(self._in_turn(message, hold, before, queued))
            before = queued
            self._under_way[task] = hold
            self._read.put_nowait(task)
            await self._window.acquire()

    async def _in_turn(
        self, message: M, hold: Hold, before: asyncio.Event, queued: asyncio.Event
    ) -> bytes:
        """The answer to a message, begun once the one before it is queued: what comes later could
        else hold the room that an earlier one waits for."""
        await before.wait()
        try:
            return await self._answer(message, hold, queued.set)
        finally:
            queued.set()

    def stop_reading(self) -> None:
        """Answer what was read, and no more."""
        self._reader.cancel()

    async def cut_short(self) -> bool:
        """After the last answer: was reading stopped while its caller had more to send? Raises what
        reading raised."""
        if self._reader.cancelled():
            return True
        await self._reader
        return False

    def close(self) -> None:
        """Give up what is under way, and its room."""
        self._reader.cancel()
        for task, hold in self._under_way.items():
            task.cancel()
            hold.release()
