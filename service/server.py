"""The server's life: bind, load, warm up, serve, reload, drain."""

import asyncio
import contextlib
import ctypes
import gc
import signal
import sys
import time
from typing import Self

import structlog
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from model.bundle import Bundle, BundleError, read_bundle
from service.engine import Engine
from service.exposition import Exposition
from service.health import Health
from service.metrics import Metrics
from service.ort_backend import OrtBackend
from service.room import Room
from service.servicer import SERVICE, ClassifierServicer
from service.settings import Settings, flag
from service.transport import give_up, make_server
from service.validation import Limits

SAMPLE_S = 1.0  # between looks at what waits, for the metrics

log = structlog.get_logger("realce.server")


class StartError(RuntimeError):
    """The server cannot start; the message says what to change."""


class Server:
    """One bundle served on one address.

    `await Server.start(settings)` returns once callers are answered; `port` is then the real one,
    and `exposition`, where the settings want one, shows its `metrics`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.port = 0
        self._health = Health()
        self._engine: Engine | None = None
        self._servicer: ClassifierServicer | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._leaving: set[Engine] = set()  # that others have taken the place of, not idle yet
        self._room = Room(settings.max_held_bytes)
        self.metrics = Metrics()
        self.exposition: Exposition | None = None
        self._sampling: asyncio.TimerHandle | None = None
        self._closing = False
        self._server = make_server(settings, self.metrics.unseen)

    @classmethod
    async def start(cls, settings: Settings) -> Self:
        """Bind, load, warm up. Health answers NOT_SERVING until the end of it.

        Raises `StartError`, and `DeviceError` or `TransportError` where those cannot be used.
        """
        server = cls(settings)
        try:
            await server._start()
        except BaseException:
            await give_up(server._server, settings)
            if server._engine is not None:
                server._engine.close()
            await server._close_metrics()
            raise
        return server

    async def _start(self) -> None:
        started = time.perf_counter()
        self._bind()
        if self.settings.http:
            self.exposition = expose(self.settings, self.metrics.registry)
        self._engine = engine = self._prepare(*self._load())
        await self._open(engine)
        await engine.start()
        freeze_heap()
        await self._serve(True)
        self._sample()
        log.info(
            "serving",
            address=f"{self.settings.grpc.rpartition(':')[0]}:{self.port}",
            metrics=self.exposition.url if self.exposition else None,
            transport=self.settings.transport,
            **_told(engine),
            start_s=round(time.perf_counter() - started, 3),
        )

    def reload(self) -> None:
        """Put the bundle that is in the folder now in place of the one in service.

        A call is answered by the one it began with. If the new one cannot be served, that is
        logged and the old one stays. Asked again before the end of it, it is done once more; once
        the server is closing, nothing is.
        """
        if self._closing:
            return
        self._reloading = asyncio.ensure_future(self._reload(self._reloading))

    async def _reload(self, before: "asyncio.Task[None] | None") -> None:
        if before is not None:
            await before
        assert self._servicer is not None
        assert self._engine is not None
        started, leaving = time.perf_counter(), None
        try:
            leaving = self._prepare(*await asyncio.to_thread(self._load))
            await leaving.start()
        except Exception as error:  # whatever it is, there is a bundle that can be served
            self.metrics.reload("failed")
            log.error("reload_failed", error=type(error).__name__, detail=str(error)[:500])
        else:
            leaving, self._engine = self._engine, leaving
            self._servicer.engine = self._engine
            self.metrics.reload("succeeded")
            await self._serve(True)
            reload_s = round(time.perf_counter() - started, 3)
            log.info("reloaded", **_told(self._engine), reload_s=reload_s)
            self._leaving.add(leaving)
            await leaving.wait_idle()
        if leaving is not None:
            self._leaving.discard(leaving)
            leaving.close()
            await leaving.wait_closed()
            leaving = None
        freeze_heap()
        await asyncio.to_thread(trim_heap)

    def _bind(self) -> None:
        try:
            self.port = self._server.add_insecure_port(self.settings.grpc)
        except RuntimeError as error:
            reason = "the port is in use or the address is not of this machine"
            raise cannot_listen(self.settings, "grpc", reason) from error

    def _load(self) -> tuple[Bundle, OrtBackend]:
        settings = self.settings
        bundle = load_bundle(settings)
        backend = OrtBackend(
            bundle,
            device=settings.device,
            threads=settings.threads,
            graphs=settings.cuda_graphs,
            max_batch_tokens=settings.max_batch_tokens,
        )
        return bundle, backend

    def _prepare(self, bundle: Bundle, backend: OrtBackend) -> Engine:
        settings = self.settings
        return Engine(
            bundle,
            backend,
            max_batch_tokens=settings.max_batch_tokens,
            max_queue_tokens=settings.max_queue_tokens,
            max_answer_bytes=settings.max_answer_bytes,
            room=self._room,
            metrics=self.metrics,
            hang_s=settings.hang_s,
            on_failure=self._backend_gone,
        )

    async def _open(self, engine: Engine) -> None:
        settings, server = self.settings, self._server
        limits = Limits(
            settings.max_texts,
            settings.max_text_bytes,
            settings.max_answer_bytes,
            settings.max_request_bytes,
            settings.max_queue_tokens,
        )
        self._servicer = ClassifierServicer(engine, limits, self.metrics)
        self._servicer.add_to(server)
        self._health.add_to(server)
        if settings.reflection:
            names = (SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        await self._serve(False)
        await server.start()

    async def _serve(self, serving: bool) -> None:
        """Tell who asks for health, and who reads metrics."""
        assert self._engine is not None
        self.metrics.serve(self._engine.description if serving else None)
        await self._health.set(serving)

    def _sample(self) -> None:
        """Look at what waits, now and again."""
        assert self._engine is not None
        assert self._servicer is not None
        self.metrics.queued_tokens.set(self._engine.queued_tokens)
        self.metrics.held_bytes.set(self._room.held)
        self.metrics.calls_under_way.set(self._servicer.calls)
        self._sampling = asyncio.get_running_loop().call_later(SAMPLE_S, self._sample)

    async def _close_metrics(self) -> None:
        if self._sampling is not None:
            self._sampling.cancel()
        if self.exposition is not None:
            await asyncio.to_thread(self.exposition.close)

    def _backend_gone(self) -> None:
        assert self._engine is not None
        # It may be that of an engine no longer, or not yet, in service.
        self._backend_task = asyncio.ensure_future(self._serve(self._engine.ready))

    async def close(self) -> None:
        """Turn NOT_SERVING, refuse new calls, finish those under way within `grace_s`, stop."""
        started, grace_s = time.perf_counter(), self.settings.grace_s
        assert self._engine is not None
        assert self._servicer is not None
        self._closing = True
        if self._reloading is not None:
            self._reloading.cancel()
        log.info("draining", grace_s=grace_s)
        await self._serve(False)
        self._servicer.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._servicer.wait_idle(), grace_s)
        self._health.end()
        await self._server.stop(max(grace_s - (time.perf_counter() - started), 0.0))
        for engine in (self._engine, *self._leaving):
            engine.close()
        await self._close_metrics()
        log.info("stopped", drain_s=round(time.perf_counter() - started, 3))


def load_bundle(settings: Settings) -> Bundle:
    """The bundle that the settings name. Raises `StartError` where they cannot serve it."""
    try:
        bundle = read_bundle(settings.bundle)
    except BundleError as error:
        raise StartError(f"{error} ({settings.given('bundle')})") from error
    if settings.max_batch_tokens < bundle.manifest.max_tokens:
        raise StartError(
            f"{settings.given('max_batch_tokens')} cannot hold one text of this bundle, "
            f"which reads up to {bundle.manifest.max_tokens} tokens"
        )
    return bundle


def expose(settings: Settings, registry: CollectorRegistry) -> Exposition:
    """The metrics where the settings want them. Raises `StartError`."""
    try:
        return Exposition(settings.http, registry)
    except (OSError, UnicodeError) as error:
        raise cannot_listen(settings, "http", error) from error


def cannot_listen(settings: Settings, name: str, reason: object) -> StartError:
    """What to tell whose address cannot be had."""
    reason = getattr(reason, "strerror", None) or reason
    hint = f"{flag(name)} 127.0.0.1:0"
    return StartError(f"{settings.given(name)}: cannot listen there: {reason}; try {hint}")


def freeze_heap() -> None:
    """Spare the garbage collector what is there now and will stay: it would look through it again
    and again."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def trim_heap() -> None:
    """Give freed memory back to the system, of which glibc keeps that of each thread that loads."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _told(engine: Engine) -> dict[str, object]:
    about = engine.description
    return {
        "bundle": f"{about.name} {about.version}",
        "fingerprint": about.fingerprint[:12],
        "provider": about.provider,
        "threads": engine.parallel,
    }


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain; at SIGHUP reload. Raises as `start` does."""
    loop, stopping, asked = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, asked.set)  # while it starts
    try:
        server = await Server.start(settings)
        loop.add_signal_handler(signal.SIGHUP, server.reload)
        if asked.is_set():
            server.reload()
        await stopping.wait()
        await server.close()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with contextlib.suppress(ValueError):
                loop.remove_signal_handler(number)
