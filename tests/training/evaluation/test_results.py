import csv

import pytest

from tests.conftest import REVIEWS
from training.__main__ import main
from training.evaluation.results import COLUMNS, ResultsError, append


def test_each_test_set_has_a_row_and_runs_add_up(bundle, tmp_path):
    path = tmp_path / "results.csv"
    append(path, bundle.manifest, seed=7)
    append(path, bundle.manifest, seed=8)
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["set"], row["seed"]) for row in rows] == [
        (name, seed) for seed in ("7", "8") for name in bundle.manifest.metrics
    ]
    first, metrics = rows[0], bundle.manifest.metrics["reviews"]
    assert (first["name"], first["layers"], first["d_model"]) == ("tiny", "2", "32")
    assert first["rows"] == str(metrics["rows"])
    assert float(first["accuracy"]) == pytest.approx(metrics["accuracy"], abs=1e-4)
    assert float(first["calibration_error"]) == pytest.approx(metrics["ece"], abs=1e-4)


def test_what_was_not_measured_is_empty(bundle, tmp_path):
    metrics = {"reviews": {"rows": 3, "accuracy": 2 / 3}}
    append(tmp_path / "r.csv", bundle.manifest.model_copy(update={"metrics": metrics}), seed=0)
    line = (tmp_path / "r.csv").read_text(encoding="utf-8").splitlines()[1]
    assert line.endswith(",reviews,3,0.6667,,,,")


def test_another_table_is_not_spoilt(bundle, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("text,label\ngood,1\n", encoding="utf-8")
    with pytest.raises(
        ResultsError, match=r"other\.csv: its columns are 'text,label', not 'created"
    ):
        append(other, bundle.manifest, seed=0)
    assert other.read_text(encoding="utf-8") == "text,label\ngood,1\n"
    with pytest.raises(ResultsError, match="cannot be read"):
        append(tmp_path, bundle.manifest, seed=0)
    with pytest.raises(ResultsError, match=r"r\.csv: there is no folder .*nowhere"):
        append(tmp_path / "nowhere" / "r.csv", bundle.manifest, seed=0)


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_table_that_an_editor_has_saved_goes_on_in_a_line_of_its_own(bundle, tmp_path, end):
    path = tmp_path / "results.csv"
    path.write_text("")  # a table of nothing begins anew
    append(path, bundle.manifest, seed=1)
    path.write_text(path.read_text().rstrip("\n") + end)
    append(path, bundle.manifest, seed=2)
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + 2 * len(bundle.manifest.metrics)
    assert {line.count(",") for line in lines} == {len(COLUMNS) - 1}


def test_a_run_is_refused_before_it_begins_where_its_figures_could_not_go(tmp_path, capsys):
    command = ["fit", str(REVIEWS), "--out", str(tmp_path / "out"), "--results", str(REVIEWS)]
    assert main([*command, "--run-dir", str(tmp_path / "run")]) == 2
    assert "its columns are" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
