import re
from pathlib import Path

import numpy as np
import pytest

from training.config import ConfigError, RunConfig, load_config
from training.data.formats import DataError
from training.data.rows import row_key
from training.progress import Display
from training.splits import Splits, prepare

QUIET = Display(quiet=True)


def table(path: Path, name: str, rows: list[tuple[str, str]]) -> dict[str, str]:
    lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
    (path / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"name": name, "path": f"{name}.csv"}


def many(count: int, share_good: float = 0.5, kind: str = "w") -> list[tuple[str, str]]:
    good = round(count * share_good)
    return [
        (f"{'great' if i < good else 'awful'} thing of {kind}{i}", "good" if i < good else "bad")
        for i in range(count)
    ]


def run(path: Path, **fields) -> Splits:
    return prepare(RunConfig.model_validate(fields), path, QUIET)


def test_held_out_texts_are_never_trained_on_labelled_or_not(tmp_path):
    rows = many(40)
    held = rows[:5] + rows[-5:]
    splits = run(
        tmp_path,
        sources=[table(tmp_path, "train", [(text.upper() + "!", y) for text, y in rows])],
        unlabelled=[table(tmp_path, "raw", many(6, kind="new") + held)],
        validation=[table(tmp_path, "validation", held)],
        test=[table(tmp_path, "test", held)],
    )
    assert len(splits.train) == 30
    assert splits.unlabelled == [text for text, _ in many(6, kind="new")]


@pytest.mark.parametrize("key", ["validation", "test"])
def test_each_held_out_set_is_kept_from_training(key, tmp_path):
    rows = many(400)
    held = rows[:5] + rows[-5:]
    splits = run(
        tmp_path,
        sources=[table(tmp_path, "train", rows)],
        unlabelled=[table(tmp_path, "raw", many(6, kind="new") + held)],
        **{key: [table(tmp_path, "held", held)]},
    )
    keys = {row_key(text) for text, _ in held}
    assert not keys & {row_key(text) for text in (*splits.train.texts, *splits.unlabelled)}
    assert len(splits.unlabelled) == 6


def test_what_is_split_off_is_not_learnt_from_where_it_comes_once_more(tmp_path):
    rows = many(300)
    again = table(tmp_path, "again", [(f"{text.upper()}!", "") for text, _ in rows])
    source = table(tmp_path, "all", rows)
    splits = run(tmp_path, sources=[source], unlabelled=[again])
    assert len(splits.test["test"]) > 10
    for held_out in (*splits.validation.values(), *splits.test.values()):
        assert not {row_key(text) for text in splits.unlabelled} & set(map(row_key, held_out.texts))
    assert len(splits.unlabelled) == len(splits.train)
    loose = run(tmp_path, sources=[source], unlabelled=[again], exclude_held_out=False)
    assert len(loose.unlabelled) == 300


@pytest.mark.parametrize(
    "parts", [{"unit": "sentences"}, {"frames": ["they say {text}", "yes, {text}"]}]
)
def test_what_is_made_of_a_text_is_on_its_side(tmp_path, parts):
    rows = [
        (f"The {one} of story {i} is known. Nobody forgets number {i} of all.", one)
        for i, one in enumerate(["good", "bad"] * 150)
    ]
    whole = table(tmp_path, "whole", rows)
    splits = run(tmp_path, sources=[whole, whole | {"name": "parts"} | parts])
    numbers = [
        {re.search(r"\d+", text)[0] for text in part.texts}
        for part in (splits.train, *splits.validation.values(), *splits.test.values())
    ]
    assert sum(map(len, numbers)) == len(set.union(*numbers)) == 300
    assert len(splits.train) == 3 * len(numbers[0])


def test_classes_are_found_in_all_files_together(tmp_path):
    rows = many(300)
    sources = [
        table(tmp_path, "good", [row for row in rows if row[1] == "good"]),
        table(tmp_path, "more", [(f"{text} too", label) for text, label in rows]),
        table(tmp_path, "fair", [(f"fair thing of f{i}", "fair") for i in range(100)]),
    ]
    splits = run(tmp_path, sources=sources)
    assert splits.labels == ("bad", "fair", "good")
    for rows in (splits.train, *splits.test.values()):
        first = [text.split()[0] for text in rows.texts]
        classes = {"awful": "bad", "fair": "fair", "great": "good"}
        assert [splits.labels[at] for at in rows.labels] == [classes[one] for one in first]
    with pytest.raises(DataError, match=r"every row is of the same class of \['good'\]"):
        run(tmp_path, sources=[sources[0], sources[0] | {"name": "again"}])


def test_a_limit_counts_the_rows_that_are_kept(tmp_path):
    rows = [row for pair in zip(many(20), many(20, kind="m"), strict=True) for row in pair]
    mixed = [(text, "so-so" if number % 2 else label) for number, (text, label) in enumerate(rows)]
    held = table(tmp_path, "held", mixed) | {
        "labels": {"so-so": False, "good": "good", "bad": "bad"},
        "limit": 15,
    }
    splits = run(
        tmp_path,
        sources=[table(tmp_path, "train", [*rows, *many(20, kind="t")])],
        validation=[held],
        test=[held],
    )
    assert len(splits.test["held"]) == 15
    assert not set(splits.train.texts) & set(splits.test["held"].texts)


def test_rows_of_one_class_are_refused_once_they_are_divided(tmp_path):
    texts = (f"poor thing of b{i}" for i in range(99))
    split_off = [(text, "bad") for text in texts if int(row_key(text), 16) < 0.2 * 16**16][:2]
    source = table(tmp_path, "all", [*many(60, 1.0), *split_off])
    with pytest.raises(DataError, match=r"train: only rows of \['good'\] are left"):
        run(tmp_path, sources=[source])


def test_a_digest_tells_rows_apart(tmp_path):
    rows = many(60)
    first = run(tmp_path, sources=[table(tmp_path, "all", rows)]).digest
    assert run(tmp_path, sources=[table(tmp_path, "all", rows)]).digest == first
    corrected = [(rows[0][0], "bad"), *rows[1:]]
    reworded = [(rows[0][0] + "s", rows[0][1]), *rows[1:]]
    more = [table(tmp_path, "more", many(5, kind="m"))]
    others = [
        run(tmp_path, sources=[table(tmp_path, "all", corrected)]),
        run(tmp_path, sources=[table(tmp_path, "all", reworded)]),
        run(tmp_path, sources=[table(tmp_path, "all", rows)], unlabelled=more),
        run(tmp_path, sources=[table(tmp_path, "all", rows)], validation=more),
    ]
    assert len({first, *(other.digest for other in others)}) == 5


def test_only_rows_that_are_held_out_are_left_out(tmp_path):
    source = table(tmp_path, "all", [("not held out at all", "bad"), *many(20)])
    held = source | {"matching": ".*w19", "limit": 1}
    splits = run(tmp_path, sources=[source], validation=[held], test=[held])
    assert len(splits.train) == 20
    assert "not held out at all" in splits.train.texts


def test_a_teacher_labels_what_it_is_sure_of(tmp_path):
    raw = [("great new story told well", "-1"), ("awful new story told badly", "-1")]
    unsure = [("completely unknown words here", "-1")]
    splits = run(
        tmp_path,
        sources=[table(tmp_path, "train", many(200))],
        unlabelled=[
            table(tmp_path, "raw", raw + unsure)
            | {"teacher": ["train"], "least_confidence": 0.7, "language": "en"}
        ],
    )
    taught = splits.train.take(splits.train.sources == 1)
    assert taught.texts == [text for text, _ in raw]
    assert [splits.labels[i] for i in taught.labels] == ["good", "bad"]
    assert (taught.targets.max(axis=1) < 1).all(), "and says how sure it is"
    assert taught.languages.tolist() == ["en", "en"]
    assert [source.name for source in splits.sources] == ["train", "raw"]
    assert splits.unlabelled == []


def test_rows_weigh_for_linear_models_what_their_source_says(tmp_path):
    splits = run(
        tmp_path,
        sources=[
            table(tmp_path, "templates", many(30, kind="t")) | {"linear": 0.25},
            table(tmp_path, "reviews", many(40)),
        ],
        unlabelled=[
            table(tmp_path, "raw", many(10, kind="new")) | {"teacher": ["reviews"]},
        ],
    )
    of_source = {source: set(splits.linear[splits.train.sources == source]) for source in range(3)}
    assert of_source == {0: {0.25}, 1: {1.0}, 2: {0.0}}, "a linear teacher tells them nothing"


def test_a_row_is_of_the_domain_of_its_source(tmp_path):
    sources = [
        table(tmp_path, name, many(20, kind=name)) | {"domain": domain}
        for name, domain in (("a", "reviews"), ("b", ""), ("c", "posts"))
    ]
    splits = run(tmp_path, sources=sources)
    of_source = [splits.domains[splits.train.sources == number] for number in range(3)]
    assert [np.unique(one, axis=0).tolist() for one in of_source] == [[[1, 0]], [[0, 0]], [[0, 1]]]
    sources[2]["domain"] = "reviews"
    assert run(tmp_path, sources=sources).domains is None, "of one there is nothing to tell"


def test_a_domain_has_rows(tmp_path):
    first = table(tmp_path, "a", many(60)) | {"domain": "reviews"}
    again = table(tmp_path, "b", many(60)) | {"domain": "posts"}
    with pytest.raises(ConfigError, match="sources: domain='posts' has no rows left, 60 dup"):
        run(tmp_path, sources=[first, again])


def test_a_teacher_must_be_a_source(tmp_path):
    source = table(tmp_path, "train", many(20))
    with pytest.raises(
        ValueError, match=r"raw: teacher=\['nobody'\] is no source with labels of its own"
    ):
        run(
            tmp_path, sources=[source], unlabelled=[source | {"name": "raw", "teacher": ["nobody"]}]
        )


def test_a_teacher_of_one_class_is_refused(tmp_path):
    good = table(tmp_path, "good", [(f"great w{i}", "good") for i in range(30)])
    weak = table(tmp_path, "weak", many(10, kind="new")) | {"teacher": ["good"]}
    with pytest.raises(DataError, match=r"weak: teacher=\['good'\] has rows of one class only"):
        run(tmp_path, labels=["bad", "good"], sources=[good, weak])


def test_labels_and_a_teacher_are_heard_together(tmp_path):
    weak = [("great thing under a wrong label", "bad"), ("nothing anybody knows of", "bad")]
    labels = {"bad": {"bad": 0.8, "good": 0.2}, "good": {"bad": 0.2, "good": 0.8}}
    weak += [("awful thing under a right label", "bad"), ("what nobody heard of", "good")]
    splits = run(
        tmp_path,
        labels=["bad", "good"],
        sources=[
            table(tmp_path, "train", many(200)),
            table(tmp_path, "weak", weak) | {"labels": labels, "teacher": ["train"]},
        ],
        validation=[table(tmp_path, "validation", many(10, kind="v"))],
        test=[table(tmp_path, "test", many(10, kind="t"))],
    )
    good = splits.train.targets[splits.train.sources == 1][:, 1]
    assert good[0] > 0.5, "the teacher is surer than the label"
    assert 0.1 < good[1] < 0.4, "the teacher knows nothing, so the label stands"
    assert good[2] < 0.05, "two who agree are surer than either"
    own = splits.train.targets[splits.train.sources == 0]
    assert set(own.ravel()) == {0.0, 1.0}, "the teacher's own rows are left as they are"


@pytest.mark.parametrize(
    ("rows", "warning"),
    [
        (many(300), "243 rows to train on; a model of fewer than 1,000 is for trying out"),
        (many(300), "test has 26 rows: its accuracy is known to ±19% only"),
        (many(300, 0.9), "of train is 'good': to answer that always would be as accurate"),
        (many(300) + many(300)[:60], "17% of the rows repeat another or contradict it"),
        (many(300, 0.01), "test has no row of ['good']"),
    ],
)
def test_odd_data_is_told_before_training(rows, warning, tmp_path):
    warnings = run(tmp_path, sources=[table(tmp_path, "rows", rows)]).warnings
    assert any(warning in told for told in warnings), warnings


def test_sets_of_one_name_are_each_looked_at(tmp_path):
    sets = {
        "validation": [table(tmp_path, "held", many(30, 0.0, kind="v"))],
        "test": [table(tmp_path, "other", many(400, kind="t")) | {"name": "held"}],
    }
    warnings = run(tmp_path, sources=[table(tmp_path, "train", many(2000))], **sets).warnings
    assert "held has no row of ['good']" in warnings
    assert any("held has 30 rows" in told for told in warnings)


def test_good_data_needs_no_warning(tmp_path):
    assert run(tmp_path, sources=[table(tmp_path, "rows", many(2000))]).warnings == ()


def test_a_source_is_there_once_more_in_another_language(tmp_path):
    said = [("great", "ótima"), ("awful", "péssima"), ("thing of", "coisa de")]
    for number, name in enumerate(("here", "there")):
        (tmp_path / f"{name}.csv").write_text(
            "\n".join(["text", *(pair[number] for pair in said)]) + "\n", encoding="utf-8"
        )
    held = table(tmp_path, "held", [*many(6)[1:2], *many(6)[-1:]])
    splits = run(
        tmp_path,
        sources=[table(tmp_path, "train", many(6)) | {"language": "en", "linear": 0.7}],
        translated=[
            {
                "name": "train, in Portuguese",
                "source": "train",
                "aligned": ["here.csv", "there.csv"],
                "language": "pt",
                "linear": 0.25,
            }
        ],
        validation=[held],
        test=[held],
    )
    own, translated = (splits.train.take(splits.train.sources == n) for n in (0, 1))
    assert own.texts[0] == "great thing of w0"
    assert translated.texts[0] == "ótima coisa de w0"
    assert len(own) == len(translated) == 4, "what is held out is held out in every language"
    np.testing.assert_array_equal(translated.targets, own.targets)
    assert set(translated.languages) == {"pt"}
    np.testing.assert_allclose(splits.linear, [0.7] * 4 + [0.25] * 4)
    assert [source.name for source in splits.sources] == ["train", "train, in Portuguese"]


def test_a_held_out_text_teaches_no_translation(tmp_path):
    held = "great thing of w0"
    for name, row in (("here", held), ("there", "segredo um dois três")):
        (tmp_path / f"{name}.csv").write_text(f"text\n{row}\n", encoding="utf-8")
    sets = [table(tmp_path, "held", [(held, "good"), (many(6)[-1][0], "bad")])]
    splits = run(
        tmp_path,
        sources=[table(tmp_path, "train", many(6))],
        translated=[
            {
                "name": "again",
                "source": "train",
                "aligned": ["here.csv", "there.csv"],
                "language": "pt",
            }
        ],
        validation=sets,
        test=sets,
    )
    assert not [text for text in splits.train.texts if "segredo" in text]


def test_files_that_are_not_aligned_are_refused(tmp_path):
    (tmp_path / "two.csv").write_text("text\none\ntwo\n", encoding="utf-8")
    (tmp_path / "one.csv").write_text("text\num\n", encoding="utf-8")
    again = {"name": "again", "source": "train", "aligned": ["two.csv", "one.csv"]}
    with pytest.raises(DataError, match=r"two\.csv has 2 rows, .*one\.csv has 1"):
        run(
            tmp_path,
            sources=[table(tmp_path, "train", many(30))],
            translated=[again | {"language": "pt"}],
        )


def test_a_source_may_be_of_one_class_but_not_all_of_them(tmp_path):
    good = table(tmp_path, "good", [(f"great w{i}", "good") for i in range(30)])
    bad = table(tmp_path, "bad", [(f"awful w{i}", "bad") for i in range(30)])
    splits = run(tmp_path, labels=["bad", "good"], sources=[good, bad])
    assert set(splits.train.labels.tolist()) == {0, 1}
    with pytest.raises(DataError, match=r"every row is of the same class of \['bad', 'good'\]"):
        run(tmp_path, labels=["bad", "good"], sources=[good])


def test_nothing_left_to_train_on_is_refused(tmp_path):
    rows = table(tmp_path, "rows", many(30))
    with pytest.raises(DataError, match=r"rows\.csv: no rows \(30 held-out\)"):
        run(tmp_path, sources=[rows], validation=[rows], test=[rows])


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (
            [(text, label) for text, _ in many(4) for label in ("good", "bad")],
            "train: no rows left, 8 contradictory dropped; give more rows or another share",
        ),
        (
            [("great", "good"), (" ", "bad"), ("awful", "bad"), ("awful!", "bad")],
            "validation: no rows left, 1 blank dropped, 1 duplicate dropped; give more rows or",
        ),
        (
            [*many(60, 1.0), ("awful", "bad"), ("awful", "good")],
            r"train: only rows of \['good'\] are left to train on, 2 contradictory dropped; give",
        ),
    ],
)
def test_who_has_too_few_rows_left_is_told_where_they_went(tmp_path, rows, reason):
    with pytest.raises(ValueError, match=f"^{reason}"):
        run(tmp_path, sources=[table(tmp_path, "rows", rows)])


def test_a_path_with_a_dot_starts_from_the_config(tmp_path):
    (tmp_path / "configs").mkdir()
    table(tmp_path / "configs", "own", many(20))
    table(tmp_path, "theirs", many(20, kind="v"))
    (tmp_path / "configs" / "run.toml").write_text(
        '[[sources]]\nname = "own"\npath = "./own.csv"\n'
        '[[sources]]\nname = "theirs"\npath = "theirs.csv"\n'
    )
    config = load_config(tmp_path / "configs" / "run.toml", {})
    splits = prepare(config, tmp_path, QUIET)
    everything = [splits.train, *splits.validation.values(), *splits.test.values()]
    assert sum(map(len, everything)) == 40
    assert set(np.concatenate([part.sources for part in everything])) == {0, 1}
