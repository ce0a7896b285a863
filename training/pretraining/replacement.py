"""Tokens in the place of others, such that only who reads the whole text can tell."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.tokenizer import MASK_ID, PAD_ID
from training.data.batches import Dataset

# Places, counted from a token's own, whose tokens stay as they are when it is replaced.
CONTEXTS: Sequence[tuple[int, ...]] = ((-1,), (1,), (-2, -1), (1, 2), (-1, 1))
REACH = 2


class Replacer:
    """Writes in a token's place one that elsewhere stands next to the same neighbours.

    It is the generator of ELECTRA (Clark et al. 2020, section 2) as a model of n-grams: what fits
    its one or two neighbours is often wrong for the sentence or for the side that the text takes,
    and it costs a look into a table where a second network would cost a third of a step.
    """

    def __init__(self, dataset: Dataset, vocab_size: int, device: torch.device) -> None:
        """Of all rows of a dataset; contexts end where a row does."""
        rows = np.repeat(np.arange(len(dataset)), dataset.lengths)
        apart = np.full(len(dataset.ids) + REACH * len(dataset), PAD_ID, dtype=np.int64)
        apart[np.arange(len(dataset.ids)) + REACH * rows] = dataset.ids
        text = torch.from_numpy(apart)[None].to(device)  # [1, N], pads between rows
        self._vocab_size = vocab_size
        self._tables = [
            _Table(self._keys(text, context)[text > MASK_ID], text[text > MASK_ID])
            for context in CONTEXTS
        ]

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, rate: float) -> Tensor:
        """input_ids [B, S] with about `rate` of the text's tokens drawn anew, each from a context
        of its own choice; one that is drawn again, or whose neighbours meet nowhere, stays."""
        chosen = torch.rand_like(input_ids, dtype=torch.float32) < rate
        chosen &= attention_mask.bool() & (input_ids > MASK_ID)
        by = torch.randint_like(input_ids, len(CONTEXTS))
        written = input_ids.clone()
        for number, (context, table) in enumerate(zip(CONTEXTS, self._tables, strict=True)):
            here = chosen & (by == number)
            written[here] = table.draw(self._keys(input_ids, context)[here], input_ids[here])
        return written

    def _keys(self, input_ids: Tensor, context: Sequence[int]) -> Tensor:
        """A number for the tokens in the places of a context, beside each token of [B, S]."""
        length = input_ids.size(1)
        wide = F.pad(input_ids, (REACH, REACH), value=PAD_ID)
        keys = torch.zeros_like(input_ids)
        for place in context:
            keys = keys * self._vocab_size + wide[:, REACH + place : REACH + place + length]
        return keys


class _Table:
    """The tokens that stand in each context, end to end, as often as they do."""

    def __init__(self, keys: Tensor, tokens: Tensor) -> None:
        """Of keys and tokens [N], place by place."""
        ordered, order = keys.sort(stable=True)
        found, counts = torch.unique_consecutive(ordered, return_counts=True)
        self._keys, self._counts = found, counts
        self._starts = counts.cumsum(0) - counts
        self._tokens = tokens[order].int()

    def draw(self, keys: Tensor, otherwise: Tensor) -> Tensor:
        """A token of each of the contexts [K]; `otherwise` [K] of those that there are none of."""
        if not len(self._keys):
            return otherwise
        at = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
        shares = torch.rand(len(keys), dtype=torch.float64, device=keys.device)
        places = self._starts[at] + (shares * self._counts[at]).long()
        drawn = self._tokens[places].to(otherwise.dtype)
        return torch.where(self._keys[at] == keys, drawn, otherwise)
