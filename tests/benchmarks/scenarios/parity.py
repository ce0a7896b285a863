"""Does the device answer as a CPU does? The largest difference of every output."""

from pathlib import Path

from model.bundle import read_bundle
from service.agreement import differences
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
    there, here = OrtBackend(bundle, device=device, graphs=True), OrtBackend(bundle, device="cpu")
    there.warm_up()
    size, most = bundle.tokenizer.vocab_size, bundle.manifest.max_tokens
    return differences(there, here, size, most, SHAPES, seed)
