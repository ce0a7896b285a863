import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import Encoding
from training.data.batches import Dataset, TrainingBatch, TrainingBatches, collate, epoch_rows, plan


def dataset(*lengths: int) -> Dataset:
    """Rows whose ids count up from 10 · (row + 1)."""
    rows = [np.arange(n, dtype=np.int64) + 10 * (i + 1) for i, n in enumerate(lengths)]
    return Dataset.encode(
        [Encoding(row, None, False) for row in rows], np.eye(len(lengths), dtype="f4")
    )


def test_literal_batch():
    input_ids, mask = collate(dataset(2, 3, 1), np.array([1, 0]))
    assert input_ids.tolist() == [[20, 21, 22], [10, 11, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_long_rows_show_a_window():
    starts = set()
    for seed in range(30):
        generator = np.random.default_rng(seed)
        input_ids, _ = collate(dataset(5), np.array([0]), 3, generator)
        first = input_ids[0, 0].item()
        assert input_ids.tolist() == [[first, first + 1, first + 2]]
        starts.add(first)
    assert starts == {10, 11, 12}
    assert collate(dataset(5), np.array([0]), 3)[0].tolist() == [[10, 11, 12]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.booleans())
def test_every_row_once_within_budget(lengths, shuffled):
    sizes = np.array(lengths)
    generator = np.random.default_rng(0) if shuffled else None
    batches = plan(np.arange(len(sizes)), sizes, 64, generator, pool=16)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(sizes)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * sizes[rows].max() <= 64


@pytest.mark.parametrize(
    ("epochs", "counts"),
    [
        ([1.0, 1.0], [10, 4]),
        ([2.5, 0.5], [25, 2]),
        ([0.1, 3.0], [1, 12]),
        ([2.3, 0.2], [23, 1]),
    ],
)
def test_sources_are_passed_as_often_as_asked(epochs, counts):
    source_of_row = np.array([0] * 10 + [1] * 4)
    rows = epoch_rows(source_of_row, epochs, np.random.default_rng(0))
    assert np.bincount(source_of_row[rows], minlength=2).tolist() == counts


def test_rows_of_all_sources_are_mixed_and_so_are_passes():
    source_of_row = np.repeat([0, 1], 50)
    rows = epoch_rows(source_of_row, [1.0, 2.0], np.random.default_rng(0))
    for part in (rows[:50], rows[50:100], rows[100:]):
        assert set(source_of_row[part]) == {0, 1}
    assert len({*rows[:75].tolist()}) < 75, "some rows are seen again before others are at all"


def test_shuffled_batches_are_each_of_one_pool_and_long_ones_not_all_last():
    rows, lengths = np.random.default_rng(1).permutation(64), np.arange(64) + 1
    pool_of_row = np.argsort(rows) // 16
    batches = plan(rows, lengths, 128, np.random.default_rng(0), pool=16)
    assert all(len({*pool_of_row[batch].tolist()}) == 1 for batch in batches)
    longest = [int(batch.max()) for batch in batches]
    assert longest != sorted(longest)
    pools = [int(pool_of_row[batch[0]]) for batch in batches]
    assert pools != sorted(pools)
    in_order = [int(batch.max()) for batch in plan(rows, lengths, 128)]
    assert in_order == sorted(in_order)


def test_joined_rows_are_those_of_the_one_then_those_of_the_other():
    joined = dataset(1, 2).joined(dataset(3, 1))
    assert joined.ids.tolist() == [10, 20, 21, 10, 11, 12, 20]
    assert joined.starts.tolist() == [0, 1, 3, 6, 7]
    assert joined.targets.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]


def rows_of(batch: TrainingBatch) -> list[int]:
    """Each row of `dataset` has a class of its own."""
    return batch.targets.argmax(dim=1).tolist()


def test_ranks_share_each_batch_and_epochs_differ():
    rows = dataset(*range(1, 30))

    def batches(rank: int, world_size: int) -> TrainingBatches:
        return TrainingBatches(
            rows, np.zeros(29, int), [1.0], [1], 64, 20, seed=3, rank=rank, world_size=world_size
        )

    alone = list(batches(0, 1).iterate(0))
    for whole, first, second in zip(
        alone, batches(0, 2).iterate(0), batches(1, 2).iterate(0), strict=True
    ):
        assert first.rows == second.rows == whole.rows == len(whole.targets)
        for rank, part in enumerate((first, second)):
            assert part.input_ids.tolist() == whole.input_ids[rank::2].tolist()
            assert part.attention_mask.tolist() == whole.attention_mask[rank::2].tolist()
            assert part.targets.tolist() == whole.targets[rank::2].tolist()
    again = list(batches(0, 1).iterate(0, first=2))
    assert [rows_of(b) for b in again] == [rows_of(b) for b in alone[2:]]
    other = list(batches(0, 1).iterate(1))
    assert [rows_of(b) for b in other] != [rows_of(b) for b in alone]


def test_tokens_of_an_epoch_count_windows_and_passes():
    batches = TrainingBatches(
        dataset(4, 30, 6),
        np.array([0, 0, 1]),
        [2.0, 0.5],
        [1, 1],
        max_batch_tokens=64,
        crop_tokens=20,
        seed=0,
    )
    assert batches.tokens == 2 * (4 + 20) + 6 // 2


def test_a_lower_stage_comes_before_a_higher_one():
    source_of_row = np.arange(90) % 3
    batches = TrainingBatches(
        dataset(*[4] * 90), source_of_row, [1.0, 2.0, 1.0], [2, 1, 2], 16, 16, seed=0
    )
    plan = batches.plan(0)
    of_batch = [{int(source_of_row[row]) for row in batch} for batch in plan]
    assert of_batch[:15] == [{1}] * 15, "two passes of the one in stage 1"
    assert set().union(*of_batch[15:]) == {0, 2}
    assert any(len(sources) == 2 for sources in of_batch), "those of one stage are mixed"


def test_rows_without_weight_are_left_out():
    weighted = dataset(1, 3, 2).weighted(np.array([1, 0, 0.5], np.float32))
    assert weighted.ids.tolist() == [10, 30, 31]
    assert weighted.lengths.tolist() == [1, 2]
    assert weighted.targets.tolist() == [[1, 0, 0], [0, 0, 0.5]]


def batches_of(seed: int = 0) -> TrainingBatches:
    return TrainingBatches(
        dataset=dataset(*[9] * 40),
        source_of_row=np.zeros(40, np.int64),
        source_epochs=[0.5],
        source_stages=[1],
        max_batch_tokens=12,
        crop_tokens=3,
        seed=seed,
    )


def test_rows_and_windows_are_drawn_anew_each_epoch_and_by_the_seed():
    def drawn(batches: TrainingBatches, epoch: int) -> list[list[list[int]]]:
        return [batch.input_ids.tolist() for batch in batches.iterate(epoch)]

    def rows(batches: TrainingBatches, epoch: int) -> set[int]:
        return {row for batch in batches.iterate(epoch) for row in rows_of(batch)}

    one, again, other = batches_of(0), batches_of(0), batches_of(1)
    assert drawn(one, 0) == drawn(again, 0)
    assert drawn(one, 0) != drawn(one, 1)
    assert drawn(one, 0) != drawn(other, 0)
    assert rows(one, 0) != rows(one, 1)
    assert rows(one, 0) != rows(other, 0)
    assert rows(one, 0) != set(range(20)), "half of the rows are drawn, not the first half taken"
    firsts = [
        window[0] - 10 * (row + 1)
        for batch in one.iterate(0)
        for window, row in zip(batch.input_ids.tolist(), rows_of(batch), strict=True)
    ]
    assert len(set(firsts)) > 3


def test_a_row_takes_of_a_batch_what_its_window_does():
    batches = batches_of()
    assert [len(rows) for rows in batches.plan(0)] == [2] * 10
    assert [tuple(batch.input_ids.shape) for batch in batches.iterate(0)] == [(2, 3)] * 10


@pytest.mark.parametrize(("rows", "epochs"), [(1, range(9)), (9, [0])])
def test_windows_differ_between_epochs_and_between_batches(rows, epochs):
    batches = TrainingBatches(dataset(*[50] * rows), np.zeros(rows, int), [1.0], [1], 3, 3, seed=0)
    firsts = {
        batch.input_ids[0, 0].item() - 10 * (rows_of(batch)[0] + 1)
        for epoch in epochs
        for batch in batches.iterate(epoch)
    }
    assert len(firsts) > 5


@pytest.mark.parametrize(
    ("rows", "most", "batches"), [(5, 64, 5), (60, 2048, 10), (60, 16, 15), (4000, 64, 250)]
)
def test_few_rows_come_in_batches_of_a_tenth(rows, most, batches):
    found = TrainingBatches(
        dataset=dataset(*[4] * rows),
        source_of_row=np.zeros(rows, np.int64),
        source_epochs=[1.0],
        source_stages=[1],
        max_batch_tokens=most,
        crop_tokens=16,
        seed=0,
        rank=0,
        world_size=1,
    ).plan(0)
    assert len(found) == batches
    assert sorted(np.concatenate(found).tolist()) == list(range(rows))
