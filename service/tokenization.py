"""Text to ids without holding up the event loop."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from model.tokenizer import Encoding, Tokenizer

# Below this many characters encoding takes less time than handing it to a thread and back.
INLINE_CHARACTERS = 1_000


class Tokenization:
    """A bundle's tokenizer behind one thread; the library frees the interpreter lock there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="realce-tokenize")

    async def encode(self, texts: Sequence[str], *, offsets: bool) -> list[Encoding]:
        """Encode in order; offsets only where asked for."""
        if sum(map(len, texts)) <= INLINE_CHARACTERS:
            return self._tokenizer.encode_batch(texts, offsets=offsets)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._thread, lambda: self._tokenizer.encode_batch(texts, offsets=offsets)
        )

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
