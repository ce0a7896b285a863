"""Metrics over HTTP, of this process or of several together."""

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector


class Exposition:
    """A registry shown at http://HOST:PORT/metrics, on a thread of its own.

    `port` is the real one. Raises `OSError` or `UnicodeError` where nobody can listen there.
    """

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        host, _, port = address.rpartition(":")
        self._server, self._thread = start_http_server(int(port), host.strip("[]"), registry)
        self.port = self._server.server_port
        self.url = f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Let go of the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def registry_of(folder: str) -> CollectorRegistry:
    """What all processes that count in this folder have counted."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
    return registry
