"""One run, step by step."""

from pathlib import Path

import pytest
import torch

from training.config import ConfigError, RunConfig
from training.loop.trainer import Ranks
from training.pipeline import fit
from training.progress import Display

WHERE = Ranks(0, 1, torch.device("cpu"))
CONFIG = RunConfig.model_validate({"sources": [{"name": "s", "path": "-"}]})


@pytest.mark.parametrize("inside", ["", "run"])
def test_a_run_is_not_kept_where_the_bundle_is_to_be(inside, tmp_path):
    out = tmp_path / "bundle"
    with pytest.raises(ConfigError, match="--run-dir .*: must not be in the folder of the bundle"):
        fit(CONFIG, Path(), out / inside, out, WHERE, Display(quiet=True))
    assert not out.exists()
