"""The container's health check, against a real server."""

import asyncio
import os
import sys
from pathlib import Path

from service.server import Server

SCRIPT = Path(__file__).parents[2] / "deploy" / "healthcheck.py"


async def check(port: int) -> int | None:
    environment = os.environ | {"REALCE_GRPC": f"0.0.0.0:{port}"}
    process = await asyncio.create_subprocess_exec(sys.executable, str(SCRIPT), env=environment)
    return await process.wait()


async def test_it_follows_the_server(server: Server):
    assert await check(server.port) == 0
    await server._health.set(False)
    assert await check(server.port) == 1


async def test_nobody_there_is_unhealthy():
    assert await check(1) == 1


async def test_a_proxy_is_not_asked(server: Server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert await check(server.port) == 0
