"""What a batch costs: seconds for each padded token, by variant and width, as measured."""

import math
import time

import numpy as np

from model.tokenizer import UNK_ID
from service.backend import Backend
from service.types import Variant

# A run costs about as much as 8 to 16 short tokens before it computes anything, so short rows may
# be padded by up to 8; from 32 tokens on each bucket's longest is a quarter above its shortest.
BUCKET_TOKENS, BUCKET_RATIO, EVEN_UP_TO = 8, 1.25, 32
MEASURED_SHAPES = ((1, 16), (4, 64))
MEMORY = 0.9  # weight of what was known before, against one new measurement


def bucket(length: int) -> int:
    """Number of the bucket of like lengths that `length` tokens belong to."""
    if length <= EVEN_UP_TO:
        return math.ceil(length / BUCKET_TOKENS)
    even = EVEN_UP_TO // BUCKET_TOKENS
    return even + math.ceil(math.log(length / EVEN_UP_TO, BUCKET_RATIO))


class CostTable:
    """Learns from every batch. Views cost several times a plain answer, and more by the length."""

    def __init__(self) -> None:
        self._known: dict[Variant, dict[int, float]] = {variant: {} for variant in Variant}

    def measure(self, backend: Backend) -> None:
        """Time a backend that is warm, each variant at a few shapes, the faster of two runs."""
        for variant in Variant:
            for rows, width in MEASURED_SHAPES:
                input_ids = np.full((rows, width), UNK_ID, dtype=np.int64)
                taken_s = []
                for _ in range(2):
                    started = time.perf_counter()
                    backend.run(input_ids, np.ones_like(input_ids), variant)
                    taken_s.append(time.perf_counter() - started)
                self.observe(variant, rows, width, min(taken_s))

    def observe(self, variant: Variant, rows: int, width: int, seconds: float) -> None:
        """Learn that a batch [rows, width] took `seconds`."""
        measured, number = seconds / (rows * width), bucket(width)
        known = self._known[variant].get(number, measured)
        self._known[variant][number] = MEMORY * known + (1 - MEMORY) * measured

    def seconds_per_token(self, variant: Variant, number: int) -> float:
        """In bucket `number`, or in the nearest that has been measured; 0 while none has been."""
        known = self._known[variant]
        if number in known:
            return known[number]
        return known[min(known, key=lambda other: abs(other - number))] if known else 0.0
