import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from protos.realce.v1 import classifier_pb2 as pb
from protos.realce.v1 import classifier_pb2_grpc as rpc
from service.errors import (
    BackendFailed,
    DeadlineExceeded,
    Overloaded,
    Unavailable,
)
from service.servicer import STOPPING, ClassifierServicer
from service.stream import WINDOW
from service.validation import Limits
from tests.fakes import FakeEngine

Code = grpc.StatusCode
MAX_REQUEST_BYTES = 1000
HELLO = pb.ClassifyRequest(texts=["hello"])


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def servicer(engine: FakeEngine) -> ClassifierServicer:
    limits = Limits(
        max_texts=100,
        max_text_bytes=200,
        max_answer_bytes=1000,
        max_request_bytes=MAX_REQUEST_BYTES,
        max_request_tokens=500,
    )
    return ClassifierServicer(engine, limits)


@pytest.fixture
async def channel(servicer: ClassifierServicer) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    servicer.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> rpc.ClassifierStub:
    return rpc.ClassifierStub(channel)


async def failure(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value


def detail(error: grpc.aio.AioRpcError, kind):
    for packed in rpc_status.from_call(error).details:
        message = kind()
        if packed.Unpack(message):
            return message
    return None


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (Overloaded("the queue is full", 0.25), Code.RESOURCE_EXHAUSTED, "the queue is full"),
        (DeadlineExceeded("too late"), Code.DEADLINE_EXCEEDED, "too late"),
        (Unavailable("draining"), Code.UNAVAILABLE, "draining"),
        (BackendFailed("a row failed"), Code.INTERNAL, "a row failed (request id-1)"),
        (KeyError("what the caller wrote"), Code.INTERNAL, "internal error (request id-1)"),
    ],
)
async def test_each_error_has_its_code_and_the_next_call_is_answered(
    engine, stub, error, code, text
):
    engine.failures = [error]
    failed = await failure(stub.Classify(HELLO, metadata=(("x-request-id", "id-1"),)))
    assert (failed.code(), failed.details()) == (code, text)
    assert detail(failed, error_details_pb2.RequestInfo).request_id == "id-1"
    assert dict(failed.trailing_metadata())["x-request-id"] == "id-1"
    assert (await stub.Classify(HELLO)).predictions[0].label == "positive"


async def test_a_full_queue_says_when_to_come_back(engine, stub):
    engine.failures = [Overloaded("the queue is full", retry_after_s=0.25)]
    failed = await failure(stub.Classify(HELLO))
    assert detail(failed, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 250
    assert dict(failed.trailing_metadata())["grpc-retry-pushback-ms"] == "250"


async def test_a_message_over_the_limit_is_told_size_and_limit(engine, stub):
    request = pb.ClassifyRequest(texts=["a" * 150] * 10)
    failed = await failure(stub.Classify(request))
    assert failed.code() is Code.INVALID_ARGUMENT
    reason = f"request: {request.ByteSize()} bytes, the limit is {MAX_REQUEST_BYTES}"
    assert failed.details() == reason
    assert engine.calls == 0


async def test_many_faults_still_fit_into_the_headers_of_an_answer(stub):
    failed = await failure(stub.Classify(pb.ClassifyRequest(texts=["a"], views=[77] * 300)))
    assert failed.code() is Code.INVALID_ARGUMENT
    assert failed.details().endswith("(and 15 more)")
    faults = detail(failed, error_details_pb2.BadRequest).field_violations
    assert [fault.field for fault in faults] == [f"views[{i}]" for i in range(16)]


@pytest.mark.parametrize(("abstain", "marks"), [(True, [True, False]), (False, [False, False])])
async def test_unsure_answers_are_marked_when_asked_for(stub, abstain, marks):
    texts = ["ab", "abc"]  # 0.67 and 0.75, which is the threshold
    answer = await stub.Classify(pb.ClassifyRequest(texts=texts, abstain=abstain))
    assert [one.abstained for one in answer.predictions] == marks
    assert [one.label for one in answer.predictions] == ["positive", "positive"]


async def test_abstaining_needs_a_threshold(engine, stub):
    engine.description = dataclasses.replace(engine.description, abstention_threshold=None)
    failed = await failure(stub.Classify(pb.ClassifyRequest(texts=["a"], abstain=True)))
    assert failed.code() is Code.INVALID_ARGUMENT
    assert failed.details() == "abstain: model 'fake' has no abstention threshold"
    described = (await stub.GetModel(pb.GetModelRequest())).model
    assert described.abstention_threshold == 0


async def test_a_view_named_twice_is_refused(stub):
    views = [pb.VIEW_EVIDENCE, pb.VIEW_EVIDENCE]
    failed = await failure(stub.Classify(pb.ClassifyRequest(texts=["a"], views=views)))
    assert failed.details() == "views[1]: VIEW_EVIDENCE is named twice"


async def test_a_cancelled_call_cancels_its_work(engine, stub):
    engine.open.clear()
    call = stub.Classify(HELLO)
    await until(lambda: engine.under_way)
    call.cancel()
    await until(lambda: engine.cancelled)
    engine.open.set()
    assert (await stub.Classify(HELLO)).predictions


async def test_an_expired_deadline_cancels_the_work(engine, stub):
    engine.open.clear()
    failed = await failure(stub.Classify(HELLO, timeout=0.2))
    assert failed.code() is Code.DEADLINE_EXCEEDED
    await until(lambda: engine.cancelled)


async def test_a_stream_reads_no_further_than_its_window(engine, stub):
    engine.open.clear()
    sent = 0

    async def messages():
        nonlocal sent
        for sent in range(1, 101):
            yield pb.ClassifyStreamRequest(id=str(sent), request=HELLO)

    answers = stub.ClassifyStream(messages())
    reading = asyncio.ensure_future(collect(answers))
    await until(lambda: sent == 100)  # the transport takes them all; the service does not
    for _ in range(10):  # time enough to read on, if it did
        await stub.GetModel(pb.GetModelRequest())
    assert engine.most_under_way == WINDOW
    engine.open.set()
    assert [answer.id for answer in await reading] == [str(i) for i in range(1, 101)]
    assert engine.most_under_way == WINDOW


async def test_errors_in_a_stream_belong_to_their_message(engine, channel):
    engine.failures = [KeyError("fault"), Overloaded("full", 0.01)]
    good = pb.ClassifyStreamRequest(id="good", request=HELLO)
    malformed = b"\x0a\x02\xff\xfe"
    large = pb.ClassifyStreamRequest(request=pb.ClassifyRequest(texts=["a" * 150] * 10))
    sent = [good.SerializeToString(), malformed, large.SerializeToString()]
    sent += [good.SerializeToString()]
    call = channel.stream_stream("/realce.v1.Classifier/ClassifyStream")(iter(sent))
    answers = [pb.ClassifyStreamResponse.FromString(content) async for content in call]
    assert [answer.error.code for answer in answers] == [13, 3, 3, 0]
    assert answers[0].id == "good"
    assert "malformed" in answers[1].error.message
    assert answers[3].response.predictions[0].label == "positive"  # waited for room
    assert await call.code() is Code.OK


async def test_draining_ends_a_stream_once_what_it_read_is_answered(engine, servicer, stub):
    engine.open.clear()
    call = stub.ClassifyStream()
    for i in range(3):
        await call.write(pb.ClassifyStreamRequest(id=str(i), request=HELLO))
    await until(lambda: engine.under_way == 3)
    servicer.drain()
    engine.open.set()
    answers: list[pb.ClassifyStreamResponse] = []
    failed = await failure(collect(call, answers))
    assert [answer.id for answer in answers] == ["0", "1", "2"]
    assert failed.code() is Code.UNAVAILABLE
    assert (await failure(collect(stub.ClassifyStream(iter([]))))).code() is Code.UNAVAILABLE


async def test_draining_answers_what_was_read_of_a_stream_and_waits_for_room(
    engine, servicer, stub
):
    engine.open.clear()
    call = stub.ClassifyStream()
    await call.write(pb.ClassifyStreamRequest(id="0", request=HELLO))
    await until(lambda: engine.under_way == 1)
    engine.failures = [Overloaded("full", 0.05)] * 2
    await call.write(pb.ClassifyStreamRequest(id="1", request=HELLO))
    await until(lambda: not engine.failures or len(engine.failures) < 2)
    servicer.drain()
    assert (await failure(stub.Classify(HELLO))).details() == STOPPING
    engine.open.set()
    answers: list[pb.ClassifyStreamResponse] = []
    failed = await failure(collect(call, answers))
    assert [(answer.id, answer.WhichOneof("result")) for answer in answers] == [
        ("0", "response"),
        ("1", "response"),
    ]
    assert failed.code() is Code.UNAVAILABLE
    await servicer.wait_idle()


async def test_it_is_not_idle_while_a_call_is_under_way(engine, servicer, stub):
    await servicer.wait_idle()
    engine.open.clear()
    call = stub.Classify(HELLO)
    await until(lambda: engine.under_way)
    idle = asyncio.ensure_future(servicer.wait_idle())
    await asyncio.sleep(0)
    assert not idle.done()
    engine.open.set()
    await call
    await idle


async def test_a_stream_that_is_done_while_the_server_drains_ends_well(engine, servicer, stub):
    engine.open.clear()
    call = stub.ClassifyStream(iter([pb.ClassifyStreamRequest(id="1", request=HELLO)]))
    reading = asyncio.ensure_future(collect(call))
    await until(lambda: engine.under_way)
    await until(lambda: all(stream._reader.done() for stream in servicer._streams))
    servicer.drain()
    engine.open.set()
    assert [answer.id for answer in await reading] == ["1"]
    assert await call.code() is Code.OK


async def test_a_message_of_a_stream_is_queued_after_those_before_it(engine, stub):
    """Or what comes later might hold all the room that the first one waits for."""
    engine.failures = [Overloaded("full", 0.05), Overloaded("full", 0.05)]
    texts = ["a", "bb", "ccc"]
    messages = [pb.ClassifyStreamRequest(request=pb.ClassifyRequest(texts=[t])) for t in texts]
    answers = await collect(stub.ClassifyStream(iter(messages)))
    assert [one.response.predictions[0].scores[1].logit for one in answers] == [1, 2, 3]
    assert engine.queued == ["a", "bb", "ccc"]
    assert engine.calls == 5


@pytest.mark.parametrize("fails", [False, True])
async def test_an_answer_takes_room_until_it_is_sent(engine, stub, monkeypatch, fails):
    request = pb.ClassifyRequest(texts=["hello"], views=[pb.VIEW_EVIDENCE])
    engine.open.clear()
    if fails:
        monkeypatch.setattr("service.converters.response", None)
    call = stub.Classify(request)
    await until(lambda: engine.under_way)
    assert engine.room.held == 5
    engine.open.set()
    assert await call.code() is (Code.INTERNAL if fails else Code.OK)
    await until(lambda: not engine.room.held)


async def collect(answers, into=None):
    into = [] if into is None else into
    async for answer in answers:
        into.append(answer)
    return into


async def test_each_call_is_one_line_without_its_texts(engine, stub):
    engine.failures = [KeyError("secret"), Unavailable("draining")]
    secret = pb.ClassifyRequest(texts=["secret", "secret"])
    with structlog.testing.capture_logs() as lines:
        metadata = (("x-request-id", "id-1"),)
        await failure(stub.Classify(secret, metadata=metadata))
        await failure(stub.Classify(secret, metadata=metadata))
        await failure(stub.Classify(pb.ClassifyRequest(texts=["secret", " "]), metadata=metadata))
        await stub.Classify(secret, metadata=metadata)
        await collect(stub.ClassifyStream(iter([pb.ClassifyStreamRequest(request=secret)] * 3)))
    calls = [line for line in lines if line["event"] == "call"]
    assert [(c["method"], c["code"], c["rows"], c["log_level"]) for c in calls] == [
        ("Classify", "INTERNAL", 2, "warning"),
        ("Classify", "UNAVAILABLE", 2, "warning"),
        ("Classify", "INVALID_ARGUMENT", 2, "warning"),
        ("Classify", "OK", 2, "debug"),
        ("ClassifyStream", "OK", 6, "debug"),
    ]
    assert calls[2]["fields"] == ["texts[1]"]
    assert all(call["request_id"] == "id-1" for call in calls[:4])
    assert all(call["duration_ms"] >= 0 for call in calls)
    (fault,) = [line for line in lines if line["event"] == "fault"]
    assert (fault["request_id"], fault["error"]) == ("id-1", "KeyError")
    assert "secret" not in json.dumps(lines)


async def test_refusals_are_counted_in_one_line(engine, servicer, stub):
    engine.failures = [Overloaded("full", retry_after_s=0.1)] * 3 + [DeadlineExceeded("late")]
    with structlog.testing.capture_logs() as lines:
        for _ in range(4):
            await failure(stub.Classify(HELLO))
        servicer.drain()
    told = [line for line in lines if line["log_level"] == "warning"]
    assert told == [
        {
            "event": "refused",
            "log_level": "warning",
            "RESOURCE_EXHAUSTED": 3,
            "DEADLINE_EXCEEDED": 1,
        }
    ]


@pytest.mark.parametrize("given", ["é", "x" * 65, "a\x7f"])
async def test_a_request_id_that_does_not_belong_in_a_log_is_replaced(servicer, given):
    class Context:
        trailing: tuple = ()

        def time_remaining(self):
            return None

        def invocation_metadata(self):
            return (("x-request-id", given.encode()),)

        def set_trailing_metadata(self, trailing):
            self.trailing = trailing

    context = Context()
    await servicer.get_model(pb.GetModelRequest(), context)
    ((key, value),) = context.trailing
    assert key == "x-request-id"
    assert len(value) == 32
    assert value.isalnum()


async def test_a_stream_that_is_left_gives_up_its_work_and_its_room(engine, stub):
    engine.open.clear()
    request = pb.ClassifyRequest(texts=["hello"], views=[pb.VIEW_EVIDENCE])
    call = stub.ClassifyStream()
    for _ in range(3):
        await call.write(pb.ClassifyStreamRequest(request=request))
    await until(lambda: engine.under_way == 3)
    assert engine.room.held == 15
    call.cancel()
    await until(lambda: engine.cancelled == 3)
    await until(lambda: not engine.room.held)


async def test_the_engine_is_told_how_long_a_caller_waits(engine, stub):
    message = pb.ClassifyStreamRequest(request=HELLO)
    began = time.monotonic()
    await stub.Classify(HELLO, timeout=50)
    await collect(stub.ClassifyStream(iter([message]), timeout=50))
    await stub.Classify(HELLO)
    unary, stream, without = engine.deadlines
    assert began + 49 < unary < stream < time.monotonic() + 51
    assert without is None


async def test_what_is_no_message_is_told_by_get_model_too(channel):
    ask = channel.unary_unary("/realce.v1.Classifier/GetModel")
    failed = await failure(ask(b"\xff"))
    assert failed.code() is Code.INVALID_ARGUMENT
    assert "is no valid GetModelRequest" in failed.details()


async def test_a_message_of_just_the_limit_is_taken(stub):
    request = pb.ClassifyRequest(texts=["a" * 100] * 9)
    request.texts.append("a" * (MAX_REQUEST_BYTES - request.ByteSize() - 2))
    assert request.ByteSize() == MAX_REQUEST_BYTES
    assert len((await stub.Classify(request)).predictions) == 10


@pytest.mark.parametrize(("size", "kept"), [(1, True), (64, True), (65, False)])
async def test_a_decent_request_id_is_the_callers_own(stub, size, kept):
    call = stub.Classify(HELLO, metadata=(("x-request-id", "i" * size),))
    await call
    told = dict(await call.trailing_metadata())["x-request-id"]
    assert (told == "i" * size) is kept
    assert 0 < len(told) <= 64


@pytest.mark.parametrize("view", list(pb.View.values())[1:])
async def test_the_bias_comes_with_what_it_completes(stub, view):
    answer = await stub.Classify(pb.ClassifyRequest(texts=["a"], views=[view]))
    completes = view in (pb.VIEW_EVIDENCE, pb.VIEW_CONTRIBUTIONS)
    assert list(answer.bias) == ([0.25, -0.25] if completes else [])


async def test_bytes_are_counted_and_not_letters(stub):
    failed = await failure(stub.Classify(pb.ClassifyRequest(texts=["é" * 101])))
    assert failed.details() == "texts[0]: 202 bytes, the limit is 200"
    await stub.Classify(pb.ClassifyRequest(texts=["é" * 100]))
