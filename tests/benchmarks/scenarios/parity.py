"""Does the device answer as a CPU does? The largest difference of every output."""

from pathlib import Path

import numpy as np

from model.bundle import read_bundle
from service.ort_backend import Device, OrtBackend
from service.types import Variant
from tests.benchmarks.bench import Bench
from tests.benchmarks.figures import Figures
from tests.benchmarks.report import Result, Row

SHAPES = ((1, 1), (1, 7), (3, 16), (8, 64), (32, 128), (2, 512))  # B, S
SHOWN: tuple[str, ...] = Variant.FULL.value


def run(bench: Bench) -> Result:
    """The same batches on both, padded and not, for each bundle."""
    device = bench.options.device
    rows = []
    for name, folder in bench.bundles.items():
        rows.append(Row("realce", name, f"{device} against cpu"))
        rows[-1].rounds.append(compare(folder, device, bench.texts["seed"]))
    result = Result("parity", rows, SHOWN)
    result.notes.append("largest difference of any element")
    return result


def compare(folder: Path, device: Device, seed: int) -> Figures:
    """By output."""
    bundle = read_bundle(folder)
    here, there = (OrtBackend(bundle, device=kind) for kind in ("cpu", device))
    generator = np.random.default_rng(seed)
    gaps = dict.fromkeys(SHOWN, 0.0)
    for rows, width in SHAPES:
        width = min(width, bundle.manifest.max_tokens)
        lengths = generator.integers(1, width + 1, rows)
        lengths[0] = width
        mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
        ids = generator.integers(3, bundle.tokenizer.vocab_size, mask.shape) * mask
        for variant in Variant:
            expected, got = (one.run(ids, mask, variant) for one in (here, there))
            for output in variant.value:
                gap = float(np.abs(got[output] - expected[output]).max(initial=0))
                gaps[output] = max(gaps[output], gap)
    return gaps
