import math

import pytest
import torch

from training.batches import TrainingBatch
from training.objectives import Outcome
from training.progress import Display, Meter


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"step": 7, "loss": 0.25}, "step 7: loss 0.2500, validation held out 81.00%"),
        ({"step": 0, "loss": math.nan}, "step 0: validation held out 81.00%"),
    ],
)
def test_an_evaluation_is_told_with_its_loss_if_there_is_one(entry, line, capsys):
    Display().evaluation(entry | {"accuracy/held out": 0.81}, better=False)
    assert capsys.readouterr().err == f"{line}\n"


def test_figures_are_means_since_they_were_taken():
    meter = Meter()
    for loss, right, rows in ((1.0, 1, 2), (3.0, 3, 4)):
        outcome = Outcome(torch.tensor(loss), torch.tensor(right), rows)
        ids = torch.zeros(rows, 1)
        meter.add(outcome, TrainingBatch(ids, ids, ids, rows))
    assert meter.read()["loss"] == 2.0
    taken = meter.take()
    assert (taken["loss"], taken["train_accuracy"]) == (2.0, pytest.approx(4 / 6))
    assert math.isnan(meter.read()["loss"])
