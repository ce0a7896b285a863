"""What pygrpc-native leaves to us: calls that the loop is too busy for."""

import asyncio
import threading
import time
from collections import Counter

import grpc
import pytest

from protos.realce.v1 import classifier_pb2 as pb
from protos.realce.v1 import classifier_pb2_grpc as rpc
from service.server import Server


@pytest.fixture
async def server(settings):
    change = {"transport": "native", "max_waiting_calls": 16}
    server = await Server.start(settings.model_copy(update=change))
    yield server
    await server.close()


def send(server: Server, calls: int, timeout: float) -> Counter[str]:
    """How so many calls end that are sent at once, from a thread of its own."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        classify, request = rpc.ClassifierStub(channel).Classify, pb.ClassifyRequest(texts=["good"])
        futures = [classify.future(request, timeout=timeout) for _ in range(calls)]
        return Counter(future.code().name for future in futures)


def counted(server: Server, code: str) -> float:
    labels = {"method": "Classify", "code": code}
    return server.metrics.registry.get_sample_value("realce_calls_total", labels) or 0.0


async def send_to_a_busy_loop(server: Server, calls: int, timeout: float, busy_s: float):
    sending = asyncio.get_running_loop().run_in_executor(None, send, server, calls, timeout)
    time.sleep(busy_s)  # the loop comes to nothing meanwhile
    return await sending


async def test_calls_that_end_before_the_loop_comes_to_them_leave_their_places(server):
    for _ in range(3):  # more than may wait in all
        ended = await send_to_a_busy_loop(server, 8, timeout=0.1, busy_s=0.5)
        assert ended == {"DEADLINE_EXCEEDED": 8}
    assert await asyncio.to_thread(send, server, 8, 5) == {"OK": 8}
    assert not server._server._calls
    assert counted(server, "DEADLINE_EXCEEDED") == 24
    assert counted(server, "OK") == 8


async def test_what_is_beyond_those_that_may_wait_is_refused_while_the_loop_is_busy(server):
    ended = await send_to_a_busy_loop(server, 40, timeout=5, busy_s=0.5)
    assert ended == {"OK": 16, "RESOURCE_EXHAUSTED": 24}
    assert counted(server, "RESOURCE_EXHAUSTED") == 24


async def test_a_call_has_the_time_that_its_caller_gave_it_however_late_the_loop_is(
    server, monkeypatch
):
    left = []

    async def classify(texts, request, deadline, *_):
        left.append(deadline - time.monotonic())
        return []

    monkeypatch.setattr(server._engine, "classify", classify)
    assert await send_to_a_busy_loop(server, 1, timeout=5, busy_s=0.5) == {"OK": 1}
    assert 0 < left[0] < 4.9


async def test_calls_are_taken_in_though_counting_them_fails(server):
    def fail(*_):
        raise OSError("no space left")

    server._server._on_unseen = fail
    ended = await send_to_a_busy_loop(server, 40, timeout=5, busy_s=0.5)
    assert ended == {"OK": 16, "RESOURCE_EXHAUSTED": 24}
    assert await asyncio.to_thread(send, server, 8, 5) == {"OK": 8}
    assert any(one.name == "pygrpc-native-dispatch" for one in threading.enumerate())
