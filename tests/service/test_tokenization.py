import asyncio

from model.tokenizer import Encoding
from service.tokenization import SLICE_S, encode


class SlowTokenizer:
    """Takes a slice of time for each text, and tells when it is asked."""

    def __init__(self, tokenizer, clock: list[float]) -> None:
        self.tokenizer, self.clock, self.read = tokenizer, clock, 0

    def encode(self, text: str, *, offsets: bool) -> Encoding:
        self.read += 1
        self.clock[0] += SLICE_S / 2
        return self.tokenizer.encode(text, offsets=offsets)


async def test_texts_come_back_in_order_with_offsets_where_asked_for(bundle):
    texts = ["bom", "good film", "x" * 3]
    for offsets in (False, True):
        encodings = await encode(bundle.tokenizer, texts, offsets=offsets)
        expected = bundle.tokenizer.encode_batch(texts, offsets=offsets)
        assert [one.input_ids.tolist() for one in encodings] == [
            one.input_ids.tolist() for one in expected
        ]
        assert [one.offsets is not None for one in encodings] == [offsets] * 3


async def test_others_have_their_turn_while_many_texts_are_read(bundle, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("service.tokenization.time.perf_counter", lambda: clock[0])
    tokenizer = SlowTokenizer(bundle.tokenizer, clock)
    reading = asyncio.create_task(encode(tokenizer, ["bom"] * 9, offsets=False))
    seen = []
    while not reading.done():
        await asyncio.sleep(0)
        seen.append(tokenizer.read)
    assert seen[:3] == [3, 6, 9]
    assert len(await reading) == 9


async def test_after_a_long_text_others_are_given_as_long(bundle, monkeypatch):
    clock, slept = [0.0], []
    monkeypatch.setattr("service.tokenization.time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("service.tokenization.SLICE_S", SLICE_S / 8)  # a text takes four of these
    sleep = asyncio.sleep

    async def told(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr("service.tokenization.asyncio.sleep", told)
    await encode(SlowTokenizer(bundle.tokenizer, clock), ["bom"] * 2, offsets=False)
    monkeypatch.setattr("service.tokenization.SLICE_S", SLICE_S / 16)
    await encode(SlowTokenizer(bundle.tokenizer, clock), ["bom"], offsets=False)
    assert slept == [0, 0, SLICE_S / 2]
