"""grpc.health.v1: SERVING only while calls are answered."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio  # type: ignore[attr-defined]

from service.servicer import SERVICE


class Health:
    """The standard health service, for the whole server and for the classifier by name."""

    def __init__(self) -> None:
        self._servicer = aio.HealthServicer()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve Check and Watch."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, serving: bool) -> None:
        """Tell all who check or watch."""
        kind = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            await self._servicer.set(service, kind.SERVING if serving else kind.NOT_SERVING)
