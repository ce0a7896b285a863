import numpy as np
import pytest

from service.agreement import differences
from service.backend import Outputs
from service.types import IntArray, Variant
from tests.fakes import FakeBackend

SHAPES = ((1, 1), (3, 16), (4, 64))


class Off(FakeBackend):
    """Adds `by` to one element of one output, of rows wider than 8 tokens."""

    def __init__(self, output: str, by: float) -> None:
        super().__init__()
        self.output, self.by = output, by

    def run(self, input_ids: IntArray, attention_mask: IntArray, variant: Variant) -> Outputs:
        found = super().run(input_ids, attention_mask, variant)
        if self.output in found and input_ids.shape[1] > 8:
            values = found[self.output].copy()
            values.flat[-1] += self.by
            found[self.output] = values
        return found


def test_a_device_does_not_differ_from_itself():
    found = differences(FakeBackend(), FakeBackend(), 300, 64, SHAPES)
    assert found == dict.fromkeys(Variant.FULL.value, 0.0)


@pytest.mark.parametrize("output", Variant.FULL.value)
@pytest.mark.parametrize("by", [-2.5, 0.5, np.nan])
def test_one_element_of_one_output_is_seen(output, by):
    found = differences(FakeBackend(), Off(output, by), 300, 64, SHAPES)
    np.testing.assert_equal(found.pop(output), abs(by))
    assert set(found.values()) == {0.0}


def test_both_run_the_same_padded_batches_of_no_more_tokens_than_a_model_reads():
    one, other = FakeBackend(), FakeBackend()
    differences(one, other, 300, 32, SHAPES, seed=3)
    assert one.batches == other.batches
    assert len(one.batches) == len(SHAPES) * len(Variant)
    longest = [max(map(len, rows)) for rows in one.batches[:: len(Variant)]]
    assert longest == [1, 16, 32]
    assert len({len(row) for row in one.batches[-1]}) > 1
    ids = [token for rows in one.batches for row in rows for token in row]
    assert min(ids) > 2
    assert max(ids) < 300
