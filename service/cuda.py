"""What ONNX Runtime is told of a GPU, and how much of it a session may take."""

from model.config import ModelConfig

FLOAT_BYTES = 4
FIXED_BYTES = 128 << 20  # what there is whatever the batch: weights' copies, workspaces
# What lives at once of a batch, as measured on an H200 in batches that grow: tensors of all pairs
# of tokens, and for each layer, whose attention waits for its account; tensors of the tokens.
PAIRS, PAIRS_OF_LAYER, TOKENS = 4, 3, 16
PARALLEL = 2  # one runs while the next is made ready, and unless recorded at times both run


def options(config: ModelConfig, weights: int, batch_tokens: int, recorded: bool) -> dict[str, str]:
    """The execution provider's, for a session of one graph of `weights` bytes and batches of up to
    `batch_tokens`, padding included, which bound what it takes of the device."""
    chosen = {
        # An arena that doubles would take the whole device for what is bounded.
        "arena_extend_strategy": "kSameAsRequested",
        # Ten bits of mantissa save a third at most, and cost the account three digits.
        "use_tf32": "0",
        "gpu_mem_limit": str(arena_bytes(config, weights, batch_tokens)),
    }
    if recorded:
        chosen["enable_cuda_graph"] = "1"
    return chosen


def arena_bytes(config: ModelConfig, weights: int, batch_tokens: int) -> int:
    """The most that a session of one graph of `weights` bytes takes of a device.

    A batch that would take more fails alone, and is tried again by halves.
    """
    pairs = config.heads * config.max_tokens * (PAIRS + PAIRS_OF_LAYER * config.layers)
    tokens = TOKENS * max(config.d_model, config.d_ff)
    batch = batch_tokens * (pairs + tokens) * FLOAT_BYTES
    return FIXED_BYTES + 2 * weights + PARALLEL * batch
