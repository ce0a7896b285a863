"""What explanations cost: CPU, latency and bytes, by what was asked for."""

from collections.abc import Callable
from functools import partial
from typing import Any

from model.bundle import Bundle, read_bundle
from model.config import ModelConfig
from tests.benchmarks.bench import Bench, Key, Phase
from tests.benchmarks.figures import Figures
from tests.benchmarks.report import Result
from tests.benchmarks.texts import chosen

CALLERS = 16
PLAIN = "plain"
LOADS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "contributions": {"views": ["contributions"]},
    "all but attentions": {"views": ["evidence", "contributions", "pooling_attention"]},
    "attentions": {"views": ["attentions"]},
    "attentions, float16": {"views": ["attentions"], "half": True},
}
SHOWN: tuple[str, ...] = (
    "texts_per_s",
    "cpu_s_per_1000",
    "times_plain",
    "p50_ms",
    "p99_ms",
    "bytes_per_text",
)
SHOWN += ("tensor_bytes", "rss_mb")


def run(bench: Bench) -> Result:
    """The same texts with each set of views."""
    name, folder = bench.first
    bundle = read_bundle(folder)
    lengths = token_counts(bench, bundle)
    with bench.serve(folder) as server:
        bench.warm_up(server, views=["attentions"])

        def measure(flags: dict[str, Any]) -> Figures:
            figures = bench.measure(server, "closed", callers=CALLERS, **flags)
            return figures | {"tensor_bytes": tensor_bytes(bundle.manifest.config, lengths, flags)}

        phases: dict[Key, Phase] = {
            ("realce", name, load): partial(measure, flags) for load, flags in LOADS.items()
        }
        result = Result("views", bench.interleave(phases), SHOWN)
    result.relate("times_plain", "cpu_s_per_1000", "realce", PLAIN)
    result.notes.append(f"{CALLERS} callers of one text; tensor bytes by shapes and element type")
    return result


def token_counts(bench: Bench, bundle: Bundle) -> list[int]:
    """How many tokens each text has."""
    options = bench.options
    texts = chosen(options.texts, options.count, seed=options.seed)
    encodings = bundle.tokenizer.encode_batch(texts, offsets=False)
    return [len(one.input_ids) for one in encodings]


def tensor_bytes(config: ModelConfig, lengths: list[int], flags: dict[str, Any]) -> float:
    """Bytes of the tensors asked for, a text: what the wire cannot do without."""
    elements: dict[str, Callable[[int], int]] = {
        "evidence": lambda s: s * config.classes,
        "contributions": lambda s: s * config.classes,
        "pooling_attention": lambda s: config.heads * s,
        "attentions": lambda s: config.layers * config.heads * s * s,
    }
    views = flags.get("views", [])
    assert isinstance(views, list)
    size = 2 if flags.get("half") else 4
    return size * sum(elements[view](s) for view in views for s in lengths) / len(lengths)
