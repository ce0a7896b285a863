"""Text to ids without holding up the event loop."""

import asyncio
import time
from collections.abc import Sequence

from model.tokenizer import Encoding, Tokenizer

SLICE_S = 2e-3  # of reading, after which others have their turn


async def encode(tokenizer: Tokenizer, texts: Sequence[str], *, offsets: bool) -> list[Encoding]:
    """Encode in order; offsets only where asked for."""
    encodings, began = [], time.perf_counter()
    for text in texts:
        encodings.append(tokenizer.encode(text, offsets=offsets))
        if time.perf_counter() - began > SLICE_S:
            await asyncio.sleep(0)
            began = time.perf_counter()
    return encodings
