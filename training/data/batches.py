"""Which rows meet in a step: like lengths together, the same for the same seed, on any machine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model.tokenizer import PAD_ID, Encoding

FEWEST_BATCHES = 10  # of an epoch: few rows come in smaller ones


@dataclass(frozen=True, slots=True)
class Dataset:
    """Encoded rows, end to end: row i is `ids[starts[i]:starts[i + 1]]`, `targets[i]` [C] the
    share that each class has of its label; no classes where labels do not matter."""

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    targets: npt.NDArray[np.float32]

    @classmethod
    def encode(
        cls, encodings: Sequence[Encoding], targets: npt.NDArray[np.float32] | None = None
    ) -> "Dataset":
        """From one encoding a row and its target, if it has one."""
        lengths = [len(encoding.input_ids) for encoding in encodings]
        ids = [encoding.input_ids for encoding in encodings]
        return cls(
            ids=np.concatenate(ids).astype(np.int32) if ids else np.zeros(0, np.int32),
            starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            targets=np.zeros((len(ids), 0), np.float32) if targets is None else targets,
        )

    def __len__(self) -> int:
        return len(self.targets)

    def joined(self, more: "Dataset") -> "Dataset":
        """These rows, then those of `more`."""
        return Dataset(
            ids=np.concatenate([self.ids, more.ids]),
            starts=np.concatenate([self.starts, self.starts[-1] + more.starts[1:]]),
            targets=np.concatenate([self.targets, more.targets]),
        )

    def weighted(self, weights: npt.NDArray[np.float32]) -> "Dataset":
        """The rows with a weight [N] above 0, their targets times it."""
        chosen = weights > 0
        starts = np.concatenate([[0], np.cumsum(self.lengths[chosen])])
        targets = self.targets[chosen] * weights[chosen, None]
        return Dataset(self.ids[np.repeat(chosen, self.lengths)], starts, targets)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class with the largest share, [N]."""
        return self.targets.argmax(axis=1)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row, [N]."""
        return np.diff(self.starts)


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """input_ids, attention_mask [B, S], targets [B, C]; `rows` counts all ranks' in this step."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    targets: torch.Tensor
    rows: int

    def to(self, device: torch.device) -> "TrainingBatch":
        """The same batch on `device`. To a GPU it goes while that still computes the last one."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            pinned = tensor.pin_memory() if device.type == "cuda" else tensor
            return pinned.to(device, non_blocking=True)

        return TrainingBatch(
            moved(self.input_ids), moved(self.attention_mask), moved(self.targets), self.rows
        )


def epoch_rows(
    source_of_row: npt.NDArray[np.int64], epochs: Sequence[float], generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Row numbers of one epoch, shuffled: each source's rows `epochs[source]` times.

    Whole passes take every row; what remains is drawn without repetition.
    """
    chosen = []
    for source, passes in enumerate(epochs):
        rows = np.flatnonzero(source_of_row == source)
        whole = int(passes)
        chosen.extend([rows] * whole)
        rest = round((passes - whole) * len(rows))
        chosen.append(generator.permutation(rows)[:rest])
    return generator.permutation(np.concatenate(chosen))


def plan(
    rows: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    max_batch_tokens: int,
    generator: np.random.Generator | None = None,
    pool: int = 4096,
) -> list[npt.NDArray[np.int64]]:
    """Split `rows` into batches of like length whose padded size is at most `max_batch_tokens`.

    Rows are sorted by length inside pools of `pool`, so that with a generator two epochs do not
    form the same batches; the batches then come in random order. Without one: everything sorted.
    A row longer than the budget gets a batch of its own.
    """
    batches: list[npt.NDArray[np.int64]] = []
    step = pool if generator is not None else max(len(rows), 1)
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        part = part[np.argsort(lengths[part], kind="stable")]
        start = 0
        for end in range(1, len(part) + 1):
            last = end == len(part)
            if last or (end - start + 1) * lengths[part[end]] > max_batch_tokens:
                batches.append(part[start:end])
                start = end
    if generator is not None:
        batches = [batches[i] for i in generator.permutation(len(batches))]
    return batches


def collate(
    dataset: Dataset,
    rows: npt.NDArray[np.int64],
    crop_tokens: int | None = None,
    generator: np.random.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and attention_mask [B, S] of `rows`, padded to the longest.

    Rows longer than `crop_tokens` give a window of that many tokens: at a random place with a
    generator, from the start without.
    """
    lengths = dataset.lengths[rows]
    kept = lengths if crop_tokens is None else np.minimum(lengths, crop_tokens)
    width = int(kept.max())
    input_ids = np.full((len(rows), width), PAD_ID, dtype=np.int64)
    for i, row in enumerate(rows):
        spare = int(lengths[i] - kept[i])
        shift = int(generator.integers(spare + 1)) if generator is not None and spare else 0
        start = dataset.starts[row] + shift
        input_ids[i, : kept[i]] = dataset.ids[start : start + kept[i]]
    mask = (np.arange(width) < kept[:, None]).astype(np.int64)
    return torch.from_numpy(input_ids), torch.from_numpy(mask)


@dataclass(frozen=True, slots=True)
class TrainingBatches:
    """All batches of a run, addressed by epoch and position, so that a run can go on anywhere."""

    dataset: Dataset
    source_of_row: npt.NDArray[np.int64]
    source_epochs: Sequence[float]
    source_stages: Sequence[int]
    max_batch_tokens: int
    crop_tokens: int
    seed: int
    rank: int = 0
    world_size: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of one epoch, without padding."""
        kept = np.minimum(self.dataset.lengths, self.crop_tokens)
        passes = np.asarray(self.source_epochs)[self.source_of_row]
        return int((kept * passes).sum())

    def plan(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """The batches of an epoch as row numbers, all ranks' together: stage after stage (a
        curriculum, Bengio et al. 2009)."""
        generator = np.random.default_rng([self.seed, epoch])
        rows = epoch_rows(self.source_of_row, self.source_epochs, generator)
        lengths = np.minimum(self.dataset.lengths, self.crop_tokens)
        most = min(self.max_batch_tokens, self.tokens // FEWEST_BATCHES)
        stages = np.asarray(self.source_stages)[self.source_of_row[rows]]
        return [
            batch
            for stage in np.unique(stages)
            for batch in plan(rows[stages == stage], lengths, most, generator)
        ]

    def iterate(self, epoch: int, first: int = 0) -> Iterator[TrainingBatch]:
        """This rank's part of each batch of an epoch, from batch number `first` on."""
        for number, rows in enumerate(self.plan(epoch)):
            if number >= first:
                yield self._batch(epoch, number, rows)

    def _batch(self, epoch: int, number: int, rows: npt.NDArray[np.int64]) -> TrainingBatch:
        # Windows are drawn for the whole batch, so that the number of ranks changes nothing.
        generator = np.random.default_rng([self.seed, epoch, number])
        input_ids, mask = collate(self.dataset, rows, self.crop_tokens, generator)
        targets = torch.from_numpy(self.dataset.targets[rows])
        part = slice(self.rank, None, self.world_size)
        return TrainingBatch(input_ids[part], mask[part], targets[part], rows=len(rows))
