"""The load generator, against channels made up, and against HTTP."""

import asyncio
import contextlib
import math

import grpc
import numpy as np
import pytest

from tests.benchmarks.http import HttpChannel, HttpError
from tests.benchmarks.load import Generator
from tests.benchmarks.requests import Request

REQUESTS = [Request(b"a", 1), Request(b"bb", 2)]


class Channel:
    """Answers each call after a while, and counts how many were under way at most."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.under_way, self.most_under_way = seconds, 0, 0

    def unary_unary(self, method: str):
        return lambda content, timeout: asyncio.create_task(self.answer(content, timeout))

    async def answer(self, content: bytes, timeout: float) -> bytes:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.sleep(self.seconds)
        except TimeoutError as error:
            raise HttpError(grpc.StatusCode.DEADLINE_EXCEEDED) from error
        finally:
            self.under_way -= 1
        return content * 3


async def test_closed_callers_wait_for_their_answers():
    channel = Channel()
    generator = Generator([channel], REQUESTS, None)
    await generator.closed(4, seconds=30, most=50, hang_up=lambda number: math.inf)
    assert channel.most_under_way == 4
    assert 50 <= len(generator.calls) < 54
    assert {(one.code, one.texts, one.answer_bytes) for one in generator.calls} == {
        ("OK", 1, 3),
        ("OK", 2, 6),
    }


async def test_closed_callers_can_be_told_to_stop():
    channel = Channel()
    generator = Generator([channel], REQUESTS, None)
    asyncio.get_running_loop().call_later(0.05, generator.stop)
    await generator.closed(2, seconds=30, most=1 << 40, hang_up=lambda number: math.inf)
    assert {one.code for one in generator.calls} == {"OK"}


async def test_open_callers_do_not_wait():
    channel = Channel(seconds=30)
    generator = Generator([channel], REQUESTS, 0.2)
    await generator.open(np.array([0.0, 0.01, 0.02]), np.full(3, np.inf))
    assert channel.most_under_way == 3
    assert [one.code for one in generator.calls] == ["DEADLINE_EXCEEDED"] * 3
    assert not any(one.told for one in generator.calls)


async def test_who_hangs_up_is_counted_so():
    generator = Generator([Channel(seconds=30)], REQUESTS, None)
    await generator.open(np.array([0.0, 0.0]), np.array([0.01, 0.02]))
    assert [one.code for one in generator.calls] == ["CANCELLED"] * 2


class Peer:
    """An HTTP server that says back what it is sent; "busy" is refused, "slow" never answered."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                body = await reader.readexactly(int(head.rpartition(b":")[2]))
                if body == b"slow":
                    await self.stopped.wait()
                    break
                status = b"503 Busy" if body == b"busy" else b"200 OK"
                writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body)))
                writer.write(body)
        writer.close()
        await writer.wait_closed()


async def test_http_answers_failures_and_deadlines():
    peer = Peer()
    server = await asyncio.start_server(peer, "127.0.0.1", 0)
    channel = HttpChannel(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await channel.channel_ready()
    call = channel.unary_unary("/any")
    assert await call(b"one", timeout=20) == b"one"
    assert await call(b"two", timeout=20) == b"two"
    with pytest.raises(HttpError, match="UNAVAILABLE"):
        await call(b"busy", timeout=20)
    with pytest.raises(HttpError, match="DEADLINE_EXCEEDED"):
        await call(b"slow", timeout=0.1)
    assert await call(b"three", timeout=20) == b"three"
    await channel.close(None)
    peer.stopped.set()
    server.close()
    await asyncio.sleep(0.1)  # for its side of the connections to end
