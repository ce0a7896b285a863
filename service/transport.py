"""Who speaks HTTP/2 for us: gRPC's own library, or one that does it outside of the interpreter."""

import contextlib
import importlib.util
import tempfile
from collections.abc import Callable
from typing import Any

import grpc

from service.settings import Settings

MOST = 2**31 - 1  # that gRPC takes: bytes of a message; milliseconds, and then it is for ever


class TransportError(RuntimeError):
    """There is no such transport here; the message says how to get it."""


def check_transport(settings: Settings) -> None:
    """Raise `TransportError` where the transport that the settings name cannot be had."""
    if settings.transport == "grpc":
        return
    if importlib.util.find_spec("pygrpc_native") is None:
        raise TransportError(
            f"{settings.given('transport')}: pygrpc-native is missing; "
            "install the extra 'native', in a checkout by pip install -e '.[native]'"
        )
    try:
        tempfile.gettempdir()  # where the socket of its second server lies
    except FileNotFoundError as error:
        raise TransportError(
            f"{settings.given('transport')}: {error.strerror}; mount /tmp or set TMPDIR"
        ) from error


def make_server(settings: Settings, on_unseen: Callable[[str, str], None]) -> grpc.aio.Server:
    """A server that has no methods and listens nowhere yet; `on_unseen` is called, on any thread,
    with method and status of a call that it ended by itself, where it knows. Raises
    `TransportError`.
    """
    check_transport(settings)
    options: list[tuple[str, Any]] = [
        # Unless asked for: a second server would start unnoticed.
        ("grpc.so_reuseport", int(settings.reuse_port)),
        # Up to twice the limit the servicer refuses by itself, in words of its own.
        ("grpc.max_receive_message_length", min(2 * settings.max_request_bytes, MOST)),
        # Answers are bounded before they are computed.
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", round(settings.keepalive_s * 1e3)),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # Calls that the loop has not come to: where it is the limit they would pile up until all
        # of them are too late. The library refuses them at no cost to the loop.
        ("grpc.server.max_pending_requests", settings.max_waiting_calls // 2),
        ("grpc.server.max_pending_requests_hard_limit", settings.max_waiting_calls),
    ]
    if settings.transport == "native":
        from service.native import NativeServer

        return NativeServer(options, settings.max_waiting_calls, on_unseen)
    # Who has a connection would never see a pod that came later. Calls under way end on the old
    # one, however long a stream takes.
    age_ms = round(settings.connection_age_s * 1e3) or MOST
    options.append(("grpc.max_connection_age_ms", age_ms))
    return grpc.aio.server(options=options)


async def give_up(server: grpc.aio.Server, settings: Settings) -> None:
    """Stop a server whose start has failed, however far it came, and let go of its port."""
    if settings.transport == "grpc":  # it keeps the port of a server that never began
        with contextlib.suppress(Exception):  # it had begun, or has no port
            await server.start()
    await server.stop(None)
