import asyncio
import threading
import time

import numpy as np
import pytest

from model.tokenizer import Encoding
from service.costs import CostTable
from service.engine import Engine
from service.errors import BackendFailed, DeadlineExceeded, InvalidRequest, Overloaded, Unavailable
from service.ort_backend import OrtBackend
from service.room import Hold, Room
from service.tokenization import encode
from service.types import NO_VIEWS, Variant, View, ViewRequest
from tests.fakes import FakeBackend

TEXTS = [
    "A lovely film.",
    "Péssimo, não comprem!",
    "It arrived. I have it. It is a lamp, and blue.",
]
ALL = ViewRequest(frozenset(View), layers=(1, 0), heads=(3,))


@pytest.fixture(scope="module")
def backend(bundle):
    return OrtBackend(bundle, device="cpu", threads=2)


@pytest.fixture
async def engine(bundle, backend):
    engine = Engine(bundle, backend)
    await engine.start()
    yield engine
    engine.close()


@pytest.fixture
async def held(bundle):
    """An engine whose device is busy until its backend is opened, with room for 40 tokens."""
    backend = FakeBackend()
    engine = Engine(bundle, backend, max_batch_tokens=64, max_queue_tokens=64)
    await engine.start()
    backend.batches.clear()
    backend.open.clear()
    backend.entered = threading.Semaphore(0)
    call = asyncio.create_task(engine.classify(["x"], NO_VIEWS, None))
    await asyncio.to_thread(backend.entered.acquire)
    yield engine, backend
    backend.open.set()
    await asyncio.gather(call, return_exceptions=True)
    engine.close()


async def test_answers_are_the_networks_own(engine, bundle, backend):
    predictions = await engine.classify(TEXTS, NO_VIEWS, None)
    for encoding, prediction in zip(
        bundle.tokenizer.encode_batch(TEXTS, offsets=False), predictions, strict=True
    ):
        ids = encoding.input_ids[None]
        alone = backend.run(ids, np.ones_like(ids), Variant.PLAIN)
        np.testing.assert_allclose(prediction.logits, alone["logits"][0], atol=1e-5)
        np.testing.assert_allclose(prediction.probabilities, alone["probabilities"][0], atol=1e-5)
        assert (prediction.tokens, prediction.views) == ((), {})


async def test_views_account_for_the_answer_token_by_token(engine, bundle):
    for text, prediction in zip(TEXTS, await engine.classify(TEXTS, ALL, None), strict=True):
        size = len(prediction.tokens)
        assert {view: array.shape for view, array in prediction.views.items()} == {
            View.EVIDENCE: (size, 2),
            View.CONTRIBUTIONS: (size, 2),
            View.POOLING_ATTENTION: (4, size),
            View.ATTENTIONS: (2, 1, size, size),
        }
        for view in (View.EVIDENCE, View.CONTRIBUTIONS):
            logits = prediction.views[view].sum(axis=0) + np.array(bundle.manifest.bias)
            np.testing.assert_allclose(logits, prediction.logits, atol=1e-4)
        np.testing.assert_allclose(prediction.views[View.ATTENTIONS].sum(axis=-1), 1, atol=1e-5)
        assert all(text[token.start : token.end] == token.text for token in prediction.tokens)


async def test_many_callers_get_each_their_own_answer(engine):
    alone = {text: (await engine.classify([text], NO_VIEWS, None))[0].logits for text in TEXTS}
    wanted = [TEXTS[i % 3] for i in range(60)]
    calls = (engine.classify([text], NO_VIEWS, None) for text in wanted)
    for text, [prediction] in zip(wanted, await asyncio.gather(*calls), strict=True):
        np.testing.assert_allclose(prediction.logits, alone[text], atol=1e-5)


async def test_a_thousand_texts_are_answered_in_order(engine):
    texts = [TEXTS[i % 3] for i in range(1000)]
    first = await engine.classify(TEXTS, NO_VIEWS, None)
    predictions = await engine.classify(texts, NO_VIEWS, None)
    expected = np.array([first[i % 3].logits for i in range(1000)])
    np.testing.assert_allclose([p.logits for p in predictions], expected, atol=1e-5)


async def test_a_long_text_is_cut_and_says_so(engine):
    short, long = await engine.classify(["good", "good " * 500], NO_VIEWS, None)
    assert (short.truncated, long.truncated) == (False, True)


async def test_an_answer_too_large_to_send_is_refused_before_it_is_computed(bundle):
    backend = FakeBackend()
    engine = Engine(bundle, backend, max_answer_bytes=1000)
    await engine.start()
    backend.batches.clear()
    with pytest.raises(InvalidRequest, match=r"ATTENTIONS.* bytes, the limit is 1000") as refused:
        await engine.classify(TEXTS, ALL, None)
    assert refused.value.violations[0].field == "views"
    assert backend.batches == []
    engine.close()


async def test_nothing_is_answered_before_it_is_warm_nor_after_it_is_closed(bundle):
    engine = Engine(bundle, FakeBackend())
    with pytest.raises(Unavailable):
        await engine.classify(TEXTS, NO_VIEWS, None)
    await engine.start()
    assert len(await engine.classify(TEXTS, NO_VIEWS, None)) == 3
    engine.close()
    with pytest.raises(Unavailable):
        await engine.classify(TEXTS, NO_VIEWS, None)


async def test_answers_under_way_are_bounded_together(bundle):
    backend = FakeBackend()
    backend.open.clear()
    engine = Engine(bundle, backend, max_answer_bytes=1000, room=Room(1000))
    starting = asyncio.create_task(engine.start())
    backend.open.set()
    await starting
    backend.open.clear()
    request = ViewRequest(frozenset({View.EVIDENCE}))  # 8 bytes a token of two classes
    (encoding,) = bundle.tokenizer.encode_batch(["good " * 20], offsets=False)
    size = 8 * len(encoding.input_ids)
    assert 500 < 3 * size < 1000 < 6 * size
    first = asyncio.create_task(engine.classify(["good " * 20] * 3, request, None))
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded, match=f"hold {3 * size} of 1000 bytes; this one would be"):
        await engine.classify(["good " * 20] * 3, request, None)
    plain = asyncio.create_task(engine.classify(["good " * 20], NO_VIEWS, None))
    backend.open.set()
    assert len(await first) == 3
    assert len(await plain) == 1
    assert len(await engine.classify(["good " * 20] * 3, request, None)) == 3
    engine.close()


async def test_a_deadline_that_has_passed_is_refused_before_the_text_is_read(engine, monkeypatch):
    monkeypatch.setattr("service.engine.encode", None)
    with pytest.raises(DeadlineExceeded):
        await engine.classify(TEXTS, NO_VIEWS, time.monotonic() - 1)


async def test_a_full_queue_refuses_and_the_rest_is_answered(held):
    engine, backend = held
    waiting = asyncio.create_task(engine.classify(["a b c d e f g h"] * 4, NO_VIEWS, None))
    await asyncio.sleep(0)
    queued = engine.queued_tokens
    with pytest.raises(Overloaded):
        await engine.classify(["a b c d e f g h"] * 5, NO_VIEWS, None)
    assert engine.queued_tokens == queued > 0
    backend.open.set()
    assert len(await waiting) == 4


async def test_what_is_cut_off_a_text_takes_no_room(bundle):
    """It is guessed what a text will take before it is read, and it is read to 64 tokens."""
    backend = FakeBackend()
    engine = Engine(bundle, backend, max_batch_tokens=64, max_queue_tokens=200)
    await engine.start()
    backend.open.clear()
    calls = [asyncio.create_task(engine.classify([text], NO_VIEWS, None)) for text in "abc"]
    calls.append(asyncio.create_task(engine.classify(["a b " * 5_000], NO_VIEWS, None)))
    await asyncio.sleep(0.05)
    assert engine.queued_tokens > 0
    backend.open.set()
    *_, long = await asyncio.gather(*calls)
    assert long[0].truncated
    engine.close()


async def test_cancelling_a_call_frees_its_room_and_stops_no_other(held):
    engine, backend = held
    doomed = asyncio.create_task(engine.classify(["a b c"], NO_VIEWS, None))
    other = asyncio.create_task(engine.classify(["d e f"], NO_VIEWS, None))
    await asyncio.sleep(0)
    queued = engine.queued_tokens
    doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doomed
    assert engine.queued_tokens < queued
    backend.open.set()
    assert len(await other) == 1
    assert [len(batch) for batch in backend.batches] == [1, 1]


async def test_it_is_idle_once_nothing_is_under_way_not_even_being_read(
    bundle, backend, monkeypatch
):
    engine = Engine(bundle, backend)
    await engine.start()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(*arguments: object, **options: object) -> list[Encoding]:
        begun.set()
        await go_on.wait()
        return await encode(*arguments, **options)

    monkeypatch.setattr("service.engine.encode", slow)
    call = asyncio.create_task(engine.classify(["good " * 500], NO_VIEWS, None))
    await begun.wait()
    idle = asyncio.create_task(engine.wait_idle())
    await asyncio.sleep(0)
    assert not idle.done()
    go_on.set()
    await idle
    assert call.done()
    assert len(await call) == 1
    engine.close()


async def test_closing_tells_all_who_wait_even_for_a_batch_that_never_ends(bundle):
    backend = FakeBackend()
    engine = Engine(bundle, backend)
    await engine.start()
    backend.open.clear()
    backend.entered = threading.Semaphore(0)
    calls = [asyncio.create_task(engine.classify(["a b c"], NO_VIEWS, None))]
    await asyncio.to_thread(backend.entered.acquire)
    calls.append(asyncio.create_task(engine.classify(["d e f"], NO_VIEWS, None)))
    await asyncio.sleep(0)
    engine.close()
    for call in calls:
        with pytest.raises(Unavailable, match="stopped"):
            await call
    backend.open.set()
    await engine.wait_closed()


async def test_a_backend_that_is_gone_is_reported_and_every_call_refused(bundle):
    told = []
    backend = FakeBackend()
    engine = Engine(bundle, backend, on_failure=lambda: told.append("gone"))
    await engine.start()
    backend.gone = True
    with pytest.raises(Unavailable):
        await engine.classify(TEXTS, NO_VIEWS, None)
    assert (told, engine.ready) == (["gone"], False)
    engine.close()


async def test_a_row_that_fails_fails_its_own_call_only(bundle, monkeypatch):
    backend = FakeBackend()
    engine = Engine(bundle, backend)
    await engine.start()
    run, poison = backend.run, bundle.tokenizer.encode_batch(["péssimo"], offsets=False)[0]

    def picky(input_ids, mask, variant):
        if (input_ids[:, 0] == poison.input_ids[0]).any():
            raise RuntimeError("no")
        return run(input_ids, mask, variant)

    monkeypatch.setattr(backend, "run", picky)
    calls = [engine.classify([text], NO_VIEWS, None) for text in ("good", "péssimo", "it is")]
    good, bad, fair = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(bad, BackendFailed)
    assert len(good) == len(fair) == 1
    assert engine.ready
    engine.close()


async def test_it_tells_once_nothing_can_refuse_a_call_any_more(held):
    engine, backend = held
    queued = asyncio.Event()
    call = asyncio.create_task(engine.classify(["x"], NO_VIEWS, None, None, queued.set))
    async with asyncio.timeout(20):
        await queued.wait()
    assert not call.done()
    backend.open.set()
    await call


async def test_a_call_that_the_queue_refuses_holds_no_room(held):
    engine, _ = held
    waiting = asyncio.create_task(engine.classify(["a b c d"] * 2, NO_VIEWS, None))
    await asyncio.sleep(0)
    hold = Hold(engine.room)
    views = ViewRequest(frozenset({View.EVIDENCE}))
    with pytest.raises(Overloaded, match="the queue is full"):
        await engine.classify(["." * 60], views, None, hold)  # a guess of 16 tokens, 61 in truth
    assert (hold.size, engine.room.held) == (0, 0)
    waiting.cancel()


async def test_what_is_being_read_counts_until_it_is_read(held, monkeypatch):
    engine, _ = held
    go_on = asyncio.Event()

    async def slow(*arguments: object, **options: object) -> list[Encoding]:
        await go_on.wait()
        return await encode(*arguments, **options)

    monkeypatch.setattr("service.engine.encode", slow)
    text = "a " * 60  # a guess of 31 tokens, of 64
    calls = [asyncio.create_task(engine.classify([text], NO_VIEWS, None)) for _ in range(3)]
    engine._scheduler.queued_tokens += 1  # or nothing waits, and all are let in
    done, reading = await asyncio.wait(calls, timeout=0.05)
    engine._scheduler.queued_tokens -= 1
    (refused,) = done
    with pytest.raises(Overloaded):
        await refused
    assert engine._reading_tokens == 62
    for call in reading:
        call.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    assert engine._reading_tokens == 0


async def test_nothing_is_answered_before_the_backend_is_warm_and_its_costs_are_known(
    bundle, monkeypatch
):
    backend, measured = FakeBackend(), []
    warm = threading.Event()
    monkeypatch.setattr(FakeBackend, "warm_up", lambda _: warm.wait(20))
    monkeypatch.setattr(CostTable, "measure", lambda _, *what: measured.append(what))
    engine = Engine(bundle, backend)
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="not serving"):
        await engine.classify(["x"], NO_VIEWS, None)
    warm.set()
    await starting
    assert measured == [(backend, bundle.manifest.max_tokens)]
    assert len(await engine.classify(["x"], NO_VIEWS, None)) == 1
    engine.close()


async def test_it_is_idle_only_when_the_last_call_is_over(held):
    engine, _ = held
    second = asyncio.create_task(engine.classify(["y"], NO_VIEWS, None))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    idle = asyncio.create_task(engine.wait_idle())
    await asyncio.sleep(0)
    assert not idle.done()  # the first is on the device
    idle.cancel()
