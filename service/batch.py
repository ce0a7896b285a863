"""What waits and what runs: a call's rows, and the rows of several calls computed together."""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from model.tokenizer import PAD_ID
from service.types import NO_VIEWS, IntArray, Result, Variant, ViewRequest


@dataclass(slots=True, eq=False)
class Entry:
    """One call of n rows, and what has come of it so far.

    `input_ids` holds n arrays [S]; `deadline`, `queued_at` and `begun_at` (of its last row) are on
    the scheduler's clock, in seconds. `results`, by row, fill as batches return. Its future belongs
    to the batcher alone, which sets it when `missing` is 0. What still waits of it belongs to the
    scheduler: `waiting` holds rows at the front by their length, `later` those behind, and `turn`
    counts those at the front or running.
    """

    input_ids: list[IntArray]
    request: ViewRequest = NO_VIEWS
    deadline: float | None = None
    queued_at: float = 0.0
    begun_at: float = 0.0
    future: "asyncio.Future[Entry] | None" = None
    results: dict[int, Result] = field(default_factory=dict)
    missing: int = 0
    waiting: dict[int, list[int]] = field(default_factory=dict)
    later: deque[int] = field(default_factory=deque)
    turn: int = 0
    waiting_tokens: int = 0
    waiting_s: float = 0.0

    @property
    def abandoned(self) -> bool:
        """True when nobody waits for it any more: answered, failed or cancelled."""
        return self.future is not None and self.future.done()


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that run together: for each entry some of its rows, in this order along B."""

    variant: Variant
    parts: list[tuple[Entry, list[int]]]

    @property
    def rows(self) -> int:
        """B."""
        return sum(len(rows) for _, rows in self.parts)

    def lengths(self) -> Iterator[int]:
        """Tokens of each row, without padding."""
        return (len(entry.input_ids[row]) for entry, rows in self.parts for row in rows)

    def arrays(self) -> tuple[IntArray, IntArray]:
        """input_ids and attention_mask [B, S], S being the longest row."""
        entry, rows = self.parts[0]
        if self.rows == 1:  # most calls alone are, and need no padding
            ids = entry.input_ids[rows[0]][None]
            return ids, np.ones_like(ids)
        lengths = np.fromiter(self.lengths(), dtype=np.int64)
        real = np.arange(lengths.max()) < lengths[:, None]  # [B, S]
        input_ids = np.full(real.shape, PAD_ID, dtype=np.int64)
        input_ids[real] = np.concatenate(
            [entry.input_ids[row] for entry, rows in self.parts for row in rows]
        )
        return input_ids, real.astype(np.int64)

    def halves(self) -> tuple["Batch", "Batch"]:
        """The same rows in two batches, for finding the one that fails."""
        flat = [(entry, row) for entry, rows in self.parts for row in rows]
        middle = len(flat) // 2
        return self._of(flat[:middle]), self._of(flat[middle:])

    def _of(self, flat: list[tuple[Entry, int]]) -> "Batch":
        return Batch(self.variant, [(entry, [row]) for entry, row in flat])
