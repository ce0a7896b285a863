"""The server as the operator sees it: a process that starts, says so, drains and ends."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.realce.v1 import classifier_pb2 as pb
from protos.realce.v1 import classifier_pb2_grpc as rpc
from service.server import Server
from tests.signals import hangups

Status = health_pb2.HealthCheckResponse
GRACE_S = 15
REALCE = [sys.executable, "-m", "service"]


@contextlib.contextmanager
def served(bundle: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A serving process and its address."""
    flags = ["--grpc", "127.0.0.1:0", "--http", "", "--device", "cpu", "--grace-s", str(GRACE_S)]
    command = [*REALCE, "serve", "--bundle", str(bundle), *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            yield process, json.loads(process.stderr.readline())["address"]
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_the_process_though_callers_hold_on(tiny_bundle, number):
    with served(tiny_bundle) as (process, address), grpc.insecure_channel(address) as channel:
        stub, health = rpc.ClassifierStub(channel), health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="realce.v1.Classifier"))
        assert next(watch).status == Status.SERVING
        idle = stub.ClassifyStream(endless())
        assert next(idle).response.predictions[0].label in ("negative", "positive")
        big = pb.ClassifyRequest(texts=["I loved every minute of it"] * 1000)
        under_way = [stub.Classify.future(big) for _ in range(4)]
        under_way[0].result()  # the others are computing or waiting
        started = time.monotonic()
        process.send_signal(number)
        assert next(watch).status == Status.NOT_SERVING
        for call in (watch, idle):
            with pytest.raises(grpc.RpcError) as ended:
                list(call)
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        for call in under_way:
            # Answered whole, or refused whole where the signal came before the call was read.
            error = call.exception()
            assert error is None or error.code() is grpc.StatusCode.UNAVAILABLE
            assert error is not None or len(call.result().predictions) == 1000
        assert process.wait(GRACE_S) == 0
        assert time.monotonic() - started < GRACE_S


def test_a_signal_to_reload_while_it_starts_is_heard_once_it_serves(tiny_bundle):
    place = ["--grpc", "127.0.0.1:0", "--http", ""]
    command = [*REALCE, "serve", "--bundle", str(tiny_bundle), *place]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            with hangups(process.pid):
                assert json.loads(process.stderr.readline())["event"] == "serving"
            assert json.loads(process.stderr.readline())["event"] == "reloaded"
            assert process.poll() is None
        finally:
            process.kill()


async def test_a_signal_to_reload_is_not_heard_while_it_drains(settings):
    server = await Server.start(settings)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = rpc.ClassifierStub(channel).ClassifyStream()  # and its caller holds on
        await call.write(pb.ClassifyStreamRequest(request=pb.ClassifyRequest(texts=["good"])))
        await call.read()
        engine, closing = server._engine, asyncio.ensure_future(server.close())
        await asyncio.sleep(0)
        server.reload()
        await closing
    assert server._engine is engine
    assert not engine.ready


def endless() -> Iterator[pb.ClassifyStreamRequest]:
    """One message, then a caller that neither sends nor hangs up."""
    yield pb.ClassifyStreamRequest(request=pb.ClassifyRequest(texts=["good"]))
    time.sleep(2 * GRACE_S)


def test_watchers_see_the_warm_up_end(settings, monkeypatch):
    """Health is answered from before the warm-up, and is SERVING only after it."""
    from service.engine import Engine

    warm, begin = Engine.start, asyncio.Event()

    async def held(engine: Engine) -> None:
        await begin.wait()
        await warm(engine)

    async def check() -> None:
        monkeypatch.setattr(Engine, "start", held)
        ports: list[int] = []
        bind = Server._bind

        def told(server: Server) -> None:
            bind(server)
            ports.append(server.port)

        monkeypatch.setattr(Server, "_bind", told)
        starting = asyncio.ensure_future(Server.start(settings))
        while not ports:
            await asyncio.sleep(0.01)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
            health, stub = health_pb2_grpc.HealthStub(channel), rpc.ClassifierStub(channel)
            request = health_pb2.HealthCheckRequest(service="realce.v1.Classifier")
            watch = health.Watch(request, wait_for_ready=True)
            assert (await watch.read()).status == Status.NOT_SERVING
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == 2
            with pytest.raises(grpc.RpcError) as failed:
                await stub.Classify(pb.ClassifyRequest(texts=["good"]))
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            begin.set()
            assert (await watch.read()).status == Status.SERVING
            assert (await stub.Classify(pb.ClassifyRequest(texts=["good"]))).predictions
            watch.cancel()
        await (await starting).close()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("flags", "environment", "reason"),
    [
        (["--max-batch-tokens", "32"], {}, "--max-batch-tokens=32 cannot hold one text of this"),
        (
            [],
            {"REALCE_MAX_BATCH_TOKENS": "32"},
            "REALCE_MAX_BATCH_TOKENS=32 cannot hold one text of this bundle, which reads up to 64",
        ),
        (
            ["--max-queue-tokens", "100"],
            {"REALCE_MAX_BATCH_TOKENS": "900"},
            "REALCE_MAX_BATCH_TOKENS=900 exceeds --max-queue-tokens=100",
        ),
        (
            ["--max-request-bytes", "100"],
            {},
            "--max-text-bytes=262144 (the default) exceeds --max-request-bytes=100",
        ),
        ([], {"REALCE_GRACE": "3"}, "REALCE_GRACE: no such setting; "),
        ([], {"REALCE_GRACE_S": "soon"}, "REALCE_GRACE_S=soon: input should be a valid number"),
        (["--grace-s", "nan"], {}, "--grace-s=nan: input should be "),
    ],
)
def test_settings_that_cannot_be_end_in_one_line_and_code_2(
    tiny_bundle, flags, environment, reason
):
    place = ["--grpc", "127.0.0.1:0", "--http", ""]
    command = [*REALCE, "serve", "--bundle", str(tiny_bundle), *place, *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | environment
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"realce: {reason}")
    assert done.stderr.count("\n") == 1


def test_a_port_in_use_ends_in_code_2_and_the_first_server_serves_on(tiny_bundle):
    with served(tiny_bundle) as (_, address):
        command = [*REALCE, "serve", "--bundle", str(tiny_bundle), "--grpc", address]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2
        assert f"realce: --grpc={address}: cannot listen there" in second.stderr
        assert "Traceback" not in second.stderr
        with grpc.insecure_channel(address) as channel:
            answer = rpc.ClassifierStub(channel).Classify(pb.ClassifyRequest(texts=["good"]))
            assert answer.model_name == "tiny"


async def test_offsets_hold_for_every_kind_of_character(server):
    texts = [
        "gostei 👩‍👩‍👧 muito",  # joined emoji
        "cafe\u0301 ruim",  # an accent of its own
        "🇧🇷🇵🇹 good",  # flags, two code points each
        "👍🏽 ok ❤️",  # skin tone, variation selector
        "ﬁne\u00a0day",  # a ligature, a space that does not break
    ]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        request = pb.ClassifyRequest(texts=texts, views=[pb.VIEW_CONTRIBUTIONS])
        response = await rpc.ClassifierStub(channel).Classify(request)
    import regex

    for text, one in zip(texts, response.predictions, strict=True):
        ends = {0, *(match.end() for match in regex.finditer(r"\X", text))}
        assert one.tokens
        for token in one.tokens:
            assert token.text == text[token.start : token.end]
            assert {token.start, token.end} <= ends
        covered = {i for token in one.tokens for i in range(token.start, token.end)}
        assert covered == {i for i, character in enumerate(text) if not character.isspace()}


async def test_a_hundred_thousand_real_texts_are_refused_with_the_limit(server):
    """Some 10 MB: more than a request may hold, and still answered in words of ours."""
    texts = [
        "I loved every minute of this film, and would gladly see it again with each of my friends."
    ] * 100_000
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = rpc.ClassifierStub(channel)
        with pytest.raises(grpc.RpcError) as failed:
            await stub.Classify(pb.ClassifyRequest(texts=texts))
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert failed.value.details().endswith(f"bytes, the limit is {8 << 20}")
        assert (await stub.Classify(pb.ClassifyRequest(texts=["good"]))).predictions
