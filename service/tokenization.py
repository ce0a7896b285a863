"""Text to ids without holding up the event loop."""

import asyncio
import time
from collections.abc import Sequence

from model.tokenizer import Encoding, Tokenizer

SLICE_S = 2e-3  # of reading, after which others have their turn
LONG = 5  # slices in one text, for which others are given as long: a call takes several turns


async def encode(tokenizer: Tokenizer, texts: Sequence[str], *, offsets: bool) -> list[Encoding]:
    """Encode in order; offsets only where asked for."""
    encodings, began = [], time.perf_counter()
    for text in texts:
        encodings.append(tokenizer.encode(text, offsets=offsets))
        took_s = time.perf_counter() - began
        if took_s > SLICE_S:
            await asyncio.sleep(took_s if took_s > LONG * SLICE_S else 0)
            began = time.perf_counter()
    return encodings
