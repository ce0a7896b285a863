import pytest

from training.files import replacing


def test_what_is_written_takes_the_place_of_what_was_there(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with replacing(path) as fresh:
        fresh.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_on_the_way_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as fresh:
            fresh.write_text("ne")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_writes_nothing_is_no_success(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "table.csv"):
        pass
