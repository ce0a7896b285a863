import io
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from training.__main__ import main
from training.data.formats import DataError
from training.data.sources import SourceConfig, read_rows
from training.evaluation.behaviour import CONFIGS, BehaviourTest, check, read_suite, run
from training.evaluation.perturbations import PERTURBATIONS

# Powers of two: what they add up to is exact.
GOOD = {
    "good": 1 / 8, "great": 1 / 4, "nurse": 1 / 64, "not": -1 / 16, "bad": -1 / 8, "awful": -1 / 4
}  # fmt: skip


def by_words(texts):
    """Half and half, moved by each word that it knows."""
    positive = [0.5 + sum(GOOD.get(w, 0) for w in re.findall(r"\w+", t.lower())) for t in texts]
    return np.array([[1 - p, p] for p in positive], np.float32)


def always_positive(texts):
    return np.array([[0.1, 0.9]] * len(texts), np.float32)


def nothing(texts):
    return np.full((len(texts), 2), np.nan, np.float32)


def suite(folder: Path, test: str, slots: str = "") -> Path:
    path = folder / "own.toml"
    head = '[[tests]]\nname = "one"\ncapability = "words"\n'
    path.write_text(f"[slots]\n{slots}\n{head}{test}\n", encoding="utf-8")
    return path


MFT = 'kind = "mft"\nlabel = "positive"\n'
INV = 'kind = "inv"\n'
DIR = 'kind = "dir"\nlabel = "positive"\n'
JOBS = 'job = ["doctor", "nurse"]'


@pytest.mark.parametrize(
    ("test", "cases", "reasons"),
    [
        (MFT + 'templates = ["A good day"]', 1, []),
        (MFT + 'templates = ["A bad day"]', 1, ["expected positive, got negative 0.62"]),
        (INV + 'swap = "job"\ntemplates = ["A good {job}"]', 1, []),
        (INV + 'swap = "job"\ntolerance = 0.02\ntemplates = ["A good {job}"]', 1, []),
        (
            INV + 'swap = "job"\ntolerance = 0.005\ntemplates = ["A good {job}"]',
            1,
            ["negative must stay: 0.38 → 0.36"],
        ),
        (INV + 'append = ["At noon."]\ntemplates = ["So good."]', 1, []),
        (
            INV + 'replace = { good = "bad" }\ntemplates = ["So good."]',
            1,
            ["positive must stay ahead: 0.62 → 0.38"],
        ),
        (INV + 'perturbation = "upper"\ntemplates = ["so good"]', 1, []),
        (DIR + 'direction = "up"\nappend = ["It was great."]\ntemplates = ["I was in."]', 1, []),
        (
            DIR + 'direction = "up"\nappend = ["An awful bad one."]\ntemplates = ["I was in."]',
            1,
            ["positive must not fall: 0.50 → 0.12"],
        ),
        (DIR + 'direction = "down"\nprepend = ["Not so"]\ntemplates = ["good"]', 1, []),
        (
            DIR + 'direction = "down"\nprepend = ["great", "awful"]\ntemplates = ["So so"]',
            2,
            ["positive must not rise: 0.50 → 0.75"],
        ),
        # Against the direction, but by less than a tenth, then by more than is allowed.
        (DIR + 'direction = "up"\nappend = ["nurse"]\ntemplates = ["I am no"]', 1, []),
        (DIR + 'direction = "down"\nappend = ["nurse"]\ntemplates = ["I am a"]', 1, []),
        (
            DIR + 'direction = "down"\ntolerance = 0.0\nappend = ["nurse"]\ntemplates = ["I am a"]',
            1,
            ["positive must not rise: 0.50 → 0.52"],
        ),
    ],
)  # fmt: skip
def test_each_kind_passes_and_fails_as_it_says(test, cases, reasons, tmp_path):
    report = run(read_suite(suite(tmp_path, test, JOBS)), by_words)
    (outcome,) = report.outcomes
    assert outcome.cases == cases
    assert [failure.reason for failure in outcome.failures] == reasons


@pytest.mark.parametrize(
    "test",
    [
        MFT + 'templates = ["A good day"]',
        INV + 'append = ["At noon."]\ntemplates = ["So good."]',
        INV + 'tolerance = 1.0\nappend = ["At noon."]\ntemplates = ["So good."]',
        DIR + 'direction = "up"\nappend = ["Great."]\ntemplates = ["So good."]',
        DIR + 'direction = "down"\nappend = ["Awful."]\ntemplates = ["So good."]',
    ],
)
def test_what_is_no_number_passes_nothing(test, tmp_path):
    (outcome,) = run(read_suite(suite(tmp_path, test)), nothing).outcomes
    assert [failure.reason for failure in outcome.failures] == ["a probability is no number"]


@pytest.mark.parametrize(
    ("test", "cases"),
    [
        (
            INV + 'swap = "job"\ntemplates = ["{job} {x}"]',
            [
                ("Doctor p", "Nurse p"),
                ("Doctor p", "Pilot p"),
                ("Doctor q", "Nurse q"),
                ("Doctor q", "Pilot q"),
            ],
        ),
        (
            INV
            + 'replace = { for = "4", am = "m" }\ntemplates = ["For me I am, for former fame."]',
            [("For me I am, for former fame.", "4 me I m, 4 former fame.")],
        ),
        (
            INV + 'replace = { you = "u" }\ntemplates = ["You and you"]',
            [("You and you", "U and u")],
        ),
        (
            INV + 'append = ["A.", "B."]\ntemplates = ["C."]',
            [("C.", "C. A."), ("C.", "C. B.")],
        ),
    ],
)
def test_a_change_gives_these_pairs(test, cases, tmp_path):
    slots = 'job = ["doctor", "nurse", "pilot"]\nx = ["p", "q"]'
    (got,) = read_suite(suite(tmp_path, test, slots))
    assert [(case.text, case.changed) for case in got.cases] == cases


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("lower", "não é mau, já vi: it's ok!"),
        ("upper", "NÃO É MAU, JÁ VI: IT'S OK!"),
        ("no_accents", "Nao e mau, ja vi: it's ok!"),
        ("no_punctuation", "Não é mau já vi it's ok"),
        ("no_apostrophes", "Não é mau, já vi: its ok!"),
        ("exclamation", "Não é mau, já vi: it's ok!!!"),
        ("ellipsis", "Não é mau, já vi: it's ok..."),
        # All its words are too short for a typo.
        ("swap_letters", "Não é mau, já vi: it's ok!"),
    ],
)
def test_a_perturbation_makes_this_of_a_sentence(name, changed):
    assert PERTURBATIONS[name]("Não é mau, já vi: it's ok!") == changed


@pytest.mark.parametrize(
    ("name", "longer"), [("swap_letters", 0), ("drop_letter", -1), ("repeat_letter", 1)]
)
def test_a_typo_is_one_letter_of_a_long_word_and_always_the_same(name, longer):
    for sentence in ("A wonderful day in the city", "Que passeio maravilhoso", "Horrible!"):
        changed = PERTURBATIONS[name](sentence)
        assert changed == PERTURBATIONS[name](sentence) != sentence
        assert len(changed) - len(sentence) == longer
        differing = [
            (before, after)
            for before, after in zip(sentence.split(), changed.split(), strict=True)
            if before != after
        ]
        ((before, after),) = differing
        assert (before[0], before[-1]) == (after[0], after[-1])
        assert len(before) >= 5


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ('kind = "odd"\ntemplates = ["x"]', r"test 'one': kind='odd': Input should be 'mft'"),
        ('kind = "mft"\ntemplates = ["x"]', "test 'one': label is missing; kind='mft' needs it"),
        (MFT, "test 'one': templates: Field required"),
        (MFT + "templates = []", r"test 'one': templates=\[\]: List should have at least 1"),
        (MFT + 'templates = ["x", 2]', r"test 'one': templates\.1=2: Input should be a valid str"),
        (MFT + 'templates = ["{y}"]', r"test 'one': templates\[0\]: slot \{y\} has no words"),
        (MFT + 'templates = ["x {"]', r"test 'one': templates\.0='x \{': String should"),
        (MFT + 'templates = ["x"]\ncolour = "red"', "test 'one': colour='red': Extra inputs"),
        (MFT + 'templates = ["x"]\ntolerance = 0.1', "tolerance=0.1: kind='mft' has none"),
        (MFT + 'templates = ["x"]\nswap = "job"', "swap='job': kind='mft' changes nothing"),
        (
            'kind = "mft"\nlabel = "neutral"\ntemplates = ["x"]',
            r"test 'one': label='neutral': there are \['negative', 'positive'\]",
        ),
        (INV + 'templates = ["x"]', r"kind='inv' needs one of .*; there are \[\]"),
        (
            INV + 'templates = ["x"]\nappend = ["y"]\nprepend = ["z"]',
            r"there are \['append', 'prepend'\]",
        ),
        (INV + 'templates = ["x"]\nperturbation = "cut"', "perturbation='cut': known are .*lower"),
        (
            INV + 'templates = ["x"]\ntolerance = 2\nappend = ["y"]',
            "tolerance=2: .*less than or eq",
        ),
        (INV + 'templates = ["x"]\nswap = "job"', r"templates\[0\]='x': has no \{job\}"),
        (INV + 'templates = ["x"]\nlabel = "positive"\nappend = ["y"]', "label='positive': kind="),
        (
            INV + 'templates = ["day", "ja"]\nreplace = { day = "night" }',
            r"templates\[1\]='ja': nothing in it is changed",
        ),
        (DIR + 'templates = ["x"]\nappend = ["y"]', "direction is missing; kind='dir' needs it"),
        (DIR + 'direction = "left"\ntemplates = ["x"]\nappend = ["y"]', "direction='left': Input"),
        (
            MFT + f'templates = ["x"]\n[[tests]]\nname = "one"\ncapability = "b"\n{MFT}'
            'templates = ["y"]',
            "test 'one': there are two of that name",
        ),
        (MFT + 'templates = ["x"]\n[[tests]]\nkind = "inv"', "test 1: name: Field required"),
        (MFT + "templates = [", "not TOML: "),
        (MFT + 'templates = ["x"]\n[more]', "more={}: Extra inputs are not permitted"),
    ],
)
def test_a_suite_that_is_none_is_refused_by_test_key_and_value(test, reason, tmp_path):
    with pytest.raises(DataError, match=f"own.toml: .*{reason}"):
        read_suite(suite(tmp_path, test, JOBS))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "own.toml: tests: Field required"),
        ("tests = 3", "own.toml: tests=3: Input should be a valid list"),
        ('tests = ["x"]', r"own.toml: tests\.0='x': Input should be a valid"),
        ("slots = { job = 3 }\ntests = []", r"own.toml: slots.job=3: Input.*; tests=\[\]: List"),
        (None, "own.toml: cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_suite_is_refused(content, reason, tmp_path):
    path = tmp_path / "own.toml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=reason):
        read_suite(path)


COUNTED = """
[[tests]]
name = "likes"
capability = "words"
kind = "mft"
label = "positive"
templates = ["good", "great", "bad [b]", "awful"]

[[tests]]
name = "dislikes"
capability = "words"
kind = "mft"
label = "negative"
templates = ["bad", "awful"]

[[tests]]
name = "nots"
capability = "negation"
kind = "mft"
label = "positive"
templates = ["not bad", "not awful"]
"""


@pytest.fixture
def counted(tmp_path) -> Path:
    path = tmp_path / "counted.toml"
    path.write_text(COUNTED, encoding="utf-8")
    return path


def test_a_report_counts_by_test_by_capability_and_in_all(counted):
    content = json.loads(json.dumps(run(read_suite(counted), by_words).to_json()))
    assert [content[key] for key in ("cases", "failures", "pass_rate")] == [8, 4, 0.5]
    assert content["capabilities"] == {
        "words": {"cases": 6, "failures": 2, "pass_rate": pytest.approx(4 / 6)},
        "negation": {"cases": 2, "failures": 2, "pass_rate": 0.0},
    }
    assert [test["failures"] for test in content["tests"]] == [2, 0, 2]
    assert content["tests"][0]["examples"][0] == {
        "text": "Bad [b]",
        "changed": None,
        "reason": "expected positive, got negative 0.62",
    }


@pytest.mark.parametrize(
    ("most", "shown"), [(0, []), (1, [0, 2]), (2, [0, 1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_a_report_shows_as_many_failures_of_a_test_as_asked(most, shown, counted):
    report = run(read_suite(counted), by_words)
    console = Console(width=100, file=io.StringIO())
    console.print(report.table("own"), report.examples(most))
    text = console.file.getvalue()
    assert re.search(r"words .* 6 .* 2 .* 66\.7%", text)
    assert re.search(r"all .* 8 .* 4 .* 50\.0%", text)
    failing = ["Bad [b]", "Awful", "Not bad", "Not awful"]
    assert [number for number, case in enumerate(failing) if case in text] == shown


def test_the_predictor_is_asked_once_and_never_twice_for_a_text(counted):
    asked = []

    def predict(texts):
        asked.append(list(texts))
        return by_words(texts)

    path = suite(counted.parent, INV + 'append = ["A.", "B."]\ntemplates = ["C.", "C. A."]')
    run(read_suite(path), predict)
    assert asked == [["C.", "C. A.", "C. B.", "C. A. A.", "C. A. B."]]


@pytest.fixture(scope="module", params=["en", "pt"])
def ours(request) -> tuple[str, tuple[BehaviourTest, ...]]:
    return request.param, read_suite(CONFIGS / f"behaviour-{request.param}.toml")


def test_our_suites_are_broad(ours):
    _, tests = ours
    assert len(tests) >= 40
    assert len({test.expectation.capability for test in tests}) >= 15
    assert {test.expectation.kind for test in tests} == {"mft", "inv", "dir"}


def test_no_case_of_ours_counts_twice_and_none_is_left_a_template(ours):
    for test in ours[1]:
        assert max(Counter(test.cases).values()) == 1, test.expectation.name
        assert not any("{" in f"{case.text}{case.changed}" for case in test.cases)


def test_no_sentence_of_ours_is_trained_on(ours):
    def bare(text):
        return " ".join(re.findall(r"\w+", text.lower()))

    language, tests = ours
    files = [f"{kind}-{language}.toml" for kind in ("everyday", "order")]
    trained = [read_rows(SourceConfig(name=file, path=file), None, CONFIGS)[0] for file in files]
    seen = {bare(text) for rows in trained for text in rows.texts}
    cases = [case for test in tests for case in test.cases]
    own = {text for case in cases for text in (case.text, case.changed) if text is not None}
    assert not {text for text in own if bare(text) in seen}


def test_one_answer_to_all_passes_about_half(ours):
    plain = [test for test in ours[1] if test.expectation.kind == "mft"]
    assert 0.35 < run(plain, always_positive).to_json()["pass_rate"] < 0.65


def test_no_sentence_of_ours_is_both_praise_and_blame(ours):
    plain = [test for test in ours[1] if test.expectation.kind == "mft"]
    labels = {(case.text, test.expectation.label) for test in plain for case in test.cases}
    assert max(Counter(text for text, _ in labels).values()) == 1


def test_a_bundle_is_checked_in_its_own_languages(bundle):
    ((path, report),) = check(bundle).items()
    assert path == CONFIGS / "behaviour-en.toml"
    assert report.to_json()["cases"] > 1000


def test_the_command_shows_the_figures_and_writes_them(tiny_bundle, counted, capsys):
    out = counted.parent / "figures.json"
    command = ["check", str(tiny_bundle), "--suite", str(counted), str(counted), "--json", str(out)]
    assert main(command) == 0
    (content,) = json.loads(out.read_text(encoding="utf-8"))
    assert (content["suite"], content["cases"]) == ("counted.toml", 8)
    shown = capsys.readouterr().out
    assert "dislikes" in shown
    assert ("why it failed" in shown) == (content["failures"] > 0)
    assert main([*command, "--examples", "0"]) == 0
    assert "why it failed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--suite", "none.toml"], "none.toml: cannot be read: No such file"),
        (["--suite", "{suite}", "--json", "none/x.json"], "--json none/x.json: cannot be written"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_a_line(
    arguments, reason, tiny_bundle, counted, capsys
):
    given = [argument.format(suite=counted) for argument in arguments]
    assert main(["check", str(tiny_bundle), *given]) == 2
    assert reason in capsys.readouterr().err


def test_a_bundle_of_other_labels_or_languages_is_refused_by_name(bundle, counted):
    def other(**changes):
        return replace(bundle, manifest=bundle.manifest.model_copy(update=changes))

    with pytest.raises(DataError, match=r"test 'likes': label='positive': .*--label VALUE="):
        check(other(labels=("bad", "good")), [counted])
    with pytest.raises(DataError, match=r"the bundle's languages \(tlh\): name one with --suite"):
        check(other(languages=("tlh",)))
