"""What a run's steps came to since one last looked."""

import math
import time

import torch

from training.data.batches import TrainingBatch
from training.loop.objectives import Outcome


class Meter:
    """Loss, accuracy and speed since it was last read."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        # Sums of a GPU stay there until someone reads them: each look waits for it.
        self.loss_sum: torch.Tensor | float = 0.0
        self.correct: torch.Tensor | int = 0
        self.seen, self.texts, self.steps = 0, 0, 0
        self.since_s = time.monotonic()

    def add(self, outcome: Outcome, batch: TrainingBatch) -> None:
        """Count one step."""
        share = len(batch.targets) / batch.rows
        self.loss_sum = self.loss_sum + outcome.loss.detach() / max(share, 1e-9)
        self.correct = self.correct + outcome.right
        self.seen += outcome.seen
        self.texts += batch.rows
        self.steps += 1

    def read(self) -> dict[str, float]:
        """Means so far, nothing reset."""
        elapsed_s = max(time.monotonic() - self.since_s, 1e-9)
        return {
            "loss": float(self.loss_sum) / self.steps if self.steps else math.nan,
            "train_accuracy": int(self.correct) / max(self.seen, 1),
            "texts_per_s": self.texts / elapsed_s,
        }

    def take(self) -> dict[str, float]:
        """Means so far; counting begins anew."""
        values = self.read()
        self._reset()
        return values
