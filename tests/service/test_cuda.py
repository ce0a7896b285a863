import pytest

from model.config import ModelConfig
from service.cuda import FIXED_BYTES, arena_bytes, options

SMALL = ModelConfig(
    vocab_size=100, classes=2, layers=2, d_model=32, heads=4, d_ff=48, max_tokens=64
)


@pytest.mark.parametrize(
    ("tokens", "weights", "expected"),
    [
        # Twice 256 padded tokens of 4 heads x 64 pairs x (4 + 3 x 2), and 16 x 48, in 4 bytes.
        (256, 0, FIXED_BYTES + 512 * (2560 + 768) * 4),
        (512, 0, FIXED_BYTES + 1024 * (2560 + 768) * 4),
        (256, 1000, FIXED_BYTES + 2000 + 512 * (2560 + 768) * 4),
    ],
)
def test_what_a_session_takes_follows_from_its_largest_batch(tokens, weights, expected):
    assert arena_bytes(SMALL, weights, tokens) == expected


@pytest.mark.parametrize("recorded", [True, False])
def test_a_gpu_is_told_the_bound_and_to_compute_in_single_precision(recorded):
    chosen = options(SMALL, 1000, 128, recorded)
    assert chosen["gpu_mem_limit"] == str(arena_bytes(SMALL, 1000, 128))
    assert chosen["use_tf32"] == "0"
    assert chosen["arena_extend_strategy"] == "kSameAsRequested"
    assert chosen.get("enable_cuda_graph") == ("1" if recorded else None)
