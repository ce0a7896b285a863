"""What a step makes small."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.tokenizer import MASK_ID


def drop_tokens(input_ids: Tensor, attention_mask: Tensor, rate: float) -> Tensor:
    """input_ids [B, S] with about `rate` of the text's tokens replaced by the mask token.

    The network so learns what a missing word looks like: it leans on no single word, and erasing
    words to test an explanation stays within what it has seen.
    """
    if rate == 0:
        return input_ids
    dropped = (torch.rand_like(input_ids, dtype=torch.float32) < rate) & attention_mask.bool()
    return input_ids.masked_fill(dropped, MASK_ID)


def classification_loss(logits: Tensor, targets: Tensor, rows: int, smoothing: float) -> Tensor:
    """Cross-entropy of logits and targets [B, C], summed over this rank's rows, over all ranks'."""
    return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing) / rows
