"""What a step makes small, and the shares of right answers."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.tokenizer import MASK_ID, Encoding
from training.data.batches import Dataset, TrainingBatch
from training.loop.objectives import Classification, Detection, drop_tokens
from training.pretraining.replacement import Replacer

CPU = torch.device("cpu")
ROWS = [[5, 10, 6], [5, 11, 6], [5, 12, 6]]


class Says(nn.Module):
    """A network with one answer for each token."""

    def __init__(self, of: dict[int, float]) -> None:
        super().__init__()
        self.of = of

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.tensor([[self.of.get(int(i), 0.0) for i in row] for row in input_ids])


class Shares(Says):
    """A network that knows two classes by the first token."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        first = super().forward(input_ids, attention_mask)[:, :1]
        return torch.cat([-first, first], dim=1)


def dataset(rows: list[list[int]], targets: list[list[float]] | None = None) -> Dataset:
    encodings = [Encoding(np.array(row, dtype=np.int64), None, False) for row in rows]
    return Dataset.encode(encodings, None if targets is None else np.array(targets, "f4"))


def batch(rows: list[list[int]], targets: Tensor | None = None, of: int = 0) -> TrainingBatch:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    targets = torch.zeros(len(rows), 0) if targets is None else targets
    return TrainingBatch(ids, (ids > 0).long(), targets, rows=of or len(rows))


def detection(validation: dict[str, Dataset] | None = None, rate: float = 0.5) -> Detection:
    return Detection(validation or {}, Replacer(dataset(ROWS), 20, CPU), rate)


def test_classes_are_learnt_by_cross_entropy_and_the_largest_share_is_right():
    objective = Classification({}, token_dropout=0.0, label_smoothing=0.0)
    targets = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    found = objective.outcome(Shares({4: 0.0, 5: 1.0}), batch([[4], [5]], targets))
    sure, unsure = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    expected = (math.log(2) + 0.75 * sure + 0.25 * unsure) / 2
    assert float(found.loss) == pytest.approx(expected, abs=1e-6)
    assert (int(found.right), found.seen) == (2, 2)


def test_classification_scores_each_set():
    sets = {
        "one": dataset([[4], [5]], [[1, 0], [1, 0]]),
        "other": dataset([[5]], [[0, 1]]),
    }
    objective = Classification(sets, token_dropout=0.9, label_smoothing=0.0)
    assert objective.scores(Shares({4: -1.0, 5: 1.0}), CPU) == {"one": 0.5, "other": 1.0}


def test_who_knows_nothing_of_replaced_tokens_loses_a_bit_each():
    torch.manual_seed(0)
    found = detection().outcome(Says({}), batch([*ROWS, [5, 10]]))
    assert float(found.loss) == pytest.approx(math.log(2))
    assert found.seen == 11  # padding is asked nothing


def test_a_token_that_never_stands_there_is_found():
    # 10, 11 and 12 take each other's place, and there is none but 10 in these rows.
    knows = Says({10: -9.0, 11: 9.0, 12: 9.0, 5: -9.0, 6: -9.0})
    torch.manual_seed(0)
    found = detection(rate=0.9).outcome(knows, batch([[5, 10, 6]] * 40))
    assert (int(found.right), found.seen) == (120, 120)
    assert float(found.loss) < 1e-3
    torch.manual_seed(0)
    blind = detection(rate=0.9).outcome(
        Says(dict.fromkeys(range(20), -9.0)), batch([[5, 10, 6]] * 40)
    )
    assert 0 < int(blind.right) < 120
    assert float(blind.loss) > 1


def test_each_text_counts_the_mean_of_its_tokens_and_losses_sum_over_ranks():
    # Nothing is replaced: each token of the long text costs log 2, of the short one nothing.
    rows, says = [[15, 16], [17, 18, 19, 17]], Says({15: -30.0, 16: -30.0})
    objective = detection(rate=1e-9)
    whole = objective.outcome(says, batch(rows))
    parts = [objective.outcome(says, batch([row], of=2)) for row in rows]
    assert float(whole.loss) == pytest.approx(math.log(2) / 2, abs=1e-6)
    assert float(sum(part.loss for part in parts)) == pytest.approx(float(whole.loss), abs=1e-6)


def test_detection_is_scored_on_the_same_replacements_each_time():
    sets = {"all": dataset(ROWS * 20), "of one kind": dataset([[5, 10, 6]] * 20)}
    network = Says({5: -1.0, 6: -1.0, 10: -1.0, 11: 1.0, 12: 1.0})
    network.train()
    objective = detection(sets)
    first = objective.scores(network, CPU)
    torch.manual_seed(9)
    assert objective.scores(network, CPU) == first
    assert 0.5 < first["all"] < 1
    assert first["of one kind"] == 1
    assert network.training


@pytest.mark.parametrize(
    ("rate", "least", "most"), [(0.0, 0, 0), (0.3, 200, 400), (0.999, 990, 1000)]
)
def test_about_the_share_of_the_text_is_masked(rate, least, most):
    torch.manual_seed(0)
    input_ids = torch.full((10, 120), 9)
    mask = (torch.arange(120) < 100).long().expand(10, -1)
    masked = drop_tokens(input_ids, mask, rate) != 9
    assert least <= int(masked.sum()) <= most
    assert not masked[:, 100:].any()


def test_losses_of_two_parts_are_that_of_the_whole():
    objective = Classification({}, token_dropout=0.0, label_smoothing=0.1)
    network, targets = Shares({4: 0.3, 5: 1.0}), torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    whole = objective.outcome(network, batch([[4], [5]], targets))
    parts = [
        objective.outcome(network, batch([row], target[None], of=2))
        for row, target in zip([[4], [5]], targets, strict=True)
    ]
    assert float(sum(part.loss for part in parts)) == pytest.approx(float(whole.loss), abs=1e-6)


def test_labels_are_smoothed_as_far_as_asked():
    sure = torch.tensor([[1.0, 0.0]])
    network = Shares({4: -1.0})  # log-odds of 2 for the right class
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    for smoothing in (0.0, 0.2):
        objective = Classification({}, token_dropout=0.0, label_smoothing=smoothing)
        found = objective.outcome(network, batch([[4]], sure))
        expected = (1 - smoothing / 2) * right + smoothing / 2 * wrong
        assert float(found.loss) == pytest.approx(expected, abs=1e-6)


def test_tokens_are_dropped_as_often_as_asked():
    class Seen(Shares):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            masked.append(float((input_ids == MASK_ID).float().mean()))
            return super().forward(input_ids, attention_mask)

    for share in (0.0, 0.5):
        masked: list[float] = []
        torch.manual_seed(0)
        objective = Classification({}, token_dropout=share, label_smoothing=0.0)
        objective.outcome(Seen({}), batch([[5] * 500] * 4, torch.eye(2)[[0, 1, 0, 1]]))
        assert masked == [pytest.approx(share, abs=0.05)]
