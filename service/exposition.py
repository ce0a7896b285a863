"""Metrics over HTTP, of this process or of several together."""

import contextlib
import socket
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.multiprocess import MultiProcessCollector

POLL_S = 0.05  # between looks at whether to end, which a drain waits for


class Exposition:
    """A registry shown at http://HOST:PORT/metrics, on a thread of its own.

    `port` is the real one. Raises `OSError` or `UnicodeError` where nobody can listen there.
    """

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        host, _, port = address.rpartition(":")
        name, app = host.strip("[]"), make_wsgi_app(registry)
        family = socket.getaddrinfo(name, int(port), type=socket.SOCK_STREAM)[0][0]
        kind = type("Server", (ThreadingWSGIServer,), {"address_family": family})
        self._server: WSGIServer = make_server(name, int(port), app, kind, _Caller)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), daemon=True
        )
        self._thread.start()
        self.port: int = self._server.server_port
        self.url = f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Let go of the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Caller(WSGIRequestHandler):
    """A connection, which has a thread for as long as there is somebody who speaks."""

    timeout = 5.0

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, *_: Any) -> None:
        """A read is nothing to log."""


def registry_of(folder: str) -> CollectorRegistry:
    """What all processes that count in this folder have counted."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
    return registry
