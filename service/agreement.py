"""Does a device answer as another does? A GPU can be wrong without an error, and has been."""

from collections.abc import Sequence

import numpy as np

from model.tokenizer import MASK_ID
from service.backend import Backend
from service.types import Variant

Shape = tuple[int, int]


def differences(
    one: Backend,
    other: Backend,
    vocab_size: int,
    max_tokens: int,
    shapes: Sequence[Shape],
    seed: int = 0,
) -> dict[str, float]:
    """The largest difference of any element of each output, NaN where there is no number.

    Both run the same batches of random tokens and random lengths, of `shapes` [B, S] as far as
    `max_tokens` lets, in every variant.
    """
    generator = np.random.default_rng(seed)
    found = dict.fromkeys(Variant.FULL.value, 0.0)
    for rows, width in shapes:
        width = min(width, max_tokens)
        lengths = generator.integers(1, width + 1, rows)
        lengths[0] = width
        mask = (np.arange(width) < lengths[:, None]).astype(np.int64)  # [B, S]
        input_ids = generator.integers(MASK_ID + 1, vocab_size, mask.shape) * mask
        for variant in Variant:
            mine, theirs = (backend.run(input_ids, mask, variant) for backend in (one, other))
            for output in variant.value:
                gaps = np.abs(mine[output] - theirs[output])
                found[output] = float(np.maximum(found[output], gaps.max()))  # NaN stays
    return found
