"""What those who check and those who watch are told."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.health import Health

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
NAMES = ["", "realce.v1.Classifier"]


@pytest.fixture
async def health() -> Health:
    return Health()


@pytest.fixture
async def stub(health: Health) -> AsyncIterator[health_pb2_grpc.HealthStub]:
    server = grpc.aio.server()
    health.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)
    await server.stop(None)


def asked(name: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=name)


@pytest.mark.parametrize("name", NAMES)
async def test_who_checks_and_who_watches_is_told_of_every_change(health, stub, name):
    await health.set(False)
    watch = stub.Watch(asked(name))
    for serving, status in ((None, NOT_SERVING), (True, SERVING), (False, NOT_SERVING)):
        if serving is not None:
            await health.set(serving)
        assert (await watch.read()).status == status
        assert (await stub.Check(asked(name))).status == status


async def test_a_service_that_is_not_there_has_no_health(health, stub):
    await health.set(True)
    with pytest.raises(grpc.RpcError) as failed:
        await stub.Check(asked("other"))
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("name", NAMES)
async def test_who_watches_is_told_the_last_before_the_end(health, stub, name):
    await health.set(True)
    watch = stub.Watch(asked(name))
    assert (await watch.read()).status == SERVING
    await health.set(False)
    health.end()
    late = stub.Watch(asked(name))
    for call in (watch, late):
        assert (await call.read()).status == NOT_SERVING
        assert await call.code() is grpc.StatusCode.UNAVAILABLE


def watching() -> list[asyncio.Task]:
    """What the library does for those who watch."""
    return [t for t in asyncio.all_tasks() if t.get_coro().__qualname__ == "HealthServicer.Watch"]


async def test_who_watches_no_longer_is_forgotten(health, stub):
    await health.set(True)
    watch = stub.Watch(asked(""))
    await watch.read()
    assert len(watching()) == 1
    watch.cancel()
    async with asyncio.timeout(20):
        while watching():
            await asyncio.sleep(0.005)
