"""Calls over HTTP/1.1 that look like calls of grpc.aio, for peers that speak nothing else."""

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import Any

import grpc

PATH = "/inference"
RETRY_S = 0.1
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HttpError(grpc.RpcError):  # type: ignore[misc]
    """A call that failed, as a gRPC status."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__(code.name)
        self._code = code

    def code(self) -> grpc.StatusCode:
        """See grpc.Call."""
        return self._code

    def trailing_metadata(self) -> tuple[()]:
        """None."""
        return ()


class HttpChannel:
    """Connections to `http://HOST:PORT`, each kept for one call at a time."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.removeprefix("http://").rpartition(":")
        self._port = int(port)
        self._idle: list[Connection] = []

    async def channel_ready(self) -> None:
        """Wait until connections are taken."""
        while True:
            with contextlib.suppress(OSError):
                self._idle.append(await self._connect())
                return
            await asyncio.sleep(RETRY_S)

    def unary_unary(self, method: str) -> Callable[..., "asyncio.Task[bytes]"]:
        """A callable that posts; all methods have the one path."""

        def call(content: bytes, timeout: float) -> "asyncio.Task[bytes]":
            return asyncio.create_task(self._call(content, timeout))

        return call

    async def close(self, grace: Any) -> None:
        """Hang up."""
        for _, writer in self._idle:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _connect(self) -> Connection:
        return await asyncio.open_connection(self._host, self._port)

    async def _call(self, content: bytes, timeout_s: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                connection = self._idle.pop() if self._idle else await self._connect()
                try:
                    status, body = await self._post(*connection, content)
                except BaseException:  # also where the caller hangs up: the answer is not read
                    connection[1].close()
                    raise
                self._idle.append(connection)
        except TimeoutError as error:
            raise HttpError(grpc.StatusCode.DEADLINE_EXCEEDED) from error
        except (OSError, asyncio.IncompleteReadError) as error:
            raise HttpError(grpc.StatusCode.UNAVAILABLE) from error
        if status != 200:
            busy = status in (429, 503)
            raise HttpError(grpc.StatusCode.UNAVAILABLE if busy else grpc.StatusCode.UNKNOWN)
        return body

    async def _post(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes
    ) -> tuple[int, bytes]:
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        answer = await reader.readuntil(b"\r\n\r\n")
        found = LENGTH.search(answer)
        body = await reader.readexactly(int(found[1])) if found else b""
        return int(answer.split(b" ", 2)[1]), body
