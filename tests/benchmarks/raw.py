"""The raw loop: ONNX Runtime over the same texts with nothing around it. Prints one JSON object.

    python -m tests.benchmarks.raw sorted --bundle service/bundle --threads 2
    python -m tests.benchmarks.raw arriving --bundle service/bundle --threads 2
    python -m tests.benchmarks.raw single --bundle service/bundle --threads 1

`sorted`: tokenize all texts, sort them by length, compute batches of 32, on a GPU of 1,024.
`arriving`: such batches as they come, padded to the longest. `single`: tokenize and compute one
text at a time, with a `pause` after each at the pace of a caller who waits for every answer: a
processor that has been idle computes slower. Each thread computes batches of its own with one
intra-op thread.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from model.bundle import Bundle, read_bundle
from model.graph import extract
from model.tokenizer import PAD_ID
from service.ort_backend import Device, choose_provider, cpu_quota
from service.settings import EMBEDDED_BUNDLE
from service.types import FloatArray, IntArray, Variant
from tests.benchmarks.figures import Figures, per_thousand, percentile, strict
from tests.benchmarks.texts import LENGTHS, chosen

BATCH, GPU_BATCH = 32, 1024  # rows; with fewer a GPU waits for launches
OUTPUTS = list(Variant.PLAIN.value)


class Raw:
    """A bundle's plain graph and its tokenizer; `threads` 0 leaves ONNX Runtime its default."""

    def __init__(self, bundle: Bundle, threads: int, device: Device = "cpu") -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = options.inter_op_num_threads = threads
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = extract(bundle.graph, Variant.PLAIN.value).SerializeToString()
        self.labels = bundle.manifest.labels
        self.batch = GPU_BATCH if device == "cuda" else BATCH
        self._tokenizer = bundle.tokenizer
        self._session = onnxruntime.InferenceSession(
            content, options, providers=[choose_provider(device)]
        )

    def tokenize(self, texts: Sequence[str]) -> list[IntArray]:
        """The ids of each text."""
        return [one.input_ids for one in self._tokenizer.encode_batch(texts, offsets=False)]

    def compute(self, rows: Sequence[IntArray]) -> tuple[FloatArray, FloatArray]:
        """Logits and probabilities [B, C] of rows padded to the longest."""
        input_ids = np.full((len(rows), max(map(len, rows))), PAD_ID, np.int64)
        mask = np.zeros_like(input_ids)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)], mask[i, : len(row)] = row, 1
        logits, probabilities = self._session.run(
            OUTPUTS, {"input_ids": input_ids, "attention_mask": mask}
        )
        return logits, probabilities


def in_batches(raw: Raw, pool: ThreadPoolExecutor, texts: Sequence[str], *, sort: bool) -> None:
    """One pass over all texts."""
    rows = raw.tokenize(texts)
    if sort:
        rows.sort(key=len)
    batches = [rows[first : first + raw.batch] for first in range(0, len(rows), raw.batch)]
    for _ in pool.map(raw.compute, batches):
        pass


def one_by_one(raw: Raw, texts: Iterable[str], until: float, pause: float = 0.0) -> list[float]:
    """A thread's share of single texts until that time, that many seconds apart; the seconds that
    each took, pauses left out."""
    taken = []
    for text in texts:
        started = time.perf_counter()
        raw.compute(raw.tokenize([text]))
        ended = time.perf_counter()
        taken.append(ended - started)
        if ended > until:
            break
        if pause:
            time.sleep(pause)
    return taken


def measure(
    kind: str, raw: Raw, texts: Sequence[str], threads: int, seconds: float, pause: float = 0.0
) -> Figures:
    """Run one kind of loop for about so many seconds, after a warm-up that is not measured."""
    with ThreadPoolExecutor(threads) as pool:
        in_batches(raw, pool, texts[: raw.batch * threads], sort=True)
        cpu_s, started, count = time.process_time(), time.perf_counter(), 0
        taken: list[float] = []
        until = started + seconds
        if kind == "single":
            shares = [itertools.cycle(texts[number::threads]) for number in range(threads)]
            for times in pool.map(lambda share: one_by_one(raw, share, until, pause), shares):
                taken += times
            count = len(taken)
        else:
            while time.perf_counter() < until:
                in_batches(raw, pool, texts, sort=kind == "sorted")
                count += len(texts)
        elapsed, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    return {
        "texts_ok": count,
        "texts_per_s": count / elapsed,
        "cpu_s": cpu_s,
        "cpu_s_per_1000": per_thousand(cpu_s, count),
        "p50_ms": percentile(taken, 0.5) * 1e3,
        "p99_ms": percentile(taken, 0.99) * 1e3,
    }


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.raw", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("kind", choices=("sorted", "arriving", "single"))
    parser.add_argument("--bundle", type=Path, default=EMBEDDED_BUNDLE)
    parser.add_argument("--threads", type=int, default=0, help="default: the CPU quota")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds, after a single text")
    parser.add_argument("--count", type=int, default=1280, help="how many different texts")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="texts, else made ones")
    parser.add_argument("--lengths", choices=LENGTHS, default="reviews", help="of made texts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    texts = chosen(options.texts, options.count, lengths=options.lengths, seed=options.seed)
    raw = Raw(read_bundle(options.bundle), threads=1, device=options.device)
    threads = options.threads or cpu_quota()
    figures = measure(options.kind, raw, texts, threads, options.seconds, options.pause)
    print(json.dumps(strict(figures)))


if __name__ == "__main__":
    main()
