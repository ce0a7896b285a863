import pytest
import torch

from training.config import ConfigError
from training.loop.trainer import Ranks
from training.run import run_folder

FIRST, SECOND = (Ranks(rank, 2, torch.device("cpu")) for rank in (0, 1))


def test_a_folder_is_one_runs_until_its_end(tmp_path):
    folder = tmp_path / "runs" / "model"
    with run_folder(folder, FIRST):
        with pytest.raises(ConfigError, match=f"--run-dir {folder}: another process is training"):
            run_folder(folder, FIRST).__enter__()
        with run_folder(folder, SECOND):  # of the same run
            pass
    with run_folder(folder, FIRST):
        pass


def test_where_nothing_can_be_written_no_run_begins(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--run-dir .*file: cannot be written"):
        run_folder(tmp_path / "file", FIRST).__enter__()


def test_an_error_of_the_run_is_told_as_it_is(tmp_path):
    with pytest.raises(OSError, match="No space left"), run_folder(tmp_path, FIRST):
        raise OSError(28, "No space left on device")
