"""The server's life: bind, warm up, serve, drain."""

import asyncio
import logging
import signal
import sys
import time
from typing import Self

import grpc
import structlog
from grpc_reflection.v1alpha import reflection

from model.bundle import BundleError, read_bundle
from service.engine import Engine
from service.health import Health
from service.ort_backend import OrtBackend
from service.servicer import SERVICE, ClassifierServicer
from service.settings import Settings
from service.validation import Limits

log = structlog.get_logger("realce.server")

MESSAGE_OVERHEAD = 1 << 20  # labels, tokens and framing around the tensors of an answer


class StartError(RuntimeError):
    """The server cannot start; the message says what to change."""


class Server:
    """One bundle served on one address.

    `await Server.start(settings)` returns once callers are answered; `port` is then the real one.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.port = 0
        self._health = Health()
        self._stopping = asyncio.Event()
        self._server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 0),  # or a second server would start unnoticed
                ("grpc.max_receive_message_length", settings.max_request_bytes),
                ("grpc.max_send_message_length", settings.max_answer_bytes + MESSAGE_OVERHEAD),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            )
        )
        self._engine: Engine | None = None

    @classmethod
    async def start(cls, settings: Settings) -> Self:
        """Load, bind, warm up. Health answers NOT_SERVING until the end of it."""
        started = time.perf_counter()
        server = cls(settings)
        try:
            bundle = read_bundle(settings.bundle)
        except BundleError as error:
            raise StartError(str(error)) from error
        if settings.max_batch_tokens < bundle.manifest.max_tokens:
            raise StartError(
                f"max_batch_tokens={settings.max_batch_tokens} cannot hold one text of this "
                f"bundle, which reads up to {bundle.manifest.max_tokens} tokens"
            )
        backend = OrtBackend(bundle.graph, device=settings.device, threads=settings.threads)
        engine = server._engine = Engine(
            bundle,
            backend,
            max_batch_tokens=settings.max_batch_tokens,
            max_queue_tokens=settings.max_queue_tokens,
            max_answer_bytes=settings.max_answer_bytes,
            on_failure=server._backend_gone,
        )
        limits = Limits(settings.max_texts, settings.max_text_bytes, settings.max_answer_bytes)
        server._server.add_generic_rpc_handlers((ClassifierServicer(engine, limits).handler(),))
        server._health.add_to(server._server)
        if settings.reflection:
            reflection.enable_server_reflection(
                (SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME), server._server
            )
        await server._health.set(False)
        server._bind()
        await server._server.start()
        await engine.start()
        await server._health.set(True)
        log.info(
            "serving",
            address=f"{settings.grpc.rpartition(':')[0]}:{server.port}",
            bundle=f"{bundle.manifest.name} {bundle.manifest.version}",
            fingerprint=bundle.fingerprint[:12],
            provider=backend.provider,
            threads=backend.parallel,
            start_s=round(time.perf_counter() - started, 3),
        )
        return server

    def _bind(self) -> None:
        address = self.settings.grpc
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise StartError(
                f"grpc={address}: cannot listen there; is the port in use? Try --grpc HOST:PORT"
            ) from error

    def _backend_gone(self) -> None:
        self._backend_task = asyncio.ensure_future(self._health.set(False))

    def stop(self) -> None:
        """Begin to drain; `run` then returns."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`, SIGTERM or SIGINT, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        await self._stopping.wait()
        await self.close()

    async def close(self) -> None:
        """Turn NOT_SERVING, refuse new calls, finish those under way within `grace_s`, stop."""
        log.info("draining", grace_s=self.settings.grace_s)
        await self._health.set(False)
        started = time.perf_counter()
        if self._engine is not None:
            await self._engine.drain(self.settings.grace_s)
        left_s = self.settings.grace_s - (time.perf_counter() - started)
        await self._server.stop(max(left_s, 0.0))
        if self._engine is not None:
            self._engine.close()
        log.info("stopped")


def configure_logs(level: str) -> None:
    """One JSON object a line on stderr. User text never gets here."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
