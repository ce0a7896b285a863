"""A real server and stock stubs: what callers see."""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from protos.realce.v1 import classifier_pb2 as pb
from protos.realce.v1 import classifier_pb2_grpc as rpc
from service.answers import array
from service.client import AsyncClassifier
from service.errors import Overloaded
from service.server import Server, StartError
from service.servicer import ClassifierServicer
from service.settings import Settings

TEXTS = [
    "Adorei cada minuto deste filme",
    "I hated every minute of this film",
    "O final foi brilhante",
]
ALL_VIEWS = [view for view in pb.View.values() if view]
SERVING = health_pb2.HealthCheckResponse.SERVING
UNLIMITED = (("grpc.max_receive_message_length", -1),)
# No more of an answer on its way than the window that a connection begins with.
NARROW = (*UNLIMITED, ("grpc.http2.bdp_probe", 0))
# What pygrpc-native cannot do, or lets the one library do that stands behind it.
GRPC_ALONE = pytest.mark.parametrize("settings", ["grpc"], indirect=True)


@pytest.fixture(params=["grpc", "native"])
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    return settings.model_copy(update={"transport": request.param})


def violations(error: grpc.RpcError) -> list[tuple[str, str]]:
    status = rpc_status.from_call(error)
    bad = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(bad):
            return [(v.field, v.description) for v in bad.field_violations]
    return []


async def test_an_answer_without_views_holds_no_more_than_scores(stub, bundle):
    response = await stub.Classify(pb.ClassifyRequest(texts=TEXTS))
    assert [one.label for one in response.predictions] == ["positive", "negative", "positive"]
    for one in response.predictions:
        assert [score.label for score in one.scores] == list(bundle.manifest.labels)
        assert sum(score.probability for score in one.scores) == pytest.approx(1, abs=1e-6)
        assert one.probability == max(score.probability for score in one.scores)
        assert not one.tokens
        assert not one.HasField("evidence")
    assert not response.bias
    assert (response.model_name, response.model_version) == ("tiny", "1")


async def test_all_views_account_for_the_logits(stub, bundle):
    response = await stub.Classify(pb.ClassifyRequest(texts=TEXTS, views=ALL_VIEWS))
    config = bundle.manifest.config
    for text, one in zip(TEXTS, response.predictions, strict=True):
        size = len(one.tokens)
        logits = np.array([score.logit for score in one.scores])
        for tensor in (one.evidence, one.contributions):
            assert array(tensor).shape == (size, 2)
            assert np.abs(array(tensor).sum(axis=0) + response.bias - logits).max() <= 1e-4
        assert array(one.pooling_attention).shape == (config.heads, size)
        assert array(one.attentions).shape == (config.layers, config.heads, size, size)
        assert np.abs(array(one.attentions).sum(axis=-1) - 1).max() <= 1e-5
        assert all(token.text == text[token.start : token.end] for token in one.tokens)


async def test_attention_is_selected_by_layer_and_head_and_halved(stub):
    request = pb.ClassifyRequest(texts=TEXTS[:1], views=[pb.VIEW_ATTENTIONS])
    whole = array((await stub.Classify(request)).predictions[0].attentions)
    request.attention_selection.layers.append(1)
    request.attention_selection.heads.extend([3, 0])
    request.data_type = pb.DATA_TYPE_FLOAT16
    part = (await stub.Classify(request)).predictions[0].attentions
    assert part.data_type == pb.DATA_TYPE_FLOAT16
    assert len(part.data) == 2 * whole.shape[-1] ** 2 * 2
    np.testing.assert_allclose(array(part), whole[1:2, [3, 0]], atol=1e-3)


async def test_offsets_are_code_points_of_the_text_as_sent(stub):
    text = "👩‍👩‍👧 gostei 🇧🇷 café"
    request = pb.ClassifyRequest(texts=[text], views=[pb.VIEW_EVIDENCE])
    (one,) = (await stub.Classify(request)).predictions
    covered = {token.text for token in one.tokens}
    assert {"👩‍👩‍👧", "🇧🇷"} <= covered
    assert all(token.text == text[token.start : token.end] for token in one.tokens)


async def test_a_long_text_is_read_to_the_limit_and_says_so(stub, bundle):
    request = pb.ClassifyRequest(texts=["good " * 500], views=[pb.VIEW_POOLING_ATTENTION])
    (one,) = (await stub.Classify(request)).predictions
    assert one.truncated
    assert len(one.tokens) == bundle.manifest.max_tokens


BAD = [
    ({}, "texts", "0 texts; at least 1, at most 1024"),
    ({"texts": ["good", ""]}, "texts[1]", "is empty"),
    ({"texts": [" \t\n"]}, "texts[0]", "is blank"),
    ({"texts": ["x" * 1_000_000]}, "texts[0]", "1000000 bytes, the limit is 262144"),
    ({"texts": ["a"] * 100_000}, "texts", "100000 texts, the limit is 1024"),
    ({"texts": ["a"], "views": [99]}, "views[0]", "99 is no view; there are VIEW_EVIDENCE"),
    ({"texts": ["a"], "views": [0]}, "views[0]", "0 is no view"),
    ({"texts": ["a"], "data_type": 9}, "data_type", "9 is no data type"),
    (
        {"texts": ["a"], "views": [4], "attention_selection": {"layers": [0, 2]}},
        "attention_selection.layers[1]",
        "2, the limit is 1",
    ),
    (
        {"texts": ["a"], "views": [4], "attention_selection": {"heads": [4]}},
        "attention_selection.heads[0]",
        "4, the limit is 3",
    ),
    (
        {"texts": ["a"], "views": [4], "attention_selection": {"heads": [1, 1]}},
        "attention_selection.heads",
        "names one twice",
    ),
    (
        {"texts": ["a"], "views": [4], "attention_selection": {"layers": [0] * 70_000}},
        "attention_selection.layers",
        "70000 layers, the limit is 2",
    ),
    (
        {"texts": ["a"], "attention_selection": {"heads": [1]}},
        "attention_selection",
        "without VIEW_ATTENTIONS",
    ),
]


@pytest.mark.parametrize(("fields", "path", "reason"), BAD)
async def test_bad_calls_are_told_field_value_and_limit(stub, fields, path, reason):
    with pytest.raises(grpc.RpcError) as failed:
        await stub.Classify(pb.ClassifyRequest(**fields))
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [(field, reason in why) for field, why in violations(failed.value)] == [(path, True)]
    assert len((await stub.Classify(pb.ClassifyRequest(texts=TEXTS))).predictions) == 3


@pytest.mark.parametrize(
    "content", [b"\xff\xff", b"\x0a\x02\xff\xfe"], ids=["no message", "invalid UTF-8"]
)
async def test_bytes_that_are_no_message_are_the_callers_fault(channel, stub, content):
    call = channel.unary_unary("/realce.v1.Classifier/Classify")
    with pytest.raises(grpc.RpcError) as failed:
        await call(content)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violations(failed.value)[0][0] == "request"
    assert (await stub.Classify(pb.ClassifyRequest(texts=TEXTS))).predictions


async def test_an_unknown_model_is_not_found(stub):
    for call in (
        stub.Classify(pb.ClassifyRequest(texts=["a"], model="other")),
        stub.GetModel(pb.GetModelRequest(model="other")),
    ):
        with pytest.raises(grpc.RpcError, match=r"'other' is not in service; 'tiny' is") as failed:
            await call
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_attention_too_large_to_send_is_refused_before_inference(settings):
    server = await Server.start(settings.model_copy(update={"max_answer_bytes": 10_000}))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = rpc.ClassifierStub(channel)
        request = pb.ClassifyRequest(texts=["good " * 99], views=[pb.VIEW_ATTENTIONS])
        with pytest.raises(grpc.RpcError) as failed:
            await stub.Classify(request)
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        ((field, why),) = violations(failed.value)
        assert field == "views"
        assert f"{64 * 64 * 8 * 4} bytes, the limit is 10000" in why
        assert server.metrics.registry.get_sample_value("realce_batch_rows_sum") == 0
    await server.close()


async def test_who_is_refused_for_lack_of_room_is_told_when_to_come_back(server, stub, monkeypatch):
    async def full(*_):
        raise Overloaded("3 of 3 tokens wait", 0.25)

    monkeypatch.setattr(server._engine, "classify", full)
    with pytest.raises(grpc.RpcError, match="3 of 3 tokens wait") as refused:
        await stub.Classify(pb.ClassifyRequest(texts=TEXTS))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = error_details_pb2.RetryInfo()
    assert any(one.Unpack(retry) for one in rpc_status.from_call(refused.value).details)
    assert retry.retry_delay.ToTimedelta() == timedelta(seconds=0.25)


async def test_an_expired_deadline_fails_alone(stub):
    with pytest.raises(grpc.RpcError) as failed:
        await stub.Classify(pb.ClassifyRequest(texts=TEXTS), timeout=1e-6)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await stub.Classify(pb.ClassifyRequest(texts=TEXTS), timeout=5)).predictions


async def test_a_cancelled_call_leaves_its_neighbours_alone(stub):
    calls = [stub.Classify(pb.ClassifyRequest(texts=TEXTS * 20)) for _ in range(12)]
    for call in calls[::3]:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    for i, result in enumerate(results):
        if i % 3 == 0:
            assert isinstance(result, asyncio.CancelledError)
        else:
            assert len(result.predictions) == 60


async def test_the_request_id_comes_back(stub):
    call = stub.Classify(pb.ClassifyRequest(texts=["a"]), metadata=(("x-request-id", "mine-7"),))
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine-7"
    call = stub.Classify(pb.ClassifyRequest(texts=[""]), metadata=(("x-request-id", "x" * 200),))
    assert dict(await call.trailing_metadata())["x-request-id"] != "x" * 200


async def test_the_model_describes_itself(stub, bundle, settings):
    model = (await stub.GetModel(pb.GetModelRequest())).model
    assert (model.name, list(model.labels)) == ("tiny", ["negative", "positive"])
    assert model.fingerprint == bundle.fingerprint
    assert (model.layers, model.heads, model.max_tokens) == (2, 4, 64)
    assert list(model.views) == ALL_VIEWS
    assert model.limits.max_texts == settings.max_texts
    assert model.provider == "CPUExecutionProvider"


async def test_a_stream_answers_in_order_and_survives_a_bad_message(stub):
    async def messages():
        for i in range(40):
            texts = [" "] if i == 7 else TEXTS[: 1 + i % 3]
            yield pb.ClassifyStreamRequest(id=str(i), request=pb.ClassifyRequest(texts=texts))

    answers = [answer async for answer in stub.ClassifyStream(messages())]
    assert [answer.id for answer in answers] == [str(i) for i in range(40)]
    assert answers[7].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert answers[7].error.message == "texts[0]: is blank"
    counts = [len(answer.response.predictions) for answer in answers]
    assert counts == [0 if i == 7 else 1 + i % 3 for i in range(40)]


async def test_the_client_gives_arrays(server):
    async with AsyncClassifier(f"127.0.0.1:{server.port}") as client:
        (answer,) = await client.classify(["Nada mal"], views=["contributions"])
        total = answer.views["contributions"].sum(axis=0) + list(answer.bias.values())
        np.testing.assert_allclose(total, list(answer.logits.values()), atol=1e-4)
        with pytest.raises(ValueError, match="'colour' is no view"):
            await client.classify(["a"], views=["colour"])


async def test_health_follows_the_server(settings):
    server = await Server.start(settings)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "realce.v1.Classifier"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert (await health.Check(request)).status == SERVING
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        closing = asyncio.create_task(server.close())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        await closing


async def test_a_dead_backend_turns_health_and_answers_unavailable(server, channel, stub):
    from service.backend import BackendGone

    def gone(*_):
        raise BackendGone("pulled out")

    server._engine._backend.run = gone
    with pytest.raises(grpc.RpcError) as failed:
        await stub.Classify(pb.ClassifyRequest(texts=["a"]))
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    health = health_pb2_grpc.HealthStub(channel)
    answer = await health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_faults_of_ours_tell_the_request_id_and_no_more(server, stub, capsys, monkeypatch):
    def broken(*_, **__):
        raise ValueError("secret text")

    monkeypatch.setattr("service.engine.encode", broken)
    with pytest.raises(grpc.RpcError) as failed:
        await stub.Classify(
            pb.ClassifyRequest(texts=["secret text"]), metadata=(("x-request-id", "id-1"),)
        )
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert failed.value.details() == "internal error (request id-1)"
    output = capsys.readouterr()
    assert "id-1" in output.out + output.err
    assert "secret" not in output.out + output.err


async def test_a_port_in_use_is_named(server, settings):
    address = f"127.0.0.1:{server.port}"
    with pytest.raises(StartError, match=f"grpc={address}: cannot listen there"):
        await Server.start(settings.model_copy(update={"grpc": address}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bundle": "/nowhere"}, "/nowhere: no such folder"),
        ({"max_batch_tokens": 32}, "max_batch_tokens=32 cannot hold one text of this bundle"),
    ],
)
async def test_what_cannot_be_served_is_refused_at_start(settings, change, reason):
    with pytest.raises(StartError, match=reason):
        await Server.start(Settings(**(settings.model_dump() | change)))


async def test_draining_finishes_what_is_under_way(settings):
    server = await Server.start(settings)
    backend = server._engine._backend
    backend.prompt = False  # or the loop, held, would hold the test as well
    run, entered, opened = backend.run, threading.Semaphore(0), threading.Event()

    def held(*batch):
        entered.release()
        assert opened.wait(20)
        return run(*batch)

    backend.run = held
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = rpc.ClassifierStub(channel)
        calls = [stub.Classify(pb.ClassifyRequest(texts=TEXTS * 100)) for _ in range(8)]
        assert await asyncio.to_thread(entered.acquire, timeout=20)
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0)
        opened.set()
        await closing
        results = await asyncio.gather(*calls, return_exceptions=True)
    answered = [r for r in results if not isinstance(r, Exception)]
    assert answered
    assert all(len(r.predictions) == 300 for r in answered)
    refused = [r for r in results if isinstance(r, Exception)]
    assert all(r.code() is grpc.StatusCode.UNAVAILABLE for r in refused)


async def test_draining_sends_large_answers_to_their_end(settings):
    server = await Server.start(settings)
    target = f"127.0.0.1:{server.port}"
    async with grpc.aio.insecure_channel(target, options=UNLIMITED) as channel:
        request = pb.ClassifyRequest(texts=["good " * 60] * 100, views=[pb.VIEW_ATTENTIONS])
        call = rpc.ClassifierStub(channel).Classify(request)
        async with asyncio.timeout(20):
            while not server._servicer.calls:
                await asyncio.sleep(0)
        closing = asyncio.create_task(server.close())
        response = await call
        assert response.ByteSize() > 10 << 20
        assert len(response.predictions) == 100
        await closing


async def test_reflection_by_option(settings):
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    for on in (False, True):
        server = await Server.start(settings.model_copy(update={"reflection": on}))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            names: list[str] = []
            with contextlib.suppress(grpc.RpcError):
                async for answer in stub.ServerReflectionInfo(iter([request])):
                    names += [s.name for s in answer.list_services_response.service]
            assert ("realce.v1.Classifier" in names) is on
        await server.close()


@GRPC_ALONE
async def test_answers_that_nobody_reads_take_room_and_no_more(settings, bundle):
    """A stream of attentions whose caller reads nothing: others are refused them, and answered
    without; what is read is all there."""
    count = bundle.manifest.config
    text = "good " * 60
    (encoding,) = bundle.tokenizer.encode_batch([text], offsets=False)
    size = 4 * 50 * count.layers * count.heads * len(encoding.input_ids) ** 2
    limits = {"max_answer_bytes": size, "max_held_bytes": 3 * size}
    server = await Server.start(settings.model_copy(update=limits))
    counted = server.metrics.registry.get_sample_value
    request = pb.ClassifyRequest(texts=[text] * 50, views=[pb.VIEW_ATTENTIONS])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=NARROW) as channel:
        stub = rpc.ClassifierStub(channel)
        messages = [pb.ClassifyStreamRequest(id=str(i), request=request) for i in range(6)]
        unread = stub.ClassifyStream(iter(messages))
        async with asyncio.timeout(20):
            while counted("realce_answered_rows_total") < 3 * 50:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # to compute more, if it did
        assert server._room.held == 3 * size
        assert counted("realce_batch_rows_sum") == 3 * 50
        with pytest.raises(grpc.RpcError) as refused:
            await stub.Classify(request)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"hold {3 * size} of {3 * size} bytes" in refused.value.details()
        assert (await stub.Classify(pb.ClassifyRequest(texts=["good"]))).predictions
        answers = [answer async for answer in unread]
        assert [answer.id for answer in answers] == [str(i) for i in range(6)]
        assert all(len(answer.response.predictions) == 50 for answer in answers)
        assert (await stub.Classify(request)).predictions
    async with asyncio.timeout(20):
        while server._room.held:
            await asyncio.sleep(0.01)
    await server.close()


@GRPC_ALONE
async def test_who_stays_connected_is_asked_to_connect_anew_and_loses_no_call(
    settings, monkeypatch
):
    callers = set[str]()
    classify = ClassifierServicer.classify

    async def told(servicer, request, context):
        callers.add(context.peer())
        return await classify(servicer, request, context)

    monkeypatch.setattr(ClassifierServicer, "classify", told)
    server = await Server.start(settings.model_copy(update={"connection_age_s": 0.2}))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = rpc.ClassifierStub(channel)
        stream = stub.ClassifyStream()
        request = pb.ClassifyRequest(texts=["good"])
        async with asyncio.timeout(20):
            while len(callers) < 3:
                await stream.write(pb.ClassifyStreamRequest(request=request))
                assert (await stream.read()).response.predictions
                assert (await stub.Classify(request)).predictions
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK
    await server.close()


async def _streamed(client: AsyncClassifier) -> list[object]:
    async def batches() -> AsyncIterator[list[str]]:
        yield ["good"]
        yield ["bad"]

    return [answers async for answers in client.classify_stream(batches())]


async def at_once(stub: rpc.ClassifierStub, number: int) -> Counter[grpc.StatusCode]:
    """What came of so many calls of one text, sent before the server comes to any of them."""
    calls = [stub.Classify(pb.ClassifyRequest(texts=["good"])) for _ in range(number)]
    return Counter(await asyncio.gather(*(call.code() for call in calls)))


@GRPC_ALONE
async def test_calls_beyond_those_that_may_wait_are_cut_off_and_cost_no_other(settings):
    server = await Server.start(settings.model_copy(update={"max_waiting_calls": 20}))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = rpc.ClassifierStub(channel)
        assert await at_once(stub, 5) == {grpc.StatusCode.OK: 5}
        codes = await at_once(stub, 200)
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED}
        assert codes[grpc.StatusCode.OK] >= 10  # half of the limit is safe
        assert await at_once(stub, 5) == {grpc.StatusCode.OK: 5}
    await server.close()


@pytest.mark.parametrize("settings", ["native"], indirect=True)
async def test_calls_beyond_those_that_may_wait_are_refused_with_words_and_counted(settings):
    server = await Server.start(settings.model_copy(update={"max_waiting_calls": 20}))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = rpc.ClassifierStub(channel)
        codes = await at_once(stub, 200)
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert codes[grpc.StatusCode.OK] >= 20
        assert await at_once(stub, 20) == {grpc.StatusCode.OK: 20}
    refused = {"method": "Classify", "code": "RESOURCE_EXHAUSTED"}
    counted = server.metrics.registry.get_sample_value("realce_calls_total", refused)
    assert counted == codes[grpc.StatusCode.RESOURCE_EXHAUSTED]
    await server.close()


async def test_health_is_told_however_many_calls_wait(settings):
    server = await Server.start(settings.model_copy(update={"max_waiting_calls": 20}))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        flood = asyncio.ensure_future(at_once(rpc.ClassifierStub(channel), 200))
        await asyncio.sleep(0)  # the calls are sent
        check, request = health_pb2_grpc.HealthStub(channel).Check, health_pb2.HealthCheckRequest()
        told = await asyncio.gather(*(check(request) for _ in range(10)))
        assert [one.status for one in told] == [SERVING] * 10
        assert (await flood)[grpc.StatusCode.OK] < 200
    await server.close()


async def test_two_hundred_calls_at_once_may_wait_where_nothing_else_is_set(stub):
    assert await at_once(stub, 200) == {grpc.StatusCode.OK: 200}


@GRPC_ALONE
async def test_the_client_tries_calls_again_that_were_cut_off(settings):
    server = await Server.start(settings.model_copy(update={"max_waiting_calls": 80}))
    target = f"127.0.0.1:{server.port}"
    async with grpc.aio.insecure_channel(target) as channel:
        codes = await at_once(rpc.ClassifierStub(channel), 70)
    assert codes[grpc.StatusCode.CANCELLED] > 0
    async with AsyncClassifier(target) as client:
        answers = await asyncio.gather(*(client.classify(["good"]) for _ in range(70)))
        assert len(answers) == 70
        streams = await asyncio.gather(*(_streamed(client) for _ in range(70)))
        assert [len(answers) for answers in streams] == [2] * 70
    await server.close()


async def test_the_largest_requests_are_taken_up_to_what_grpc_can_carry(settings):
    server = await Server.start(settings.model_copy(update={"max_request_bytes": 1 << 30}))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        model = (await rpc.ClassifierStub(channel).GetModel(pb.GetModelRequest())).model
    assert model.limits.max_request_bytes == 1 << 30
    await server.close()
