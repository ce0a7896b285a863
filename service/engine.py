"""From texts to predictions: tokenize, admit, compute, cut. Knows nothing of gRPC."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from model.bundle import Bundle
from model.tokenizer import Encoding
from service.backend import Backend
from service.batch import Entry
from service.batcher import Batcher
from service.errors import Overloaded, Unavailable
from service.scheduler import LEAST_RETRY_S, Scheduler
from service.tokenization import encode
from service.types import ModelDescription, Prediction, Token, ViewRequest
from service.views import check_answer_bytes

CHARACTERS_PER_TOKEN = 4  # for refusing what is plainly too much before it is tokenized


class Engine:
    """One bundle in service; made on the loop that will call it.

    `on_failure` is called on the loop when the backend is gone for good; from then on every call
    fails with `Unavailable`.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        max_batch_tokens: int = 2048,
        max_queue_tokens: int = 131_072,
        max_answer_bytes: int = 64 << 20,
        max_held_bytes: int = 256 << 20,
        hang_s: float = 30.0,
        on_failure: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        manifest = bundle.manifest
        self.description = ModelDescription(
            name=manifest.name,
            version=manifest.version,
            labels=manifest.labels,
            languages=manifest.languages,
            max_tokens=manifest.max_tokens,
            layers=manifest.config.layers,
            heads=manifest.config.heads,
            bias=manifest.bias,
            temperature=manifest.temperature,
            abstention_threshold=manifest.abstention_threshold,
            license=manifest.license,
            provider=backend.provider,
            fingerprint=bundle.fingerprint,
        )
        self.ready = False
        self.parallel = backend.parallel
        self._backend = backend
        self._max_answer_bytes, self._max_held_bytes = max_answer_bytes, max_held_bytes
        self._held_bytes = 0
        self._notify_failure = on_failure
        self._tokenizer = bundle.tokenizer
        self._tokenizing_characters = 0
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._scheduler = Scheduler(
            max_batch_tokens=max_batch_tokens,
            max_queue_tokens=max_queue_tokens,
            attention_maps=manifest.config.layers * manifest.config.heads,
            clock=clock,
            parallel=backend.parallel,
        )
        self._batcher = Batcher(backend, self._scheduler, self._fail, hang_s=hang_s, clock=clock)

    async def start(self) -> None:
        """Warm the backend up, off the loop; then calls are answered."""
        await asyncio.to_thread(self._backend.warm_up)
        costs, max_tokens = self._scheduler.costs, self.description.max_tokens
        await asyncio.to_thread(costs.measure, self._backend, max_tokens)
        self.ready = True

    async def classify(
        self, texts: Sequence[str], request: ViewRequest, deadline: float | None
    ) -> list[Prediction]:
        """One prediction a text, in order; `deadline` in seconds on the engine's clock.

        Raises the errors of `service.errors`. Cancelling the caller's task cancels the work.
        """
        if not self.ready:
            raise Unavailable("not serving: starting or stopping")
        self._calls += 1
        self._idle.clear()
        try:
            return await self._classify(texts, request, deadline)
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def _classify(
        self, texts: Sequence[str], request: ViewRequest, deadline: float | None
    ) -> list[Prediction]:
        encodings = await self._encode(texts, request, deadline)
        lengths = [len(encoding.input_ids) for encoding in encodings]
        size = check_answer_bytes(lengths, request, self.description, self._max_answer_bytes)
        if self._held_bytes + size > self._max_held_bytes:
            raise Overloaded(
                f"answers under way hold {self._held_bytes} of {self._max_held_bytes} bytes; this "
                f"one would be {size}",
                retry_after_s=max(LEAST_RETRY_S, self._scheduler.wait_s()),
            )
        self._held_bytes += size
        try:
            return await self._answer(texts, request, deadline, encodings)
        finally:
            self._held_bytes -= size

    async def _answer(
        self,
        texts: Sequence[str],
        request: ViewRequest,
        deadline: float | None,
        encodings: Sequence[Encoding],
    ) -> list[Prediction]:
        entry = Entry([encoding.input_ids for encoding in encodings], request, deadline)
        try:
            await self._batcher.submit(entry)
        except asyncio.CancelledError:
            self._batcher.forget(entry)
            raise
        return _predictions(texts, encodings, entry)

    async def _encode(
        self, texts: Sequence[str], request: ViewRequest, deadline: float | None
    ) -> list[Encoding]:
        """Tokenize, unless what already waits leaves no room or time for it: under overload the
        work of reading what will be refused would be taken from those who are answered."""
        characters = sum(map(len, texts))
        waiting = (self._tokenizing_characters + characters) // CHARACTERS_PER_TOKEN
        compute_s = 0.0
        if self._scheduler.queued_tokens:  # else it is not looked at
            compute_s = self._scheduler.costs.expect_s(request.variant, map(self._guess, texts))
        self._batcher.check(min(waiting, self._scheduler.max_queue_tokens), deadline, compute_s)
        self._tokenizing_characters += characters
        try:
            return await encode(self._tokenizer, texts, offsets=bool(request.views))
        finally:
            self._tokenizing_characters -= characters

    def _guess(self, text: str) -> int:
        """About how many tokens a text has."""
        return min(len(text) // CHARACTERS_PER_TOKEN + 1, self.description.max_tokens)

    @property
    def load(self) -> tuple[int, int, int]:
        """Tokens queued, rows computed and rows answered so far."""
        return (
            self._batcher.queued_tokens,
            self._batcher.computed_rows,
            self._batcher.answered_rows,
        )

    async def drain(self, grace_s: float) -> None:
        """Refuse what is new; wait at most `grace_s` seconds for what is under way."""
        self.ready = False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)

    def close(self) -> None:
        """Fail what is left and let go of all threads."""
        self.ready = False
        self._batcher.close()

    async def wait_closed(self) -> None:
        """Wait until the threads have let go of the backend."""
        await self._batcher.wait_closed()

    def _fail(self) -> None:
        self.ready = False
        self._notify_failure()


def _predictions(
    texts: Sequence[str], encodings: Sequence[Encoding], entry: Entry
) -> list[Prediction]:
    views = bool(entry.request.views)
    return [
        Prediction(
            *entry.results[row],
            truncated=encoding.truncated,
            tokens=_tokens(text, encoding) if views else (),
        )
        for row, (text, encoding) in enumerate(zip(texts, encodings, strict=True))
    ]


def _tokens(text: str, encoding: Encoding) -> list[Token]:
    assert encoding.offsets is not None
    return [Token(text[start:end], start, end) for start, end in encoding.offsets.tolist()]
