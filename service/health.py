"""grpc.health.v1: SERVING only while calls are answered."""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio  # type: ignore[attr-defined]

from service.servicer import SERVICE

LAST_WORD_S = 0.1  # for watchers to be told NOT_SERVING before their stream ends


class Health:
    """The standard health service, for the whole server and for the classifier by name."""

    def __init__(self) -> None:
        self._servicer = _Servicer()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve Check and Watch."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, serving: bool) -> None:
        """Tell all who check or watch."""
        kind = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            await self._servicer.set(service, kind.SERVING if serving else kind.NOT_SERVING)

    def end(self) -> None:
        """Let go of all who watch: they would hold a stopping server for its whole grace."""
        self._servicer.ended.set()


class _Servicer(aio.HealthServicer):  # type: ignore[misc]
    """The library's service, whose Watch would otherwise last as long as its caller likes."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - the protocol's name
        watch = asyncio.ensure_future(super().Watch(request, context))
        ended = asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait((watch, ended), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((watch,), timeout=LAST_WORD_S)
        finally:
            watch.cancel()
            ended.cancel()
            await asyncio.gather(watch, ended, return_exceptions=True)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
