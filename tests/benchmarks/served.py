"""Server CPU-seconds per 1,000 answers against a raw ONNX Runtime loop over the same texts.

    python -m tests.benchmarks.served [--bundle DIR] [--rounds 3] [--texts 1280]

Each round runs, one after another: the raw loop (tokenization included, batches of 32 sorted by
length, one thread), 64 callers of one text each, and calls of 64 texts. The server is a process of
its own; its CPU time is read from the operating system. Prints one table of medians.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import psutil

from model.bundle import Bundle, read_bundle
from service.client import AsyncClassifier
from service.ort_backend import extract
from service.settings import EMBEDDED_BUNDLE
from service.types import Variant

CALLERS = 64
BATCH = 32


def sample_texts(count: int) -> list[str]:
    """Texts of 3 to 120 words, made of words that reviews use; the same every time."""
    words = [
        "the",
        "film",
        "was",
        "not",
        "good",
        "but",
        "the",
        "story",
        "is",
        "great",
        "não",
        "gostei",
        "do",
        "produto",
        "muito",
        "bom",
    ]
    generator = np.random.default_rng(0)
    lengths = np.minimum(3 + generator.exponential(18, count).astype(int), 120)
    return [" ".join(generator.choice(words, length)) for length in lengths]


def raw(bundle: Bundle, session: onnxruntime.InferenceSession, texts: list[str]) -> float:
    """CPU-seconds of the raw loop over all texts."""
    started = time.process_time()
    ids = [e.input_ids for e in bundle.tokenizer.encode_batch(texts, offsets=False)]
    ids.sort(key=len)
    for first in range(0, len(ids), BATCH):
        rows = ids[first : first + BATCH]
        input_ids = np.zeros((len(rows), len(rows[-1])), np.int64)
        mask = np.zeros_like(input_ids)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)], mask[i, : len(row)] = row, 1
        session.run(None, {"input_ids": input_ids, "attention_mask": mask})
    return time.process_time() - started


async def load(target: str, texts: list[str], per_call: int) -> None:
    """Send all texts, `per_call` at a time: one at a time by 64 callers, else by two."""
    calls = [texts[i : i + per_call] for i in range(0, len(texts), per_call)]
    callers = CALLERS if per_call == 1 else 2
    async with AsyncClassifier(target, timeout_s=60) as client:

        async def caller(number: int) -> None:
            for call in calls[number::callers]:
                await client.classify(call)

        await asyncio.gather(*(caller(number) for number in range(callers)))


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=EMBEDDED_BUNDLE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=1280)
    options = parser.parse_args()
    bundle, texts = read_bundle(options.bundle), sample_texts(options.texts)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    content = extract(bundle.graph, Variant.PLAIN.value).SerializeToString()
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    command = [sys.executable, "-m", "service", "serve", "--grpc", "127.0.0.1:0"]
    command += ["--bundle", str(options.bundle), "--device", "cpu"]
    figures: dict[str, list[float]] = {"raw loop": [], "64 callers": [], "calls of 64": []}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        target = json.loads(process.stderr.readline())["address"]
        server = psutil.Process(process.pid)

        def cpu() -> float:
            times = server.cpu_times()
            return times.user + times.system

        try:
            for _ in range(options.rounds):
                figures["raw loop"].append(raw(bundle, session, texts))
                for name, per_call in (("64 callers", 1), ("calls of 64", 64)):
                    before = cpu()
                    asyncio.run(load(target, texts, per_call))
                    figures[name].append(cpu() - before)
        finally:
            process.terminate()
    baseline = statistics.median(figures["raw loop"])
    print(f"{'':12} CPU-s per 1,000   against raw")
    for name, values in figures.items():
        median = statistics.median(values)
        print(f"{name:12} {median / len(texts) * 1000:15.2f} {median / baseline:13.2f}")


if __name__ == "__main__":
    main()
