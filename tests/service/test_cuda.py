import pytest

from model.config import ModelConfig
from service.cuda import FIXED_BYTES, arena_bytes, options

SMALL = ModelConfig(
    vocab_size=100, classes=2, layers=2, d_model=32, heads=4, d_ff=48, max_tokens=64
)


@pytest.mark.parametrize(
    ("tokens", "weights", "expected"),
    [
        # Twice 2 x 128 padded tokens of 4 heads x 64 pairs x (4 + 3 x 2), and 16 x 48, in 4 bytes.
        (128, 0, FIXED_BYTES + 512 * (2560 + 768) * 4),
        (256, 0, FIXED_BYTES + 1024 * (2560 + 768) * 4),
        (128, 1000, FIXED_BYTES + 2000 + 512 * (2560 + 768) * 4),
    ],
)
def test_what_a_session_takes_follows_from_its_largest_batch(tokens, weights, expected):
    assert arena_bytes(SMALL, weights, tokens) == expected


def test_the_bound_is_told_where_there_is_one():
    assert "gpu_mem_limit" not in options(SMALL, 0, None, recorded=False)
    bounded = options(SMALL, 1000, 128, recorded=False)
    assert bounded["gpu_mem_limit"] == str(arena_bytes(SMALL, 1000, 128))
    assert "enable_cuda_graph" not in bounded


def test_single_precision_and_an_arena_that_takes_what_is_asked_for_whatever_else():
    for recorded in (True, False):
        chosen = options(SMALL, 0, None, recorded)
        assert chosen["use_tf32"] == "0"
        assert chosen["arena_extend_strategy"] == "kSameAsRequested"
        assert chosen.get("enable_cuda_graph") == ("1" if recorded else None)
