"""What the server makes of its settings, and whom it tells when a device is lost."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.realce.v1 import classifier_pb2 as pb
from protos.realce.v1 import classifier_pb2_grpc as rpc
from service.backend import BackendGone
from service.engine import Engine
from service.ort_backend import OrtBackend
from service.server import Server, StartError

SERVING = health_pb2.HealthCheckResponse.SERVING


async def health(server: Server) -> Any:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest())).status


async def until(server: Server, status: Any) -> None:
    async with asyncio.timeout(20):
        while await health(server) != status:
            await asyncio.sleep(0.005)


async def test_engine_and_backend_get_what_the_operator_chose(settings, monkeypatch):
    given: dict[str, Any] = {}
    backends: list[int] = []
    engine, backend = Engine.__init__, OrtBackend.__init__

    def note_engine(self: Engine, *parts: Any, **options: Any) -> None:
        given.update(options)
        engine(self, *parts, **options)

    def note_backend(self: OrtBackend, *parts: Any, **options: Any) -> None:
        given.update(options)
        backends.append(options["max_batch_tokens"])
        backend(self, *parts, **options)

    monkeypatch.setattr(Engine, "__init__", note_engine)
    monkeypatch.setattr(OrtBackend, "__init__", note_backend)
    chosen = {
        "threads": 3,
        "max_batch_tokens": 777,
        "max_queue_tokens": 8_888,
        "max_answer_bytes": 99_999,
        "max_held_bytes": 111_111,
        "hang_s": 12.5,
        "cuda_graphs": False,
    }
    server = await Server.start(settings.model_copy(update=chosen))
    assert given.pop("room").most == chosen.pop("max_held_bytes")
    assert given.pop("graphs") is chosen.pop("cuda_graphs")
    assert {name: given[name] for name in chosen} == chosen
    assert given["device"] == "cpu"
    assert backends == [777]
    await server.close()


@pytest.mark.parametrize("transport", ["grpc", "native"])
@pytest.mark.parametrize("fault", ["http", "bundle"])
async def test_a_start_that_fails_lets_go_of_the_port(settings, transport, fault):
    with socket.create_server(("127.0.0.1", 0)) as other:
        faults = {"http": f"127.0.0.1:{other.getsockname()[1]}", "bundle": Path("/nowhere")}
        with socket.create_server(("127.0.0.1", 0)) as free:
            place = free.getsockname()
        change = {"grpc": f"127.0.0.1:{place[1]}", "transport": transport, fault: faults[fault]}
        with pytest.raises(StartError):
            await Server.start(settings.model_copy(update=change))
        with socket.create_server(place):
            pass


def lose(server: Server) -> None:
    """From now on the device of the bundle in service is gone."""
    assert server._engine is not None
    backend = server._engine._backend

    def gone(*_: Any) -> None:
        raise BackendGone("unplugged")

    backend.run = gone  # type: ignore[method-assign]


async def ask(server: Server) -> Any:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        return await rpc.ClassifierStub(channel).Classify(pb.ClassifyRequest(texts=["a film"]))


async def test_a_reload_brings_back_a_server_that_had_lost_its_device(server: Server):
    lose(server)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await ask(server)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert failed.value.details() == "the backend is gone"
    await until(server, health_pb2.HealthCheckResponse.NOT_SERVING)
    server.reload()
    await until(server, SERVING)
    assert (await ask(server)).model_name == "tiny"


async def test_a_device_lost_by_a_bundle_no_longer_in_service_stops_nobody(server: Server):
    before = server._engine
    assert before is not None
    server.reload()
    assert server._reloading is not None
    await server._reloading
    assert server._engine is not before
    before._fail()
    await server._backend_task
    assert await health(server) == SERVING
    assert (await ask(server)).model_name == "tiny"
