"""What fewer bits a weight cost in right answers, and what they save; for several bundles also what
a size buys.

    python -m tests.benchmarks precision --texts reviews.csv --bundles embedded other/bundle

The CSV has the columns `text` and `label`, a class by name or by number. float16 is a way to store:
the arithmetic stays float32. int8 quantises matrices by row and what they meet on the way (dynamic
quantisation of ONNX Runtime).
"""

import copy
import csv
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from model.bundle import read_bundle
from model.graph import extract
from service.types import IntArray, Variant
from tests.benchmarks.bench import Bench, Key, Phase
from tests.benchmarks.figures import Figures
from tests.benchmarks.process import ProcessFailed
from tests.benchmarks.raw import BATCH, Raw
from tests.benchmarks.report import Result
from tests.benchmarks.texts import opened
from training.release.export import SMALLEST_HALVED, store_halved

SHOWN = ("accuracy", "cpu_ms", "size_mb")


def run(bench: Bench) -> Result:
    """Accuracy, CPU time and size of each bundle at each precision, in turns."""
    path = bench.options.texts
    if path is None:
        raise ProcessFailed("--texts: precision needs a CSV with the columns text and label")
    phases: dict[Key, Phase] = {}
    for name, folder in bench.bundles.items():
        bundle = read_bundle(folder)
        rows = labelled(path, bundle.manifest.labels, bench.options.count, bench.options.seed)
        for precision, graph in precisions(bundle.graph).items():
            raw = Raw(replace(bundle, graph=graph), threads=1, device=bench.options.device)
            size = extract(graph, Variant.PLAIN.value).ByteSize() / 1e6
            phases[precision, name, path.name] = partial(measure, raw, *rows, size)
    return Result("precision", bench.interleave(phases), SHOWN)


def labelled(
    path: Path, labels: Sequence[str], count: int, seed: int
) -> tuple[list[str], IntArray]:
    """At most `count` texts [N] of a CSV and their classes [N]. Raises `ProcessFailed`."""
    number = {name: i for i, name in enumerate(labels)} | {str(i): i for i in range(len(labels))}
    with opened(path) as file:
        rows = list(csv.DictReader(file))
    unknown = {row.get("label") for row in rows if row.get("label") not in number}
    if unknown:
        raise ProcessFailed(f"--texts {path}: label {unknown.pop()!r} is none of {list(labels)}")
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    drawn = [rows[i] for i in chosen]
    return [row["text"] for row in drawn], np.array([number[row["label"]] for row in drawn])


def precisions(graph: onnx.ModelProto) -> dict[str, onnx.ModelProto]:
    """The graph as it is, and with fewer bits a weight."""
    full = widened(graph)
    kept = {"float16": graph} if full != graph else {"float32": graph, "float16": halved(graph)}
    return {**kept, "int8": quantised(full)}


def widened(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with weights stored in float32, as it computes."""
    wide = copy.deepcopy(graph)
    tensors = {tensor.name: tensor for tensor in wide.graph.initializer}
    kept = []
    for node in wide.graph.node:
        tensor = tensors.get(node.input[0]) if node.op_type == "Cast" else None
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT16:
            kept.append(node)
            continue
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, node.output[0]))
    del wide.graph.node[:]
    wide.graph.node.extend(kept)
    return wide


def halved(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with large weights rounded to float16 and stored so."""
    half = copy.deepcopy(graph)
    for tensor in half.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= SMALLEST_HALVED:
            rounded = values.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    store_halved(half)
    return half


def quantised(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph of the plain answer with matrices and tables in int8."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        logger = logging.getLogger()
        level = logger.level
        logger.setLevel(logging.ERROR)  # it asks for pre-processing that this graph had
        try:
            quantize_dynamic(
                extract(graph, Variant.PLAIN.value),
                path,
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
        finally:
            logger.setLevel(level)
        return onnx.load(path)


def measure(raw: Raw, texts: Sequence[str], classes: IntArray, size_mb: float) -> Figures:
    """One pass over texts [N] of known classes [N], batches of like length on one thread."""
    rows = raw.tokenize(texts)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    right, began = 0, time.process_time()
    for first in range(0, len(order), BATCH):
        batch = order[first : first + BATCH]
        logits, _ = raw.compute([rows[i] for i in batch])
        right += int((logits.argmax(axis=1) == classes[batch]).sum())
    seconds = time.process_time() - began
    return {
        "accuracy": right / len(rows),
        "cpu_ms": seconds / len(rows) * 1000,
        "size_mb": size_mb,
    }
