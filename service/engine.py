"""From texts to predictions: tokenize, admit, compute, cut. Knows nothing of gRPC."""

import asyncio
import time
from collections.abc import Callable, Sequence

from model.bundle import Bundle
from model.tokenizer import Encoding
from service.backend import Backend
from service.batch import Entry
from service.batcher import Batcher
from service.errors import Overloaded, Unavailable
from service.metrics import Metrics
from service.room import Hold, Room
from service.scheduler import LEAST_RETRY_S, Scheduler
from service.tokenization import encode
from service.types import ModelDescription, Prediction, Token, ViewRequest
from service.underway import UnderWay
from service.views import check_answer_bytes

CHARACTERS_PER_TOKEN = 4  # for refusing what is plainly too much before it is tokenized


class Engine:
    """One bundle in service; made on the loop that will call it.

    `room` is what answers under way may hold, and `metrics` counts what comes of calls; both are
    shared with other engines. `on_failure` is called on the loop when the backend is gone for good;
    from then on every call fails with `Unavailable`.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        max_batch_tokens: int = 2048,
        max_queue_tokens: int = 131_072,
        max_answer_bytes: int = 64 << 20,
        room: Room | None = None,
        metrics: Metrics | None = None,
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
        self._max_answer_bytes = max_answer_bytes
        self.room = room or Room(128 << 20)
        self._metrics = metrics or Metrics()
        self._notify_failure = on_failure
        self._tokenizer = bundle.tokenizer
        self._reading_tokens = 0  # about, of calls that are being read
        self._under_way = UnderWay()
        self._scheduler = Scheduler(
            max_batch_tokens=max_batch_tokens,
            max_queue_tokens=max_queue_tokens,
            attention_maps=manifest.config.layers * manifest.config.heads,
            clock=clock,
            parallel=backend.parallel,
        )
        self._batcher = Batcher(
            backend,
            self._scheduler,
            self._fail,
            metrics=self._metrics,
            hang_s=hang_s,
            clock=clock,
        )

    async def start(self) -> None:
        """Warm the backend up, off the loop; then calls are answered."""
        await asyncio.to_thread(self._backend.warm_up)
        costs, max_tokens = self._scheduler.costs, self.description.max_tokens
        await asyncio.to_thread(costs.measure, self._backend, max_tokens)
        self.ready = True

    async def classify(
        self,
        texts: Sequence[str],
        request: ViewRequest,
        deadline: float | None,
        hold: Hold | None = None,
        on_queued: Callable[[], None] | None = None,
    ) -> list[Prediction]:
        """One prediction a text, in order; `deadline` in seconds on the engine's clock.

        What the answers take of the room is in `hold` when they are returned, and its owner's to
        release; without one it is given back. `on_queued` is called once nothing can refuse the
        call any more. Raises the errors of `service.errors`. Cancelling the caller's task cancels
        the work.
        """
        if not self.ready:
            raise Unavailable("not serving: starting, stopped, or its device is gone")
        own = Hold(self.room) if hold is None else hold
        with self._under_way:
            try:
                return await self._classify(texts, request, deadline, own, on_queued)
            except BaseException:
                own.release()
                raise
            finally:
                if hold is None:
                    own.release()

    async def _classify(
        self,
        texts: Sequence[str],
        request: ViewRequest,
        deadline: float | None,
        hold: Hold,
        on_queued: Callable[[], None] | None,
    ) -> list[Prediction]:
        encodings = await self._encode(texts, request, deadline)
        lengths = [len(encoding.input_ids) for encoding in encodings]
        size = check_answer_bytes(lengths, request, self.description, self._max_answer_bytes)
        if not hold.take(size):
            raise Overloaded(
                f"answers under way hold {self.room.held} of {self.room.most} bytes; this one "
                f"would be {size}",
                retry_after_s=max(LEAST_RETRY_S, self._scheduler.wait_s()),
            )
        entry = Entry([encoding.input_ids for encoding in encodings], request, deadline)
        computed = self._batcher.submit(entry)
        if on_queued is not None:
            on_queued()
        try:
            await computed
        except asyncio.CancelledError:
            self._batcher.forget(entry)
            raise
        return _predictions(texts, encodings, entry)

    async def _encode(
        self, texts: Sequence[str], request: ViewRequest, deadline: float | None
    ) -> list[Encoding]:
        """Tokenize, unless what already waits leaves no room or time for it: under overload the
        work of reading what will be refused would be taken from those who are answered."""
        guesses = list(map(self._guess, texts))
        tokens, compute_s = sum(guesses), 0.0
        if self._scheduler.queued_tokens:  # else it is not looked at
            compute_s = self._scheduler.costs.expect_s(request.variant, guesses)
        waiting = min(self._reading_tokens + tokens, self._scheduler.max_queue_tokens)
        self._batcher.check(waiting, deadline, compute_s)
        self._reading_tokens += tokens
        try:
            with self._metrics.tokenize_s.time():
                return await encode(self._tokenizer, texts, offsets=bool(request.views))
        finally:
            self._reading_tokens -= tokens

    def _guess(self, text: str) -> int:
        """About how many tokens a text has."""
        return min(len(text) // CHARACTERS_PER_TOKEN + 1, self.description.max_tokens)

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait to be computed."""
        return self._batcher.queued_tokens

    async def wait_idle(self) -> None:
        """Wait until no call is under way."""
        await self._under_way.wait_idle()

    def close(self) -> None:
        """Refuse what is new, fail what is under way and let go of all threads."""
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
