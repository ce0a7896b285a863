import math

import pytest
import torch

from training.data.batches import TrainingBatch
from training.loop.meter import Meter
from training.loop.objectives import Outcome


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


def test_a_ranks_share_of_a_batch_counts_as_the_whole():
    meter = Meter()
    ids = torch.zeros(2, 1)
    outcome = Outcome(torch.tensor(0.5), torch.tensor(1), 2)
    meter.add(outcome, TrainingBatch(ids, ids, ids, rows=4))  # the other half is another rank's
    assert meter.read()["loss"] == pytest.approx(1.0)
    assert meter.read()["train_accuracy"] == 0.5
