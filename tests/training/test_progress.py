import math

import pytest

from training.progress import Display


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
