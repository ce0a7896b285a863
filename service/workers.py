"""Several servers on one port, each a process with a loop of its own.

One event loop answers some thousand calls a second whatever the device could do. The kernel shares
connections, not calls, among those who listen on a port (SO_REUSEPORT): many callers spread, and
one connection stays with one worker.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import Iterator
from pathlib import Path

import structlog

from service.exposition import registry_of
from service.ort_backend import cpu_quota, find_provider
from service.server import StartError, cannot_listen, expose, load_bundle
from service.settings import Settings
from service.transport import check_transport

PLACE = Path(__file__).absolute().parents[1]  # where `service` is imported from
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LAST_WORD_S = 5.0  # beyond its grace, until a worker that will not end is killed

log = structlog.get_logger("realce.workers")


async def run_workers(settings: Settings) -> int:
    """Serve with `settings.workers` processes until SIGTERM or SIGINT, then drain them all; at
    SIGHUP all reload.

    A worker that ends by itself takes the others with it, so that whoever started us starts us
    anew. Returns the exit code: 0 after a signal, else that of the worker, or 1 where that is no
    failure of its own. Raises as `Server.start` does.
    """
    # Each worker would tell it, and know no flags.
    check_transport(settings)
    find_provider(settings.device)
    load_bundle(settings)
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    with reserve(settings) as address, _metrics(settings) as (url, told):
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        environment = worker_settings(settings, address).environment()
        workers = [await _start(environment, told) for _ in range(settings.workers)]
        loop.add_signal_handler(signal.SIGHUP, _send, workers, signal.SIGHUP)
        log.info("workers", address=address, metrics=url, pids=[worker.pid for worker in workers])
        stop = asyncio.ensure_future(stopping.wait())
        ends = {asyncio.ensure_future(worker.wait()) for worker in workers}
        await asyncio.wait({stop, *ends}, return_when=asyncio.FIRST_COMPLETED)
        code = 0
        if not stop.done():
            ended = next(worker for worker in workers if worker.returncode is not None)
            code = max(1, ended.returncode or 0)  # a signal that ended it is below 0
            log.critical("worker_ended", pid=ended.pid, code=ended.returncode)
            stop.cancel()
        await _end(workers, settings.grace_s)
        return code


def worker_settings(settings: Settings, address: str) -> Settings:
    """The settings of one worker: the same, but for its address and its share of the CPUs. Its
    metrics are its parent's to show."""
    share = max(1, (settings.threads or cpu_quota()) // settings.workers)
    changed = {"grpc": address, "http": "", "workers": 1, "reuse_port": True, "threads": share}
    return settings.model_copy(update=changed)


@contextlib.contextmanager
def reserve(settings: Settings) -> Iterator[str]:
    """Hold the port for the workers, who alone listen on it; yields HOST:PORT."""
    host, _, port = settings.grpc.rpartition(":")
    with contextlib.ExitStack() as stack:
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM
            )[0]
            if not settings.reuse_port:
                with socket.socket(family, kind, protocol) as alone:
                    alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    alone.bind(place)  # fails where anybody listens, even one who would share
                    place = alone.getsockname()
            held = stack.enter_context(socket.socket(family, kind, protocol))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # A port lingers after a server that hung up first, and shared none.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(place)
        except (OSError, UnicodeError) as error:  # the latter of a name that no host can have
            raise cannot_listen(settings, "grpc", error) from error
        yield f"{host}:{held.getsockname()[1]}"


@contextlib.contextmanager
def _metrics(settings: Settings) -> Iterator[tuple[str | None, list[str]]]:
    """Where the sum of what the workers count is shown, and the flags that tell them to count."""
    if not settings.http:
        yield None, []
        return
    try:
        folder = tempfile.TemporaryDirectory(prefix="realce-metrics-")
    except OSError as error:
        raise StartError(
            f"{settings.given('workers')}: {error.strerror}, for their metrics; mount /tmp, set "
            "TMPDIR, or --http '' for none"
        ) from error
    with folder as name, contextlib.closing(expose(settings, registry_of(name))) as exposition:
        yield exposition.url, ["--count-in", name]


async def _start(environment: dict[str, str], flags: list[str]) -> Process:
    """A worker of this very package, whatever the folder that we were started in holds (-P)."""
    path = os.pathsep.join(filter(None, (str(PLACE), environment.get("PYTHONPATH"))))
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "service", "serve", *flags),
        env=environment | {"PYTHONPATH": path},
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )


def _end_with_parent() -> None:
    """In the child: drain when the parent has been killed, and let go of its port."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _send(workers: list[Process], number: signal.Signals) -> None:
    for worker in workers:
        if worker.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                # Its own `send_signal` would look whether it has ended, and so take its exit code
                # from who waits for it.
                os.kill(worker.pid, number)


async def _end(workers: list[Process], grace_s: float) -> None:
    _send(workers, signal.SIGTERM)
    ends = [asyncio.ensure_future(worker.wait()) for worker in workers]
    await asyncio.wait(ends, timeout=grace_s + LAST_WORD_S)
    _send(workers, signal.SIGKILL)
    await asyncio.wait(ends)
