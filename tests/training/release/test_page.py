import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from model.bundle import Source, sha256
from training.__main__ import main
from training.release.page import page, percent, plus_or_minus, read_behaviour, settings
from training.release.report import model_card

VOID = {"img", "meta", "br", "link"}


class Reader(HTMLParser):
    """Checks that every element is closed in its order; gathers what a test looks at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []
        self.cells: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data


def copy(bundle: Path, to: Path, **changes: object) -> Path:
    """The bundle with another manifest; what the files hold stays verified."""
    shutil.copytree(bundle, to)
    manifest = json.loads((to / "manifest.json").read_text()) | changes
    (to / "manifest.json").write_text(json.dumps(manifest))
    return to


@pytest.fixture
def behaviour(tmp_path: Path) -> Path:
    def test(name, kind, capability, cases, failures):
        return {
            "name": name, "kind": kind, "capability": capability, "cases": cases,
            "failures": failures, "pass_rate": 1 - failures / cases, "examples": [],
        }  # fmt: skip

    tests = [
        test("not", "mft", "negation", 30, 3),
        test("never", "mft", "negation", 10, 1),
        test("typos", "inv", "robustness", 8, 0),
        test("not, added", "dir", "negation", 4, 3),
    ]
    path = tmp_path / "behaviour.json"
    path.write_text(json.dumps([{"suite": "behaviour-en.toml", "tests": tests}]))
    return path


def test_one_bundle_gives_a_page_that_needs_nothing_else(tiny_bundle: Path, tmp_path: Path):
    out = tmp_path / "report.html"
    assert main(["report", str(tiny_bundle), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    reader = Reader(text)
    assert not {"script", "link", "iframe"} & set(reader.seen)
    assert not re.search(r"https?://", text)
    assert "@media print" in text
    assert "prefers-color-scheme: dark" in text
    plots = [
        base64.b64decode(one.removeprefix("data:image/png;base64,")) for one in reader.addresses
    ]
    names = ("confusion", "loss", "reliability")
    assert plots == [(tiny_bundle / "report" / f"{name}.png").read_bytes() for name in names]
    metrics = json.loads((tiny_bundle / "manifest.json").read_text())["metrics"]["reviews"]
    row = next(cells for cells in reader.cells if cells[:2] == ["tiny 1", str(metrics["rows"])])
    wanted = ("accuracy", "linear_accuracy", "accuracy_at_80", "macro_f1", "ece")
    assert [cell.split(" ±")[0] for cell in row[2:]] == [percent(metrics[key]) for key in wanted]
    assert ["negative", *map(str, metrics["confusion"][0])] in reader.cells
    assert ["learning_rate", "0.005"] in reader.cells
    assert ["reviews", "en", "–", str(metrics["rows"]), "Apache-2.0", ""] in reader.cells


def test_bundles_stand_side_by_side(tiny_bundle: Path, tmp_path: Path, behaviour: Path):
    metrics = {
        "A": {"rows": 400, "accuracy": 0.8, "macro_f1": 0.79, "ece": 0.02},
        "B": {"rows": 100, "accuracy": 0.5},
    }
    one = copy(tiny_bundle, tmp_path / "one", metrics=metrics)
    better = {"A": {"rows": 400, "accuracy": 0.9, "macro_f1": 0.9, "ece": 0.03}}
    two = copy(tiny_bundle, tmp_path / "run" / "bundle", version="2", metrics=better)
    text = page([one, two.parent], [behaviour, behaviour])
    cells = Reader(text).cells
    assert ["tiny 1", "400", "80.0\xa0% ±\xa03.9", "–", "–", "79.0\xa0%", "2.0\xa0%"] in cells
    assert ["tiny 2", "400", "90.0\xa0% ±\xa03.0", "–", "–", "90.0\xa0%", "3.0\xa0%"] in cells
    bold = re.findall(r'class="number best">([^<]*?)\s*<', text)
    assert bold == ["2.0\xa0%", "90.0\xa0%", "90.0\xa0%"]
    assert ["mft", "inv", "dir"] * 2 in cells
    assert ["negation", *["90.0\xa0%, 36/40", "–", "25.0\xa0%, 1/4"] * 2] in cells
    assert ["robustness", *["–", "100.0\xa0%, 8/8", "–"] * 2] in cells
    assert ["all", *["90.0\xa0%, 36/40", "100.0\xa0%, 8/8", "25.0\xa0%, 1/4"] * 2] in cells
    assert ["learning_rate", "0.005", "0.005"] in cells
    assert 'class="differs"' not in text


def test_two_of_one_name_are_told_apart(tiny_bundle: Path, tmp_path: Path):
    other = copy(tiny_bundle, tmp_path / "other", license="MIT")
    prints = [sha256((one / "manifest.json").read_bytes())[:8] for one in (tiny_bundle, other)]
    text = page([tiny_bundle, other])
    assert [f"tiny 1 ({one})" in text for one in prints] == [True, True]


def test_words_of_a_bundle_stay_words(tiny_bundle: Path, tmp_path: Path):
    bad = "<script>alert('é')</script>\"><img src=x>"
    sources = [{"name": bad, "language": "en", "rows": 1, "license": bad, "origin": bad}]
    names = ["<b>negative</b>", "positive & more"]
    changes = {"license": bad, "sources": sources, "labels": names, "code": bad}
    reader = Reader(text := page([copy(tiny_bundle, tmp_path / "odd", **changes)]))
    assert "<script" not in text
    assert "script" not in reader.seen
    assert len(reader.addresses) == reader.seen.count("img") == 3
    assert [bad, "en", "–", "1", bad, bad] in reader.cells
    assert ["", *names] in reader.cells


def test_the_card_says_which_source_is_of_which_domain(bundle):
    sources = [
        Source(name=name, language="pt", rows=3, license="mine", domain=domain)
        for name, domain in (("a", "reviews"), ("b", ""))
    ]
    config = bundle.manifest.config.model_copy(update={"domains": 2, "ngrams": 64, "ends": 1.5})
    about = bundle.manifest.model_copy(update={"sources": sources, "config": config})
    card = model_card(about, {}, 10, []).decode()
    linear = "64 rows of n-grams, with weights for each of 2 domains, a text's last token counting"
    assert f"{linear} 2.5 times, 10 parameters" in card
    assert "| a | pt | reviews | 3 | mine |" in card
    assert "| b | pt | – | 3 | mine |" in card


def test_the_settings_are_those_of_the_model_card(bundle):
    lines = {"seed": 7, "max_steps": None, "note": "a: b"}
    card = model_card(bundle.manifest, lines, 10, ["- odd: data"]).decode()
    assert settings(card) == {"seed": "7", "max_steps": "None", "note": "a: b"}
    assert settings("# no card of ours") == {}


def test_capability_and_kind_are_counted_apart(behaviour: Path):
    assert read_behaviour(behaviour) == {
        ("behaviour-en.toml", "negation", "mft"): (36, 40),
        ("behaviour-en.toml", "robustness", "inv"): (8, 8),
        ("behaviour-en.toml", "negation", "dir"): (1, 4),
        ("behaviour-en.toml", "all", "mft"): (36, 40),
        ("behaviour-en.toml", "all", "inv"): (8, 8),
        ("behaviour-en.toml", "all", "dir"): (1, 4),
    }


def test_what_check_writes_is_read(tiny_bundle: Path, tmp_path: Path):
    suite, path = tmp_path / "suite.toml", tmp_path / "figures.json"
    suite.write_text(
        "[[tests]]\nname = 'fine'\nkind = 'mft'\ncapability = 'words'\nlabel = 'positive'\n"
        "templates = ['A wonderful story with a perfect ending']\n"
    )
    check = ["check", str(tiny_bundle), "--suite", str(suite), "--json", str(path)]
    assert main(check) == 0
    rates = {("suite.toml", name, "mft"): (1, 1) for name in ("words", "all")}
    assert read_behaviour(path) == rates


@pytest.mark.parametrize(
    ("value", "text"), [(0.8666, "86.7\xa0%"), (1, "100.0\xa0%"), (None, "–"), ("x", "–")]
)
def test_shares_are_per_cent_and_what_is_missing_a_dash(value, text):
    assert percent(value) == text


def test_chance_is_larger_with_fewer_rows():
    assert plus_or_minus({"accuracy": 0.5, "rows": 100}) == "±\xa09.6"
    assert plus_or_minus({"accuracy": 0.5, "rows": 10_000}) == "±\xa01.0"
    assert plus_or_minus({"accuracy": 0.5}) == ""


def test_what_cannot_be_shown_is_refused_in_a_line(tiny_bundle, tmp_path, behaviour, capsys):
    broken = copy(tiny_bundle, tmp_path / "broken")
    (broken / "report" / "model_card.md").write_text("another")
    empty, text = tmp_path / "empty.json", tmp_path / "text.json"
    empty.write_text('[{"suite": "a", "tests": [{"kind": "xyz"}]}]')
    text.write_text("no JSON")
    many = tmp_path / "many.json"
    many.write_text(behaviour.read_text().replace('"failures": 0', '"failures": 9'))
    out = str(tmp_path / "out.html")
    asked = {
        ("none",): "none: no such folder",
        (str(tmp_path),): r"manifest\.json: cannot be read",
        (str(broken),): r"report/model_card\.md: damaged",
        (str(tiny_bundle), str(tiny_bundle), "--behaviour", str(behaviour)): (
            r"--behaviour: 1 file\(s\) for 2 bundle\(s\); give one for each"
        ),
        (str(tiny_bundle), "--behaviour", "none.json"): "none.json: cannot be read: No such file",
        (str(tiny_bundle), "--behaviour", str(empty)): "0.tests.0.kind='xyz': Input should be",
        (str(tiny_bundle), "--behaviour", str(many)): "many.json: .*failures=9 exceeds cases=8",
        (str(tiny_bundle), "--behaviour", str(text)): "text.json: .*Invalid JSON",
        (str(tiny_bundle), "--out", str(tmp_path)): "--out .*: cannot be written: Is a directory",
    }
    for arguments, reason in asked.items():
        assert main(["report", "--out", out, *arguments]) == 2
        said = capsys.readouterr().err
        assert re.search(reason, said)
        assert said.count("\n") == 1
    assert not Path(out).exists()
