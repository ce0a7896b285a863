"""Stand-ins that a test drives by hand."""

import asyncio
import threading
from collections.abc import Callable, Sequence

import numpy as np

from service.backend import BackendGone, Outputs
from service.room import Hold, Room
from service.types import IntArray, ModelDescription, Prediction, Variant, ViewRequest

POISON_ID = 666  # a row that begins with it makes the backend fail
NAN_ID = 667  # a row that begins with it gets no finite answer


class FakeClock:
    """A clock that moves when told to, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeBackend:
    """Answers each row with the sum of its ids; fails where told to; can be held."""

    provider = "FakeExecutionProvider"

    def __init__(self, parallel: int = 1, *, prompt: bool = False) -> None:
        self.parallel, self.prompt = parallel, prompt
        self.batches: list[list[list[int]]] = []
        self.gone = False
        self.broken = False
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Semaphore(0)

    def warm_up(self) -> None:
        """Nothing is cold here."""

    def run(self, input_ids: IntArray, attention_mask: IntArray, variant: Variant) -> Outputs:
        """See `Backend.run`."""
        self.entered.release()
        assert self.open.wait(20)
        rows = [
            ids[mask == 1].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)
        ]
        self.batches.append(rows)
        if self.gone:
            raise BackendGone("pulled out")
        if self.broken or any(row[0] == POISON_ID for row in rows):
            raise RuntimeError("poison")
        size, width = input_ids.shape
        total = (input_ids * attention_mask).sum(axis=1).astype(np.float32)
        total[input_ids[:, 0] == NAN_ID] = np.nan
        logits = np.stack([-total, total], axis=1)
        whole = {
            "logits": logits,
            "probabilities": logits,
            "evidence": np.ones((size, width, 2), np.float32),
            "contributions": np.ones((size, width, 2), np.float32),
            "pooling_attention": np.ones((size, 3, width), np.float32),
            "attentions": np.arange(size * 2 * 3 * width * width, dtype=np.float32).reshape(
                size, 2, 3, width, width
            ),
        }
        return {name: whole[name] for name in variant.value}


class FakeEngine:
    """Answers each text positive with its number of characters n as logit and n / (n + 1) as
    probability; fails and waits as told to.

    `failures` are raised by the next calls, one each; while `open` is not set, calls wait. Views
    take as much room as texts have characters.
    """

    description = ModelDescription(
        name="fake",
        version="1",
        labels=("negative", "positive"),
        languages=("en",),
        max_tokens=64,
        layers=2,
        heads=4,
        bias=(0.25, -0.25),
        temperature=1.0,
        abstention_threshold=0.75,
        license="Apache-2.0",
        provider="FakeExecutionProvider",
        fingerprint="0" * 64,
    )

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.open = asyncio.Event()
        self.open.set()
        self.room = Room(1 << 20)
        self.queued: list[str] = []
        self.deadlines: list[float | None] = []
        self.under_way = self.most_under_way = self.calls = self.cancelled = 0

    async def classify(
        self,
        texts: Sequence[str],
        request: ViewRequest,
        deadline: float | None,
        hold: Hold,
        on_queued: Callable[[], None] | None,
    ) -> list[Prediction]:
        """See `Engine.classify`."""
        self.calls += 1
        self.deadlines.append(deadline)
        if self.failures:
            raise self.failures.pop(0)
        hold.take(sum(map(len, texts)) if request.views else 0)
        self.queued += texts
        if on_queued is not None:
            on_queued()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        sizes = [len(text) for text in texts]
        return [Prediction([1, size], [1 / (1 + size), size / (1 + size)], {}) for size in sizes]
