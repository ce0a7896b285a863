"""Tables, ratios and plots of results."""

import io
import json
import math
import operator

import pytest
from rich.console import Console

from tests.benchmarks import plots
from tests.benchmarks.report import Result, Row, show, write


@pytest.fixture
def result() -> Result:
    rows = [
        Row("ours", "tiny", "crowd", [{"cpu_s_per_1000": 3.0}, {"cpu_s_per_1000": 4.0}]),
        Row("ours", "tiny", "alone", [{"cpu_s_per_1000": 5.0}, {"cpu_s_per_1000": 5.0}]),
        Row("raw", "tiny", "crowd", [{"cpu_s_per_1000": 2.0}, {"cpu_s_per_1000": 1.0}]),
        Row("ours", "large", "crowd", [{"cpu_s_per_1000": 9.0}]),
    ]
    return Result("unary", rows, ("cpu_s_per_1000", "times_raw", "over_raw", "p99_ms"))


def test_ratios_are_taken_within_rounds_and_bundles(result):
    result.relate("times_raw", "cpu_s_per_1000", "raw")
    result.relate("over_raw", "cpu_s_per_1000", "raw", "crowd", by=operator.sub)
    crowd, alone, raw, large = result.rows
    assert [one["times_raw"] for one in crowd.rounds] == [1.5, 4.0]
    assert crowd.median["times_raw"] == 2.75
    assert "times_raw" not in alone.median
    assert alone.median["over_raw"] == 3.5
    assert raw.median["times_raw"] == 1.0
    assert large.median == {"cpu_s_per_1000": 9.0}


def test_a_base_of_nothing_gives_no_number(result):
    result.rows[2].rounds[0]["cpu_s_per_1000"] = 0.0
    result.relate("times_raw", "cpu_s_per_1000", "raw")
    assert math.isnan(result.rows[0].rounds[0]["times_raw"])


def test_the_table_shows_medians_and_leaves_out_what_nobody_has(result):
    result.relate("times_raw", "cpu_s_per_1000", "raw")
    result.notes.append("a note [not markup]")
    console = Console(width=120, file=io.StringIO())
    show(result, console)
    text = console.file.getvalue()
    assert "3.50" in text
    assert "2.75" in text
    assert "p99" not in text
    assert "verdict" not in text
    assert "a note [not markup]" in text


def test_json_holds_every_round(result, tmp_path):
    result.rows[0].rounds[0]["p99_ms"] = math.nan
    write(result, tmp_path / "out" / "unary.json", {"machine": {"cpus": 2}})
    content = json.loads((tmp_path / "out" / "unary.json").read_text())
    assert content["machine"] == {"cpus": 2}
    assert content["rows"][0]["rounds"][0] == {"cpu_s_per_1000": 3.0, "p99_ms": None}
    assert content["rows"][0]["median"]["cpu_s_per_1000"] == 3.5


def test_plots_are_drawn_of_what_there_is(result, tmp_path):
    pytest.importorskip("matplotlib")
    assert [path.name for path in plots.draw(result, tmp_path)] == ["unary-cpu-per-1000.png"]
    rows = [
        Row("ours", "tiny", f"{rate}", [{"offered_per_s": rate, "capacity_per_s": 50.0} | rest])
        for rate, rest in ((100.0, FLOODED), (10.0, FLOODED))
    ]
    rows.append(Row("ours", "tiny", "long", series={"seconds": [0.0, 1.0], "rss_mb": [5.0, 6.0]}))
    names = [path.name for path in plots.draw(Result("overload", rows, ()), tmp_path)]
    assert names == [
        "overload-latency-against-load.png",
        "overload-goodput-against-load.png",
        "overload-memory.png",
    ]


FLOODED = {"goodput_per_s": 40.0, "p50_ms": 3.0, "p99_ms": 30.0}
