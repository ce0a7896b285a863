"""What a real server tells Prometheus of the calls it gets."""

import asyncio
import shutil
import threading
import urllib.request

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from protos.realce.v1 import classifier_pb2 as pb
from service import server as server_module
from service.server import Server, StartError
from service.settings import EMBEDDED_BUNDLE

TEXTS = ["I loved it", "Não gostei nada, não recomendo"]


@pytest.fixture(params=["grpc", "native"])
async def server(settings, folder, request):
    change = {"http": "127.0.0.1:0", "bundle": folder, "transport": request.param}
    server = await Server.start(settings.model_copy(update=change))
    yield server
    await server.close()


def read(server: Server) -> str:
    assert server.exposition is not None
    with urllib.request.urlopen(server.exposition.url) as answer:
        return answer.read().decode()


async def shown(server: Server, name: str, **labels: str) -> float:
    """The sum of the samples of that name that have these labels."""
    families = text_string_to_metric_families(await asyncio.to_thread(read, server))
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == f"realce_{name}" and labels.items() <= sample.labels.items()
    )


async def eventually(server: Server, expected: float, name: str, **labels: str) -> None:
    async with asyncio.timeout(20):
        while await shown(server, name, **labels) != expected:
            await asyncio.sleep(0.01)


async def test_calls_are_counted_by_how_they_end(server, stub):
    await stub.Classify(pb.ClassifyRequest(texts=TEXTS))
    await stub.GetModel(pb.GetModelRequest())
    with pytest.raises(grpc.RpcError):
        await stub.Classify(pb.ClassifyRequest(texts=[" "]))
    with pytest.raises(grpc.RpcError):
        await stub.Classify(pb.ClassifyRequest(texts=TEXTS, model="other"))
    for method, code, calls in (
        ("Classify", "OK", 1),
        ("GetModel", "OK", 1),
        ("Classify", "INVALID_ARGUMENT", 1),
        ("Classify", "NOT_FOUND", 1),
    ):
        assert await shown(server, "calls_total", method=method, code=code) == calls
    assert await shown(server, "calls_total") == 4
    assert await shown(server, "call_seconds_count", method="Classify") == 3


async def test_a_call_is_told_by_phase_rows_and_tokens(server, stub):
    texts = ["good", "good good good good"]
    await stub.Classify(pb.ClassifyRequest(texts=texts))
    for phase in ("tokenize", "queue", "serialize"):
        assert await shown(server, "phase_seconds_count", phase=phase) == 1
    assert await shown(server, "phase_seconds_sum", phase="compute") > 0
    assert await shown(server, "batch_rows_sum") == await shown(server, "answered_rows_total") == 2
    tokens = server._engine._tokenizer.encode_batch(texts, offsets=False)
    assert await shown(server, "tokens_total") == sum(len(one.input_ids) for one in tokens)


async def test_messages_of_a_stream_are_counted_one_by_one(server, stub):
    requests = [pb.ClassifyRequest(texts=texts) for texts in (TEXTS, [""], TEXTS)]
    messages = [pb.ClassifyStreamRequest(id=str(i), request=one) for i, one in enumerate(requests)]
    assert len([answer async for answer in stub.ClassifyStream(iter(messages))]) == 3
    assert await shown(server, "stream_messages_total", code="OK") == 2
    assert await shown(server, "stream_messages_total", code="INVALID_ARGUMENT") == 1
    await eventually(server, 1, "calls_total", method="ClassifyStream", code="OK")


async def test_a_stream_is_counted_once_however_it_ends(server, stub, monkeypatch):
    request = pb.ClassifyRequest(texts=["good " * 60] * 50, views=[pb.VIEW_ATTENTIONS])

    async def talk(*messages: pb.ClassifyStreamRequest):
        for message in messages:
            yield message
        await asyncio.sleep(20)  # and has more to say

    unread = stub.ClassifyStream(talk(pb.ClassifyStreamRequest(request=request)))
    await eventually(server, 1, "stream_messages_total", code="OK")
    unread.cancel()  # while the answer is being sent
    await eventually(server, 1, "calls_total", method="ClassifyStream", code="CANCELLED")
    late = stub.ClassifyStream(talk(), timeout=0.1)
    with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
        await anext(aiter(late))
    await eventually(server, 1, "calls_total", method="ClassifyStream", code="DEADLINE_EXCEEDED")
    assert await shown(server, "calls_total", method="ClassifyStream") == 2


async def test_what_waits_is_seen_and_what_was_given_up(server, stub, monkeypatch):
    monkeypatch.setattr(server_module, "SAMPLE_S", 0.01)
    backend, opened, entered = server._engine._backend, threading.Event(), threading.Semaphore(0)
    run, parallel = backend.run, backend.parallel

    def wait(*arguments):
        entered.release()
        assert opened.wait(20)
        return run(*arguments)

    monkeypatch.setattr(backend, "run", wait)
    monkeypatch.setattr(backend, "prompt", False)  # nothing is computed on the loop
    calls = []
    for _ in range(parallel):
        calls.append(stub.Classify(pb.ClassifyRequest(texts=["good"])))
        await asyncio.to_thread(entered.acquire)
    calls += [stub.Classify(pb.ClassifyRequest(texts=["good"])) for _ in range(8)]
    await eventually(server, parallel + 8, "calls_under_way")
    assert await shown(server, "queued_tokens") > 0
    calls[-1].cancel()
    await eventually(server, parallel + 7, "calls_under_way")
    opened.set()
    await asyncio.gather(*calls[:-1])
    await eventually(server, 0, "queued_tokens")
    assert await shown(server, "calls_total", code="CANCELLED") == 1
    assert await shown(server, "answered_rows_total") == parallel + 7


async def test_the_bundle_in_service_is_named_and_what_came_of_reloads(server):
    assert await shown(server, "serving", bundle="tiny", provider="CPUExecutionProvider") == 1
    assert 'realce_reloads_total{outcome="failed"} 0.0\n' in await asyncio.to_thread(read, server)
    folder = server.settings.bundle
    (folder / "manifest.json").unlink()
    server.reload()
    await server._reloading
    assert await shown(server, "reloads_total", outcome="failed") == 1
    assert await shown(server, "serving", bundle="tiny") == 1
    shutil.rmtree(folder)
    shutil.copytree(EMBEDDED_BUNDLE, folder)
    server.reload()
    await server._reloading
    assert await shown(server, "reloads_total", outcome="succeeded") == 1
    assert await shown(server, "serving", bundle="tiny") == 0
    assert await shown(server, "serving", bundle="realce-pt-en") == 1


async def test_a_server_that_drains_says_that_it_serves_nothing(server):
    assert await shown(server, "serving") == 1
    server._servicer._under_way.__enter__()  # a call that lasts
    closing = asyncio.create_task(server.close())
    await eventually(server, 0, "serving")
    server._servicer._under_way.__exit__(None, None, None)
    await closing


async def test_no_text_is_shown(server, stub):
    await stub.Classify(pb.ClassifyRequest(texts=["unmistakable"], views=[pb.VIEW_EVIDENCE]))
    assert "unmistakable" not in await asyncio.to_thread(read, server)


async def test_a_place_that_cannot_be_had_ends_the_start(settings, server):
    taken = server.exposition.url.removeprefix("http://").removesuffix("/metrics")
    reason = f"http={taken}: cannot listen there: Address already in use; try --http 127.0.0.1:0"
    with pytest.raises(StartError, match=reason):
        await Server.start(settings.model_copy(update={"http": taken}))
