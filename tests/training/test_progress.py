import math

import pytest

from training.progress import Display


@pytest.mark.parametrize(
    ("display", "told"),
    [
        (Display(), "a step\nwarning: few rows\n"),
        (Display(quiet=True), "warning: few rows\n"),
        (Display(silent=True), ""),
    ],
)
def test_warnings_are_told_to_those_who_asked_for_quiet_but_once(display, told, capsys):
    display.say("a step")
    display.warn("few rows")
    assert capsys.readouterr().err == told


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
