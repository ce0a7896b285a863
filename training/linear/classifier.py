"""The convex fit of the network's linear part."""

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array, hstack
from sklearn.preprocessing import normalize
from torch import Tensor, nn

from model.config import ModelConfig
from model.linear import ORDER, LinearPart, ngram_hashes, position_weight
from model.tokenizer import PAD_ID
from training.data.batches import Dataset
from training.linear.families import Families
from training.linear.regression import fit_logistic
from training.loop.checkpoint import reading, write_whole

# Seen once more in each class than it was, so that what is rare counts little.
SMOOTHING = 1.0
# What a feature is worth among the rows of its domain, where it is worth 1 among all.
OWN = 0.7
# Tokens looked up at once; a lookup takes some 200 bytes for each.
AT_ONCE = 2**20

Domains = npt.NDArray[np.float32]  # [N, K], 1 where a row is of a domain; some are of none
Languages = npt.NDArray[np.str_]  # [N]


class LinearClassifier(nn.Module):
    """A linear part that answers by itself: its shares' sum and a bias [C].

    `spoken` [F, L] is how much of what has a feature is in each language.
    """

    spoken: Tensor

    def __init__(self, part: LinearPart, bias: Tensor, spoken: Tensor) -> None:
        super().__init__()
        self.part = part
        self.bias = nn.Parameter(bias)
        self.register_buffer("spoken", spoken, persistent=False)

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        config: ModelConfig,
        strength: float,
        domains: Domains | None = None,
        languages: Languages | None = None,
        families: Families | None = None,
    ) -> Self:
        """The weights with the least penalised loss over the rows.

        `strength` is the inverse of the penalty (C); `domains` say of which of the configuration's
        each row is, where these are several, and `languages` in which it is. What a token or an
        n-gram says is expected of others that are of its `families` token by token.
        """
        part = LinearPart(
            config.vocab_size, config.ngrams, config.classes, config.domains, config.ends
        )
        part.own(choose_ngrams(dataset))
        present, values = features(dataset, part)
        spoken = _spoken(present, dataset.targets, languages)
        scale = feature_scale(present, dataset.targets)
        values.data *= scale[values.indices]
        values = normalize(values, copy=False)
        kin = None if families is None else family_features(dataset, part, families)
        of_domain, bias = fit_domains(values, dataset.targets, strength, domains, kin)  # [K, C, F]
        linear = cls(part, torch.from_numpy(bias).float(), torch.from_numpy(spoken))
        linear.requires_grad_(False)
        part.scale.weight[:, 0] = torch.from_numpy(scale)
        # Over the classes they sum to 0, as they began and as the penalty keeps them.
        part.weight.weight[:] = torch.from_numpy(np.concatenate(of_domain[:, :-1]).T)
        if domains is not None:
            rows = domains * dataset.targets.sum(axis=1, keepdims=True)
            rows *= rows.sum() / rows.sum(axis=0) / config.domains  # each domain counts alike
            # What tells of a domain need not tell of a class: here all tokens have the same value.
            tokens = normalize(present[:, : part.vocab_size], copy=False)
            (of_token,), prior = fit_logistic(tokens, rows, strength)
            part.domain.weight[:] = torch.from_numpy(of_token.T)
            part.prior[:] = torch.from_numpy(prior)
        return linear

    @classmethod
    def kept(cls, path: Path, identity: str) -> Self | None:
        """What `keep` wrote there of a fit of this identity; None where it wrote none. Raises
        `CheckpointError`."""
        if not path.is_file():
            return None
        with reading(path, "; without it the fit is done anew"):
            content = torch.load(path, map_location="cpu", weights_only=True)
            if content["identity"] != identity:
                return None
            part = LinearPart(*content["shape"])
            part.load_state_dict(content["part"])
            return cls(part, content["bias"], content["spoken"]).requires_grad_(False)

    def keep(self, path: Path, identity: str) -> None:
        """Write to `path` what `kept` reads."""
        part = self.part
        content = {
            "identity": identity,
            "shape": (part.vocab_size, part.ngrams, self.bias.numel(), part.domains, part.ends),
            "part": part.state_dict(),
            "bias": self.bias.data,
            "spoken": self.spoken,
        }
        write_whole(path, content)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [B, C] of input_ids and attention_mask [B, S]."""
        return self.part(input_ids, attention_mask).sum(dim=1) + self.bias

    def shared(self, shares: Tensor) -> Self:
        """What features say in each domain and language times a share of its own, [K, L], and the
        bias times their mean."""
        counted = self.spoken @ shares.T.to(self.spoken)  # [F, K]
        part = copy.deepcopy(self.part)
        of_domain = part.weight.weight.unflatten(-1, (part.domains, -1))  # [F, K, C - 1]
        of_domain.mul_(counted[..., None])
        bias = self.bias * shares.mean().to(self.bias)
        return type(self)(part, bias, self.spoken).requires_grad_(False)


def choose_ngrams(dataset: Dataset) -> Tensor:
    """The n-grams [N] of all texts by their hashes, those first of which chance explains least:
    Pearson's chi-squared of how often one is in texts of each class.
    """
    hashes = _of_tokens(dataset, ngram_hashes)  # [S, 2]
    every, column = np.unique(hashes, return_inverse=True)
    present = _summed(np.ones_like(column, np.float32), column, dataset, len(every))
    present.data[:] = 1
    seen = present.T @ dataset.targets  # [N, C]
    expected = np.outer(seen.sum(axis=1), dataset.targets.sum(axis=0) / dataset.targets.sum())
    surprise = ((seen - expected) ** 2 / (expected + SMOOTHING)).sum(axis=1)
    return torch.from_numpy(every[np.argsort(-surprise, kind="stable")].astype(np.int64))


def features(dataset: Dataset, part: LinearPart) -> tuple[csr_array, csr_array]:
    """Which features each row has, 1 where it does, [N, F]; and how much is heard of them there, on
    average over where they occur."""
    found = _of_tokens(dataset, part.features)  # [S, N]
    tokens = np.arange(len(found))
    before = tokens - np.repeat(dataset.starts[:-1], dataset.lengths)
    after = np.repeat(dataset.starts[1:], dataset.lengths) - 1 - tokens
    of_token = position_weight(torch.from_numpy(before), torch.from_numpy(after), part.ends).numpy()
    width = part.vocab_size + part.ngrams
    count = _summed(np.ones_like(found, np.float32), found, dataset, width)
    mean = _summed(np.repeat(of_token[:, None], ORDER, axis=1), found, dataset, width)
    mean.data /= count.data  # the same places in the same order
    for table in (count, mean):
        table.data[table.indices == PAD_ID] = 0  # n-grams without a row
        table.eliminate_zeros()
    count.data[:] = 1
    return count, mean


def family_features(dataset: Dataset, part: LinearPart, families: Families) -> csr_array:
    """Which features are of which family, [F, G]: tokens of one, and n-grams whose tokens are, one
    by one, as in class-based n-grams (Brown et al. 1992). What is alone in its family is left out.
    """

    def both(ids: Tensor) -> Tensor:  # [1, 2N, S] of ids [1, S]
        of_family = torch.from_numpy(families)[ids].long()
        kin = torch.cat([of_family[:, None], ngram_hashes(of_family)], dim=1)
        return torch.cat([part.features(ids), kin], dim=1)

    found, kin = np.split(_of_tokens(dataset, both), 2, axis=1)  # [S, N] each
    number = np.full(part.vocab_size + part.ngrams, -1, np.int64)
    number[found] = kin
    number[PAD_ID] = -1  # n-grams without a row
    seen = np.flatnonzero(number >= 0)
    _, family, members = np.unique(number[seen], return_inverse=True, return_counts=True)
    shape = len(number), len(members)
    together = csr_array((np.ones(len(seen), np.float32), (seen, family)), shape=shape)
    return together[:, members > 1]


def fit_domains(
    values: csr_array,
    targets: npt.NDArray[np.float32],
    strength: float,
    domains: Domains | None,
    kin: csr_array | None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What each feature says in each domain, [K, C, F], and the bias [C], from values [N, F].

    Every feature is there once for all rows and once more for those of each domain, and the penalty
    on both lets a domain differ from the others only where its rows insist (Daumé 2007, section
    3.1; by how much, Finkel and Manning 2009). In the same way it is there once by itself and once
    with its `kin` [F, G], and differs from these only as far as rows insist.
    """
    copies = None
    if domains is not None:
        copies = np.concatenate([np.ones_like(domains[:, :1]), OWN * domains], axis=1)  # [N, 1 + K]
    if kin is not None:
        values = csr_array(hstack([values, values @ kin], format="csr"))  # [N, F + G]
    (shared, *apart), bias = fit_logistic(values, targets, strength, copies)
    said = np.stack([shared + OWN * one for one in apart] or [shared])  # [K, C, F + G]
    if kin is not None:
        said, together = np.split(said, [kin.shape[0]], axis=2)
        said += np.stack([(kin @ one.T).T for one in together])
    return said, bias


def _of_tokens(dataset: Dataset, lookup: Callable[[Tensor], Tensor]) -> npt.NDArray[np.int32]:
    """What `lookup` finds [1, N, S] in ids [1, S], for the tokens of all texts end to end, [S, N].
    Before each text is padding, which is what its first n-grams begin with."""
    starts, tokens = dataset.starts, len(dataset.ids)
    # The texts that so many tokens begin in, and the end.
    parts = np.searchsorted(starts, np.arange(0, tokens + AT_ONCE, AT_ONCE))
    found = []
    for first, last in pairwise(starts[np.minimum(parts, len(dataset))]):
        begin = starts[(first <= starts) & (starts < last)] - first
        ids = np.insert(
            dataset.ids[first:last].astype(np.int64), np.repeat(begin, ORDER - 1), PAD_ID
        )
        there = lookup(torch.from_numpy(ids)[None])[0].T.numpy()
        found.append(there[ids != PAD_ID].astype(np.int32))
    return np.concatenate(found)


def _summed(
    counts: npt.NDArray[np.float32],
    found: npt.NDArray[np.integer],
    dataset: Dataset,
    width: int,
) -> csr_array:
    """What is found of its tokens counts for each row together, [N, width]; both [S, N]."""
    starts = found.shape[1] * dataset.starts
    table = csr_array((counts.ravel(), found.ravel().copy(), starts), shape=(len(dataset), width))
    table.sum_duplicates()
    return table


def _spoken(
    present: csr_array, targets: npt.NDArray[np.float32], languages: Languages | None
) -> npt.NDArray[np.float32]:
    """How much of the rows that have a feature is in each language, [F, L]; of what none has, as
    much as of all."""
    if languages is None:
        return np.ones((present.shape[1], 1), np.float32)
    rows = (languages[:, None] == np.unique(languages)) * targets.sum(axis=1, keepdims=True)
    seen = present.T @ rows + 1e-6 * rows.mean(axis=0)  # [F, L]
    return (seen / seen.sum(axis=1, keepdims=True)).astype(np.float32)


def feature_scale(present: csr_array, targets: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """How much each feature tells of the class, [F], from present [N, F] and targets [N, C];
    a class without rows is left out.

    The log of its frequency in each class, of these the standard deviation over the classes, and of
    that the square root. Of two classes the deviation is half of the log-count ratio of Wang and
    Manning 2012, section 2.1: what is as frequent in one class as in another has next to no value,
    and so no weight worth having. The root leaves more to the fit: of texts of several kinds, what
    tells in one need not tell in another. A feature that no row has tells nothing.
    """
    seen = present.T @ targets[:, targets.any(axis=0)]  # [F, C]
    smoothed = seen + SMOOTHING
    deviation = np.log(smoothed / smoothed.sum(axis=0)).std(axis=1)
    return np.sqrt(np.where(seen.any(axis=1), deviation, 0)).astype(np.float32)
