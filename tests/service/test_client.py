import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest

from protos.realce.v1 import classifier_pb2 as pb
from service import servicer
from service.client import AsyncClassifier, CallError, Classifier, channel_options
from service.errors import BackendFailed, DeadlineExceeded, Overloaded, Unavailable
from service.servicer import ClassifierServicer
from service.types import Prediction, View
from service.validation import Limits
from tests.fakes import FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@contextlib.asynccontextmanager
async def serving(engine: FakeEngine) -> AsyncIterator[str]:
    """The address of a server of the engine."""
    limits = Limits(
        max_texts=4000,
        max_text_bytes=200,
        max_answer_bytes=1000,
        max_request_bytes=1 << 20,
        max_request_tokens=500,
    )
    server = grpc.aio.server()
    ClassifierServicer(engine, limits).add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
async def target(engine: FakeEngine) -> AsyncIterator[str]:
    async with serving(engine) as address:
        yield address


@pytest.fixture
async def client(target: str) -> AsyncIterator[AsyncClassifier]:
    async with AsyncClassifier(target) as client:
        yield client


async def test_a_call_that_found_no_room_is_tried_again(engine, client):
    engine.failures = [Overloaded("full", 0.02), Unavailable("draining"), Overloaded("full", 0.02)]
    (answer,) = await client.classify(["four"])
    assert answer.logits == {"negative": 1.0, "positive": 4.0}
    assert engine.calls == 4


async def test_retries_come_to_an_end_and_say_when_to_come_back(engine, client):
    engine.failures = [Overloaded("the queue is full", 0.02)] * 9
    with pytest.raises(CallError, match=r"^RESOURCE_EXHAUSTED: the queue is full$") as failed:
        await client.classify(["a"])
    assert failed.value.retry_after_s == 0.02
    assert engine.calls == 4


@pytest.mark.parametrize(
    ("failure", "calls"),
    [
        (Unavailable("draining"), 2),
        (Overloaded("full", 0.02), 2),
        (DeadlineExceeded("late"), 1),
        (BackendFailed("poison"), 1),
        (KeyError("fault"), 1),
    ],
)
async def test_a_call_is_tried_again_only_where_that_may_help(engine, client, failure, calls):
    engine.failures = [failure]
    with contextlib.suppress(CallError):
        await client.classify(["a"])
    assert engine.calls == calls


async def test_who_asks_for_the_model_tries_again_too(client, monkeypatch):
    failures = [Unavailable("starting")]

    def describe(_: FakeEngine, model=FakeEngine.description):
        if failures:
            raise failures.pop()
        return model

    monkeypatch.setattr(FakeEngine, "description", property(describe))
    assert (await client.get_model()).description.name == "fake"


async def test_where_most_calls_fail_none_is_tried_again(engine, client):
    async def fail() -> None:
        with pytest.raises(CallError):
            await client.classify(["a"])

    engine.failures = [Overloaded("full", 0.001)] * 200
    for _ in range(20):
        await fail()
    before = engine.calls
    await fail()
    assert engine.calls == before + 1


async def test_a_call_at_fault_is_not_tried_again_and_names_its_fields(engine, client):
    with pytest.raises(CallError, match=r"^INVALID_ARGUMENT: texts\[1\]: is empty") as failed:
        await client.classify(["a", "", " "])
    assert [fault.field for fault in failed.value.violations] == ["texts[1]", "texts[2]"]
    assert len(failed.value.request_id) == 32
    assert engine.calls == 0


async def test_a_call_has_a_deadline_even_when_none_is_given(engine, target):
    engine.open.clear()
    async with AsyncClassifier(target, timeout_s=0.1) as client:
        with pytest.raises(CallError) as failed:
            await client.classify(["a"])
    assert failed.value.code == "DEADLINE_EXCEEDED"


async def test_a_stream_gives_answers_and_errors_in_order(client):
    async def batches():
        for texts in (["four"], [""], ["a", "bb"]):
            yield texts

    first, second, third = [outcome async for outcome in client.classify_stream(batches())]
    assert [answer.logits["positive"] for answer in first] == [4.0]
    assert isinstance(second, CallError)
    assert second.violations[0].field == "texts[0]"
    assert [answer.logits["positive"] for answer in third] == [1.0, 2.0]


FAULTS = [
    ({"views": ["colour"]}, [["a"]], ValueError, r"views\[0\]: 'colour' is no view", 0),
    ({"views": "evidence"}, [["a"]], ValueError, "views: a string, must be a sequence", 0),
    ({}, [["four"], "one string"], ValueError, "must be a sequence of strings", 1),
    ({}, [["four"], ["a", 1]], TypeError, r"texts\[1\]: int, must be a string", 1),
    ({}, [["four"], OSError("the disk is gone")], OSError, "the disk is gone", 1),
]


def given(batches: list) -> Iterator:
    """These batches; an error among them is raised."""
    for batch in batches:
        if isinstance(batch, Exception):
            raise batch
        yield batch


@pytest.mark.parametrize(("options", "batches", "kind", "reason", "answered"), FAULTS)
async def test_a_batch_that_cannot_be_sent_is_told_after_the_answers_of_those_before_it(
    client, options, batches, kind, reason, answered
):
    async def source():
        for batch in given(batches):
            yield batch

    outcomes = []

    async def read() -> None:
        async for outcome in client.classify_stream(source(), **options):
            outcomes.append(outcome)

    with pytest.raises(kind, match=reason):
        await read()
    assert [one[0].logits["positive"] for one in outcomes] == [4.0] * answered


@pytest.mark.parametrize(("options", "batches", "kind", "reason", "answered"), FAULTS)
async def test_so_it_is_where_nothing_is_awaited(target, options, batches, kind, reason, answered):
    outcomes = []

    def read() -> None:
        with Classifier(target) as client:
            outcomes.extend(client.classify_stream(given(batches), **options))

    with pytest.raises(kind, match=reason):
        await asyncio.to_thread(read)
    assert [one[0].logits["positive"] for one in outcomes] == [4.0] * answered


async def test_a_stream_that_is_left_early_ends(client):
    taken = 0

    async def endless():
        nonlocal taken
        while True:
            taken += 1
            yield ["a"]
            await asyncio.sleep(0)

    async with contextlib.aclosing(client.classify_stream(endless())) as outcomes:
        async for _ in outcomes:
            break
    await asyncio.sleep(0.05)
    before = taken
    await asyncio.sleep(0.1)
    assert taken == before


async def test_a_stream_that_the_server_ends_says_so_after_its_answers(engine):
    async def waiting():
        yield ["four"]
        await asyncio.to_thread(ended.wait)

    def blocking():
        yield ["four"]
        ended.wait()

    ended = threading.Event()
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(ended.set)
        server = await stack.enter_async_context(contextlib.AsyncExitStack())
        target = await server.enter_async_context(serving(engine))
        client = await stack.enter_async_context(AsyncClassifier(target))
        stream = client.classify_stream(waiting())
        outcomes = stack.enter_context(Classifier(target)).classify_stream(blocking())
        for (answer,) in (await anext(stream), await asyncio.to_thread(next, outcomes)):
            assert answer.logits["positive"] == 4.0
        await server.aclose()
        with pytest.raises(CallError):
            await anext(stream)
        with pytest.raises(CallError):
            await asyncio.to_thread(list, outcomes)


async def test_a_large_call_is_tried_again_too(engine, client):
    engine.failures = [Unavailable("draining"), Overloaded("full", 0.02)]
    assert len(await client.classify(["a" * 200] * 100 * 40)) == 4000
    assert engine.calls == 3


async def test_an_answer_may_be_larger_than_grpc_takes_unless_told(engine, client, monkeypatch):
    large = np.ones((4, 1 << 20), np.float32)  # 16 MiB

    async def classify(*_: object) -> list[Prediction]:
        return [Prediction([0.0, 1.0], [0.25, 0.75], {View.POOLING_ATTENTION: large})]

    monkeypatch.setattr(engine, "classify", classify)
    (answer,) = await client.classify(["a"], views=["pooling_attention"])
    np.testing.assert_array_equal(answer.views["pooling_attention"], large)


@pytest.mark.parametrize(
    ("target", "here"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:1", True),
        ("[::1]:50051", True),
        ("10.0.0.1:50051", False),
        ("127.0.0.1.example:1", False),
        ("dns:///realce-headless:50051", False),
    ],
)
def test_only_for_this_machine_no_proxy_is_asked(target: str, here: bool):
    assert (("grpc.enable_http_proxy", 0) in channel_options(target)) is here


async def test_unsure_answers_are_marked_when_asked_for(client):
    async def batches():
        yield ["ab", "abc"]

    assert [one.abstained for one in await client.classify(["ab", "abc"])] == [False, False]
    answers = await client.classify(["ab", "abc"], abstain=True)
    (streamed,) = [one async for one in client.classify_stream(batches(), abstain=True)]
    for part in (answers, streamed):
        assert [one.abstained for one in part] == [True, False]


async def test_the_model_comes_as_plain_data(engine, client):
    model = await client.get_model()
    assert model.description == engine.description
    assert (model.max_texts, model.max_text_bytes, model.max_response_bytes) == (4000, 200, 1000)
    assert (model.max_request_bytes, model.max_request_tokens) == (1 << 20, 500)


def test_no_server_is_told_at_once():
    with Classifier("127.0.0.1:9", timeout_s=20) as client:
        for call in (lambda: client.classify(["a"]), client.get_model):
            with pytest.raises(CallError) as failed:
                call()
            assert failed.value.code == "UNAVAILABLE"
        with pytest.raises(CallError):
            list(client.classify_stream([["a"]]))


def test_the_client_needs_neither_onnx_nor_its_runtime():
    code = (
        "import sys, service.client; "
        "print(sorted({'onnx', 'onnxruntime', 'torch', 'tokenizers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": "."}
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture
def asked(monkeypatch) -> list[pb.ClassifyRequest]:
    """The messages that the server has read."""
    read: list[pb.ClassifyRequest] = []
    check = servicer.check_request

    def noted(request, *others):
        read.append(request)
        return check(request, *others)

    monkeypatch.setattr(servicer, "check_request", noted)
    return read


async def test_both_clients_ask_for_what_was_chosen(target, client, asked):
    chosen = {"views": ["attentions"], "layers": [1], "heads": [3, 0]}
    chosen |= {"dtype": np.float16, "abstain": True}
    with contextlib.suppress(CallError):  # the fake has no attentions to give
        await client.classify(["a"], **chosen)
    with Classifier(target) as blocking, contextlib.suppress(CallError):
        await asyncio.to_thread(blocking.classify, ["a"], **chosen)
    assert len(asked) == 2
    for request in asked:
        assert list(request.attention_selection.layers) == [1]
        assert list(request.attention_selection.heads) == [3, 0]
        assert request.data_type == pb.DATA_TYPE_FLOAT16
        assert request.abstain


async def test_both_clients_ask_it_for_every_batch_of_a_stream(target, client, asked):
    async def batches():
        yield ["a"]
        yield ["b"]

    async for _ in client.classify_stream(batches(), views=iter(["evidence"]), abstain=True):
        pass
    with Classifier(target) as blocking:
        stream = blocking.classify_stream([["a"], ["b"]], views=iter(["evidence"]), abstain=True)
        await asyncio.to_thread(list, stream)
    assert [request.texts[0] for request in asked] == ["a", "b"] * 2
    for request in asked:
        assert list(request.views) == [pb.VIEW_EVIDENCE]
        assert request.abstain


async def test_calls_have_a_deadline_by_default_and_streams_have_none(engine, target):
    async with AsyncClassifier(target) as client:
        await client.classify(["a"])
        await drained(client, None)
    with Classifier(target) as blocking:
        await asyncio.to_thread(blocking.classify, ["a"])
        await asyncio.to_thread(lambda: list(blocking.classify_stream([["a"]])))
    assert [deadline is None for deadline in engine.deadlines] == [False, True, False, True]


@pytest.mark.parametrize(("of_client", "of_call"), [(0.05, None), (500.0, 0.05), (500.0, 0)])
async def test_a_server_that_says_nothing_is_waited_for_as_long_as_was_said(of_client, of_call):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        target = f"127.0.0.1:{mute.getsockname()[1]}"
        client, blocking = (
            kind(target, timeout_s=of_client) for kind in (AsyncClassifier, Classifier)
        )
        async with client:
            for call in (
                client.classify(["a"], timeout_s=of_call),
                client.get_model(timeout_s=of_call),
            ):
                with pytest.raises(CallError, match="^DEADLINE_EXCEEDED"):
                    await call
        with blocking:
            for call in (
                lambda: blocking.classify(["a"], timeout_s=of_call),
                lambda: blocking.get_model(timeout_s=of_call),
            ):
                with pytest.raises(CallError, match="^DEADLINE_EXCEEDED"):
                    await asyncio.to_thread(call)


async def test_a_call_may_have_less_time_than_the_client_gives(engine, target):
    engine.open.clear()
    began = time.monotonic()
    async with AsyncClassifier(target, timeout_s=500) as client:
        for call in (client.classify(["a"], timeout_s=0.05), drained(client, 0.05)):
            with pytest.raises(CallError) as failed:
                await call
            assert failed.value.code == "DEADLINE_EXCEEDED"
    with Classifier(target, timeout_s=500) as blocking:
        for call in (
            lambda: blocking.classify(["a"], timeout_s=0.05),
            lambda: list(blocking.classify_stream([["a"]], timeout_s=0.05)),
        ):
            with pytest.raises(CallError) as failed:
                await asyncio.to_thread(call)
            assert failed.value.code == "DEADLINE_EXCEEDED"
    assert all(deadline < began + 60 for deadline in engine.deadlines)


async def drained(client: AsyncClassifier, timeout_s: float | None) -> None:
    async def batches():
        yield ["a"]

    async for _ in client.classify_stream(batches(), timeout_s=timeout_s):
        pass


async def test_calls_are_shared_among_the_servers_of_a_name():
    """Headless services name them all; one server would get all calls of one client else."""
    async with contextlib.AsyncExitStack() as stack:
        engines = [FakeEngine(), FakeEngine()]
        addresses = [await stack.enter_async_context(serving(engine)) for engine in engines]
        client = await stack.enter_async_context(AsyncClassifier(f"ipv4:{','.join(addresses)}"))
        async with asyncio.timeout(20):
            while not all(engine.calls for engine in engines):
                await client.classify(["a"])
