from pathlib import Path

import pytest

from training.data.formats import DataError
from training.data.sources import SourceConfig, read_rows
from training.data.templates import MOST_PER_TEMPLATE, expand

CONFIGS = Path(__file__).parents[3] / "training" / "configs"


@pytest.mark.parametrize(
    ("template", "sentences"),
    [
        ("Just this.", ["Just this."]),
        ("{a} is {b}", ["X is p", "X is q", "Y is p", "Y is q"]),
        ("{b}, {b}!", ["P, p!", "Q, q!"]),
    ],
)
def test_a_template_stands_for_its_sentences(template, sentences):
    assert list(expand(template, {"a": ["x", "y"], "b": ["p", "q"]})) == sentences


def test_a_template_of_many_gives_a_fixed_choice():
    slots = {"a": [f"a{i}" for i in range(40)], "b": [f"b{i}" for i in range(40)]}
    first = expand("{a} {b}", slots)
    assert len(set(first)) == MOST_PER_TEMPLATE
    assert first == expand("{a} {b}", slots)


def write(path: Path, content: str) -> SourceConfig:
    (path / "own.toml").write_text(content, encoding="utf-8")
    return SourceConfig(name="own", path="own.toml")


def test_a_file_of_templates_is_a_source_like_any_other(tmp_path):
    source = write(
        tmp_path,
        '[slots]\nit = ["film", "livro"]\n[good]\ntemplates = ["O {it} é bom."]\n'
        '[bad]\ntemplates = ["Não gostei."]\n',
    )
    rows, labels, _ = read_rows(source, None, tmp_path)
    assert labels == ("bad", "good")
    assert rows.texts == ["O film é bom.", "O livro é bom.", "Não gostei."]
    assert rows.labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[good]\ntemplates = ["{it}"]', r"own.toml: good\[0\]: slot \{it\} has no words"),
        ("[good]\ntemplates = 3", r"own.toml: \[good\]: templates must be a list of texts"),
        ('good = "x"', r"own.toml: \[good\]: templates must be a list of texts"),
        ("[good", "own.toml: .*end of document"),
        ("slots = 3", r"own.toml: \[slots\] must name lists of words"),
        ('[good]\ntemplates = ["{a.b}"]', r"own.toml: good\[0\]: a slot is \{name\}"),
        ('[good]\ntemplates = ["so {} it"]', r"own.toml: good\[0\]: a slot is \{name\}"),
    ],
)
def test_a_file_that_is_none_is_refused_by_place(content, reason, tmp_path):
    with pytest.raises(DataError, match=reason):
        read_rows(write(tmp_path, content), None, tmp_path)


@pytest.mark.parametrize("kind", ["everyday", "order"])
@pytest.mark.parametrize("language", ["en", "pt"])
def test_our_own_sentences_are_many_and_even(kind, language):
    source = SourceConfig(name=language, path=f"{kind}-{language}.toml")
    rows, labels, _ = read_rows(source, None, CONFIGS)
    assert labels == ("negative", "positive")
    assert len(rows) > 3000
    assert 0.4 < rows.labels.mean() < 0.6
    assert not any("{" in text for text in rows.texts)
