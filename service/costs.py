"""What a batch costs: seconds by variant, rows and width, as measured on this very machine.

A batch [B, S] takes a + B (b S + c S²): a for every run whatever is in it, b for what is done token
by token, c for attention. The three are measured for each variant once the backend is warm.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from model.tokenizer import UNK_ID
from service.backend import Backend
from service.types import Variant

NARROW, WIDE = 8, 256  # tokens; where every run costs alike, and where attention shows
MEMORY = 0.9  # share of what was seen before that still counts once a batch more is seen


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one variant, in seconds: of a run, of a token in it, and of a pair of tokens of a row."""

    run_s: float = 0.0
    token_s: float = 0.0
    pair_s: float = 0.0

    def row_s(self, width: int) -> float:
        """A row padded to `width` tokens, beside the run's own cost."""
        return width * (self.token_s + width * self.pair_s)


FREE = Cost()


class CostTable:
    """Costs as measured at start, and how much longer it takes under the load of the moment."""

    def __init__(self, costs: Mapping[Variant, Cost] | None = None) -> None:
        self._costs = dict(costs or {})
        # Sums, as a mean of ratios would hang on the smallest batches.
        self._taken_s = dict.fromkeys(Variant, 0.0)
        self._rows_s = dict.fromkeys(Variant, 0.0)

    def measure(self, backend: Backend, max_tokens: int) -> None:
        """Time a backend that is warm and reads `max_tokens`: each variant at three shapes."""
        wide = min(WIDE, max_tokens)
        shapes = ((1, min(NARROW, wide)), (4, wide // 4), (1, wide))
        shares = [[1, rows * width, rows * width**2] for rows, width in shapes]
        for variant in Variant:
            taken_s = [_time(backend, variant, *shape) for shape in shapes]
            # Where all texts are short, shapes tell less than three costs. Noise can push a small
            # share below nothing; it is nothing then.
            solved, *_ = np.linalg.lstsq(shares, taken_s)
            run_s, token_s, pair_s = solved.clip(min=0.0).tolist()
            self._costs[variant] = Cost(run_s, token_s, pair_s)
            for (rows, width), seconds in zip(shapes, taken_s, strict=True):
                self.observe(variant, [width] * rows, seconds)

    def of(self, variant: Variant) -> Cost:
        """As measured; free of cost while it has not been."""
        return self._costs.get(variant, FREE)

    def pace(self, variant: Variant) -> float:
        """What is taken lately for each second that rows alone, without padding, would cost."""
        return self._taken_s[variant] / self._rows_s[variant] if self._rows_s[variant] else 1.0

    def expect_s(self, variant: Variant, lengths: Iterable[int]) -> float:
        """What rows of these lengths will take among others, by the pace of late."""
        return sum(map(self.of(variant).row_s, lengths)) * self.pace(variant)

    def observe(self, variant: Variant, lengths: Iterable[int], taken_s: float) -> None:
        """Learn that a batch with rows of these lengths took `taken_s`."""
        rows_s = sum(map(self.of(variant).row_s, lengths))
        self._rows_s[variant] = MEMORY * self._rows_s[variant] + rows_s
        self._taken_s[variant] = MEMORY * self._taken_s[variant] + taken_s


def _time(backend: Backend, variant: Variant, rows: int, width: int) -> float:
    """Seconds of a batch, the faster of two: other work on the machine only ever adds."""
    input_ids = np.full((rows, width), UNK_ID, dtype=np.int64)
    mask = np.ones_like(input_ids)
    taken_s = []
    for _ in range(2):
        started = time.perf_counter()
        backend.run(input_ids, mask, variant)
        taken_s.append(time.perf_counter() - started)
    return min(taken_s)
