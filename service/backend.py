"""What computes: one method that turns a padded batch into arrays."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from service.types import IntArray, Variant

Outputs = dict[str, npt.NDArray[np.float32]]


class BackendGone(RuntimeError):
    """The device or the runtime is lost: nothing will ever run on this backend again."""


class Backend(Protocol):
    """Runs batches. `run` is called from worker threads, `parallel` of them at most at a time.

    Of a `prompt` backend a small batch takes as long as expected and no longer, so that it may run
    on the event loop: true of a CPU, not of a device whose driver may hang.
    """

    provider: str
    parallel: int
    prompt: bool

    def warm_up(self) -> None:
        """Run every variant once, so that no caller pays for a first time."""
        ...

    def run(self, input_ids: IntArray, attention_mask: IntArray, variant: Variant) -> Outputs:
        """The variant's outputs, by name, for input_ids and attention_mask [B, S].

        Any exception is a failure of this batch alone, except `BackendGone`.
        """
        ...
