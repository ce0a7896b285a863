import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from service.room import Hold, Room
from service.stream import WINDOW, Stream


class Answers:
    """Answers each message with itself, once it is let go; each takes a byte of the room."""

    def __init__(self) -> None:
        self.room = Room(100)
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self.queue = asyncio.Event()
        self.queue.set()
        self.open = asyncio.Event()

    async def __call__(self, message: int, hold: Hold, on_queued: Callable[[], None]) -> bytes:
        self.begun.append(message)
        await self.queue.wait()
        hold.take(1)
        on_queued()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.append(message)
            raise
        return b"%d" % message

    def stream(self, messages: AsyncIterator[int]) -> Stream[int]:
        return Stream(messages, self, lambda: self.room)


@pytest.fixture
async def answers() -> Answers:
    return Answers()


async def numbers(count: int, asked: list[int] | None = None) -> AsyncIterator[int]:
    for number in range(count):
        if asked is not None:
            asked.append(number)
        yield number


async def settled() -> None:
    for _ in range(4 * WINDOW):
        await asyncio.sleep(0)


async def test_answers_come_in_order_and_hold_room_until_the_next_is_taken(answers):
    answers.open.set()
    stream, held = answers.stream(numbers(3)), []
    async for content in stream:
        held.append((content, answers.room.held))
    assert [content for content, _ in held] == [b"0", b"1", b"2"]
    assert held[-1] == (b"2", 1)
    assert answers.room.held == 0
    assert not await stream.cut_short()


async def test_reading_stops_while_a_window_is_under_way(answers):
    asked: list[int] = []
    stream = answers.stream(numbers(100, asked))
    await settled()
    assert asked == list(range(WINDOW))
    answers.open.set()
    await anext(stream)
    await settled()
    assert len(asked) == WINDOW  # the first is not sent yet
    await anext(stream)
    await settled()
    assert len(asked) == WINDOW + 1
    stream.close()


async def test_a_message_begins_once_the_one_before_it_is_queued(answers):
    answers.queue.clear()
    stream = answers.stream(numbers(3))
    await settled()
    assert answers.begun == [0]
    answers.queue.set()
    await settled()
    assert answers.begun == [0, 1, 2]
    stream.close()


async def test_what_was_read_is_answered_when_reading_is_stopped(answers):
    async def endless() -> AsyncIterator[int]:
        yield 0
        yield 1
        await asyncio.Event().wait()

    stream = answers.stream(endless())
    await settled()
    stream.stop_reading()
    answers.open.set()
    assert [content async for content in stream] == [b"0", b"1"]
    assert await stream.cut_short()


async def test_what_reading_raises_is_told_after_the_answers(answers):
    async def broken() -> AsyncIterator[int]:
        yield 0
        raise OSError("gone")

    answers.open.set()
    stream = answers.stream(broken())
    assert [content async for content in stream] == [b"0"]
    with pytest.raises(OSError, match="gone"):
        await stream.cut_short()


async def test_one_that_is_closed_gives_up_its_work_and_its_room(answers):
    stream = answers.stream(numbers(3))
    await settled()
    assert answers.room.held == 3
    stream.close()
    await settled()
    assert answers.cancelled == [0, 1, 2]
    assert answers.room.held == 0
