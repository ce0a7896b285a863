"""Our server with a backend that counts, does nothing, leaks or stays; all else is as served.

    python -m tests.benchmarks.server --backend null -- --grpc 127.0.0.1:0 --device cpu

What follows `--` goes to `realce serve`. At SIGUSR1 it writes a line `counted` to stderr with
all that has reached the backend so far, and what the server itself says it has answered.
"""

import argparse
import json
import math
import signal
import sys
import threading
from typing import Any

import numpy as np

import service.server
from model.bundle import Bundle
from service.__main__ import main as realce
from service.backend import Outputs
from service.metrics import Metrics
from service.ort_backend import OrtBackend
from service.types import IntArray, Variant

COUNTED = "counted"
COUNTERS = ("batches", "rows", "tokens", "padded_tokens", "engine_answered")
LEAKED_BYTES = 4096  # a row


class Counts:
    """What has reached a backend."""

    def __init__(self) -> None:
        self.rows = self.batches = self.tokens = self.padded_tokens = 0
        self._lock = threading.Lock()

    def add(self, attention_mask: IntArray) -> None:
        """One batch."""
        with self._lock:
            self.batches += 1
            self.rows += len(attention_mask)
            self.tokens += int(attention_mask.sum())
            self.padded_tokens += attention_mask.size

    def all(self) -> dict[str, int]:
        """All of them, by name."""
        return {name: getattr(self, name) for name in COUNTERS[:-1]}


class CountingBackend(OrtBackend):
    """The real one, which counts."""

    counts = Counts()

    def run(self, input_ids: IntArray, attention_mask: IntArray, variant: Variant) -> Outputs:
        """See `Backend.run`."""
        self.counts.add(attention_mask)
        return super().run(input_ids, attention_mask, variant)


class LeakingBackend(CountingBackend):
    """The real one, which never lets go of a little of every row."""

    leaked: list[bytes] = []  # noqa: RUF012 - it is to outlive everything

    def run(self, input_ids: IntArray, attention_mask: IntArray, variant: Variant) -> Outputs:
        """See `Backend.run`."""
        self.leaked.append(b"\x01" * (LEAKED_BYTES * len(input_ids)))
        return super().run(input_ids, attention_mask, variant)


class HoardingBackend(CountingBackend):
    """The real one, which is kept when another takes its place."""

    kept: list[CountingBackend] = []  # noqa: RUF012 - it is to outlive everything

    def __init__(self, bundle: Bundle, **options: Any) -> None:
        super().__init__(bundle, **options)
        self.kept.append(self)


class NullBackend(CountingBackend):
    """Answers at once, the same to all: what is left is the cost of everything else."""

    def __init__(self, bundle: Bundle, **options: Any) -> None:
        super().__init__(bundle, **options)
        ids = np.ones((1, 1), np.int64)
        self._one = {v: super(CountingBackend, self).run(ids, ids, v) for v in Variant}
        self._made: dict[tuple[Variant, int, int], Outputs] = {}
        self._unproven = None  # it answers as no device does

    def run(self, input_ids: IntArray, attention_mask: IntArray, variant: Variant) -> Outputs:
        """See `Backend.run`."""
        rows, width = input_ids.shape
        self.counts.add(attention_mask)
        if variant is Variant.PLAIN:
            width = 1  # whatever it is, the outputs are the same
        if (outputs := self._made.get((variant, rows, width))) is None:
            # Axes after B that are S have length 1 here.
            outputs = self._made[variant, rows, width] = {
                name: np.broadcast_to(value, [rows, *(s if s > 1 else width for s in axes)])
                for name, value in self._one[variant].items()
                for axes in [value.shape[1:]]
            }
        return outputs


BACKENDS: dict[str, type[CountingBackend]] = {
    "counting": CountingBackend,
    "leaking": LeakingBackend,
    "hoarding": HoardingBackend,
    "null": NullBackend,
}


class NotedMetrics(Metrics):
    """The server's own, noted where they can be asked."""

    made: list[Metrics] = []  # noqa: RUF012 - of all servers of the process

    def __init__(self) -> None:
        super().__init__()
        self.made.append(self)

    @classmethod
    def answered(cls) -> int:
        """Rows whose caller was still there."""
        name = "realce_answered_rows_total"
        return int(sum(one.registry.get_sample_value(name) or 0 for one in cls.made))


def padding(before: dict[str, int], after: dict[str, int]) -> dict[str, float]:
    """The share of the tokens computed in between that was padding."""
    computed = after["padded_tokens"] - before["padded_tokens"]
    real = after["tokens"] - before["tokens"]
    return {"padding_share": 1 - real / computed if computed else math.nan}


def main() -> int:
    """Serve until SIGTERM, as `realce serve` does."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.server", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--backend", choices=BACKENDS, default="counting")
    parser.add_argument("flags", nargs="*", help="of realce serve")
    options = parser.parse_args()
    module: Any = service.server
    module.OrtBackend, module.Metrics = BACKENDS[options.backend], NotedMetrics

    def tell(*_: object) -> None:
        line = CountingBackend.counts.all()
        line["engine_answered"] = NotedMetrics.answered()
        print(json.dumps({"event": COUNTED, **line}), file=sys.stderr, flush=True)

    signal.signal(signal.SIGUSR1, tell)
    return realce(["serve", *options.flags])


if __name__ == "__main__":
    sys.exit(main())
