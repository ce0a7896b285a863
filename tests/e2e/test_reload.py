"""Another bundle takes the place of the one in service, or does not, and no caller is lost."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from model.bundle import read_bundle
from protos.realce.v1 import classifier_pb2 as pb
from protos.realce.v1 import classifier_pb2_grpc as rpc
from service.server import Server
from service.settings import EMBEDDED_BUNDLE
from tests.fakes import FakeBackend

EMBEDDED = read_bundle(EMBEDDED_BUNDLE).manifest.name


@pytest.fixture
async def server(settings, folder):
    server = await Server.start(settings.model_copy(update={"bundle": folder}))
    yield server
    await server.close()


def replace(folder: Path, bundle: Path = EMBEDDED_BUNDLE) -> None:
    shutil.rmtree(folder)
    shutil.copytree(bundle, folder)


async def name(stub: rpc.ClassifierStub) -> str:
    return (await stub.GetModel(pb.GetModelRequest())).model.name


async def test_calls_under_way_end_with_the_bundle_they_began_with_however_long_they_take(
    server, stub, folder
):
    server.settings = server.settings.model_copy(update={"grace_s": 0.01})  # is for its end alone
    run, held = server._engine._backend.run, FakeBackend()
    held.open.clear()

    def wait(*arguments):
        held.entered.release()
        assert held.open.wait(20)
        return run(*arguments)

    server._engine._backend.run = wait
    server._engine._backend.prompt = False  # or the loop, held, would hold the test as well
    under_way = asyncio.ensure_future(stub.Classify(pb.ClassifyRequest(texts=["good " * 60] * 9)))
    await asyncio.to_thread(held.entered.acquire)
    replace(folder)
    server.reload()
    async with asyncio.timeout(30):
        while await name(stub) != EMBEDDED:
            await asyncio.sleep(0.02)
    after = await stub.Classify(pb.ClassifyRequest(texts=["Adorei!"]))
    assert (after.model_name, after.predictions[0].label) == (EMBEDDED, "positive")
    assert not under_way.done()
    held.open.set()
    assert (await under_way).model_name == "tiny"
    await server._reloading


@pytest.mark.parametrize("fault", ["no folder", "an altered file", "a dead device"])
async def test_a_bundle_that_cannot_be_served_leaves_the_one_in_service(
    server, stub, folder, fault, capsys, monkeypatch
):
    if fault == "no folder":
        shutil.rmtree(folder)
    elif fault == "an altered file":
        (folder / "model.onnx").write_bytes(b"")
    else:
        replace(folder)

        def dead(*_):
            raise RuntimeError("no device")

        monkeypatch.setattr("service.ort_backend.OrtBackend.run", dead)
    server.reload()
    await server._reloading
    monkeypatch.undo()
    assert "reload_failed" in capsys.readouterr().out
    answer = await stub.Classify(pb.ClassifyRequest(texts=["I loved it"]))
    assert answer.model_name == "tiny"


@pytest.fixture
def busy_pool(server, monkeypatch):
    """From the start of the server on, threads that do not let go of what they ran."""
    held, to_thread = [], asyncio.to_thread

    def holding(*work):
        held.append(work)
        return to_thread(*work)

    monkeypatch.setattr(asyncio, "to_thread", holding)


@pytest.mark.usefixtures("busy_pool")
async def test_nothing_is_left_of_the_bundle_that_was_in_service(server, stub, folder):
    answered = await stub.Classify(pb.ClassifyRequest(texts=["I loved it"] * 20))
    assert answered.model_name == "tiny"
    engine, backend = (weakref.ref(one) for one in (server._engine, server._engine._backend))
    replace(folder)
    server.reload()
    await server._reloading
    assert await name(stub) == EMBEDDED
    assert (engine(), backend()) == (None, None)


async def test_nothing_is_left_of_a_bundle_that_could_not_be_served(
    server, stub, folder, monkeypatch
):
    prepare, prepared = server._prepare, []

    def noted(*parts):
        engine = prepare(*parts)
        prepared.extend((weakref.ref(engine), weakref.ref(engine._backend)))
        return engine

    def dead(*_):
        raise RuntimeError("no device")

    monkeypatch.setattr(server, "_prepare", noted)
    monkeypatch.setattr("service.ort_backend.OrtBackend.run", dead)
    replace(folder)
    server.reload()
    await server._reloading
    assert [one() for one in prepared] == [None, None]


async def test_asked_twice_it_reloads_twice_one_after_the_other(server, stub, folder):
    load, begun, most = server._load, 0, 0

    def counted():
        nonlocal begun, most
        begun, most = begun + 1, max(most, begun + 1)
        try:
            return load()
        finally:
            begun -= 1

    server._load = counted
    replace(folder)
    engines = [server._engine]
    server.reload()
    first = server._reloading
    server.reload()
    await first
    engines.append(server._engine)
    await server._reloading
    engines.append(server._engine)
    assert len(set(map(id, engines))) == 3
    assert most == 1
    assert await name(stub) == EMBEDDED


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_reloads_the_process_and_all_its_workers(folder, workers):
    flags = ["--grpc", "127.0.0.1:0", "--http", "", "--device", "cpu", "--workers", str(workers)]
    command = [sys.executable, "-m", "service", "serve", "--bundle", str(folder), *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            events = map(json.loads, process.stderr)
            serving = [next(e for e in events if e["event"] == "serving") for _ in range(workers)]
            assert {line["bundle"] for line in serving} == {"tiny 1"}
            replace(folder)
            process.send_signal(signal.SIGHUP)
            reloaded = [next(e for e in events if e["event"] == "reloaded") for _ in range(workers)]
            assert all(line["bundle"].startswith(EMBEDDED) for line in reloaded)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
