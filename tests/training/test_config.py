"""A run as a file: what is read, laid over, refused."""

from pathlib import Path

import pytest

from training.config import ConfigError, RunConfig, load_config, overlaid

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
SOURCE = '[[sources]]\nname = "mine"\npath = "mine.csv"\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "sources: Field required"),
        ("sources = []", "sources=[]: Tuple should have at least 1 item"),
        (f"colour = 'red'\n{SOURCE}", "colour='red': Extra inputs are not permitted"),
        (f"name = 'My Model'\n{SOURCE}", "name='My Model': String should match pattern"),
        (f"version = '1 beta'\n{SOURCE}", "version='1 beta': String should match pattern"),
        (f"labels = ['good', '']\n{SOURCE}", "labels.1='': String should have at least 1 char"),
        (f"labels = ['good', 'good']\n{SOURCE}", "labels=('good', 'good') has one twice"),
        (SOURCE * 2, "sources: name='mine' is there 2 times"),
        (
            SOURCE + '[[test]]\nname = "t"\npath = "a.csv"\n' * 2,
            "test: name='t' is there 2 times",
        ),
        (f"[train]\nlearning_rate = -1\n{SOURCE}", "train.learning_rate=-1: Input should be grea"),
        (f"[train]\nlr = 0.1\n{SOURCE}", "train.lr=0.1: Extra inputs are not permitted"),
        *(
            (
                f"{key} = 1\n{SOURCE}",
                f"{key}=1: Extra inputs are not permitted; did you mean {meant}?",
            )
            for key, meant in (
                ("train.learning_rat", "train.learning_rate"),
                ("learning_rate", "train.learning_rate"),
                ("network.d_modell", "network.d_model"),
            )
        ),
        (f"[network]\nd_model = 10\nheads = 3\n{SOURCE}", "network: "),
        (
            f"[network]\nmax_tokens = 64\n{SOURCE}",
            "train.crop_tokens=256 exceeds network.max_tokens=64",
        ),
        (
            f"[train]\nmax_batch_tokens = 128\n{SOURCE}",
            "train.max_batch_tokens=128 cannot hold one text of train.crop_tokens=256",
        ),
        (
            f'{SOURCE}[[unlabelled]]\nname = "more"\npath = "more.csv"\nteacher = ["yours"]\n',
            "more: teacher=['yours'] is no source with labels of its own; there are ['mine']",
        ),
        (
            f'{SOURCE}[[unlabelled]]\nname = "more"\npath = "more.csv"\n'
            'frames = ["not {text}"]\n',
            "more: frames=('not {text}',) is for sources with labels",
        ),
        (
            f'{SOURCE}[[translated]]\nname = "more"\nsource = "yours"\nlanguage = "pt"\n'
            'aligned = ["a.csv", "b.csv"]\n',
            "more: source='yours' is none of the sources ['mine']",
        ),
        (
            f'{SOURCE}[[unlabelled]]\nname = "more"\npath = "more.csv"\ndomain = "posts"\n',
            "more: domain='posts' is for sources with labels",
        ),
        (f"{SOURCE}linear = 0\n", "sources: linear=0 in all leaves nothing to learn from"),
        (f"{SOURCE}epochs = 0\n", "sources: epochs=0 in all leaves nothing to learn from"),
        ("name = ", "not TOML: "),
        (b"name = '\xff'", "not TOML: "),
    ],
)
def test_refuses_and_names_key_and_value(tmp_path: Path, content: str | bytes, said: str):
    path = tmp_path / "run.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert str(caught.value).startswith(f"{path}: {said}")


def test_refuses_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"run.toml: cannot be read: No such file"):
        load_config(tmp_path / "run.toml", {})


def test_lays_overrides_over_the_file(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text(f"[train]\nseed = 1\nepochs = 2\n{SOURCE}")
    config = load_config(path, {"train.seed": 7, "name": "other"})
    assert (config.train.seed, config.train.epochs, config.name) == (7, 2, "other")


def test_begins_with_another_file_and_leaves_out_or_keeps_what_it_names(tmp_path: Path):
    (tmp_path / "base.toml").write_text(
        f'name = "whole"\nversion = "2"\n[train]\nseed = 3\n{SOURCE}'
        '[[sources]]\nname = "theirs"\npath = "./theirs.csv"\n'
        '[[test]]\nname = "mine"\npath = "test.csv"\n'
    )
    path = tmp_path / "configs" / "run.toml"
    path.parent.mkdir()
    path.write_text('base = "../base.toml"\nwithout = ["mine"]\nname = "part"\n')
    config = load_config(path, {"train.epochs": 2})
    assert (config.name, config.version, config.train.seed, config.train.epochs) == (
        "part",
        "2",
        3,
        2,
    )
    assert [source.name for source in config.sources] == ["theirs"]
    assert Path(str(config.sources[0].path)).resolve() == tmp_path / "theirs.csv"
    assert config.test == (), "of every kind of table"
    path.write_text('base = "../base.toml"\nonly = ["mine"]\n')
    config = load_config(path, {})
    assert [one.name for one in (*config.sources, *config.test)] == ["mine", "mine"]
    for choice in ("without", "only"):
        path.write_text(f'base = "../base.toml"\n{choice} = ["yours"]\n')
        said = rf"run.toml: {choice}=\['yours'\]: ../base.toml has no"
        with pytest.raises(ConfigError, match=said):
            load_config(path, {})


def test_says_of_its_base_only_what_is_otherwise(tmp_path: Path):
    (tmp_path / "base.toml").write_text(
        "[train]\nseed = 3\nepochs = 2\n"
        '[[sources]]\nname = "mine"\npath = "mine.csv"\nlanguage = "pt"\n'
        '[sources.labels]\n0 = "bad"\n1 = "good"\n'
        '[[sources]]\nname = "theirs"\npath = "theirs.csv"\n'
    )
    path = tmp_path / "run.toml"
    path.write_text(
        'base = "base.toml"\n[train]\nepochs = 5\n'
        '[[sources]]\nname = "ours"\npath = "ours.csv"\n'
        '[[sources]]\nname = "mine"\nepochs = 0.5\nlabels = { 1 = "fine" }\n'
    )
    config = load_config(path, {})
    assert (config.train.seed, config.train.epochs) == (3, 5)
    assert [source.name for source in config.sources] == ["mine", "theirs", "ours"]
    mine = config.sources[0]
    assert (mine.path, mine.language, mine.epochs) == ("mine.csv", "pt", 0.5)
    assert mine.labels == {"0": "bad", "1": "fine"}
    path.write_text('base = "base.toml"\nsources = [3]\n')
    with pytest.raises(ConfigError, match=r"run.toml: sources.2=3: Input should be"):
        load_config(path, {})


def test_reads_a_share_of_what_its_base_does(tmp_path: Path):
    (tmp_path / "base.toml").write_text(
        '[[sources]]\nname = "mine"\npath = "mine.csv"\nepochs = 3.0\n'
        '[[sources]]\nname = "theirs"\npath = "theirs.csv"\n'
        '[[sources]]\nname = "hers"\npath = "hers.csv"\nepochs = 0\n'
        '[[translated]]\nname = "meus"\nsource = "mine"\naligned = ["a.csv", "b.csv"]\n'
        'language = "pt"\nepochs = 0.5\n'
    )
    path = tmp_path / "run.toml"
    path.write_text(
        'base = "base.toml"\nbase_share = 0.5\n[[sources]]\nname = "theirs"\nepochs = 2.0\n'
        '[[sources]]\nname = "ours"\npath = "ours.csv"\nepochs = 1.0\n'
    )
    config = load_config(path, {})
    assert {one.name: one.epochs for one in (*config.sources, *config.translated)} == {
        "mine": 1.5,
        "theirs": 2.0,
        "hers": 0.0,
        "ours": 1.0,
        "meus": 0.25,
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('base = "base.toml"\nbase_share = 0', "run.toml: base_share=0 is to be a number above"),
        ('base = "base.toml"\nbase_share = "a"', "run.toml: base_share='a' is to be a number"),
        ('base = "base.toml"\nbase_share = true', "run.toml: base_share=True is to be a number"),
        (f"base_share = 0.5\n{SOURCE}", "run.toml: base_share="),
        ('base = "gone.toml"', "gone.toml: cannot be read"),
        ('base = "run.toml"', "run.toml: base leads back to where it began"),
        ("base = 3", "run.toml: base=3 is to be a file"),
        ('base = "run.toml"\nwithout = "mine"', "run.toml: without='mine' is to be a list"),
        ('base = "run.toml"\nonly = 3', "run.toml: only=3 is to be a list"),
        (f'without = ["theirs"]\n{SOURCE}', "run.toml: without="),
    ],
)
def test_refuses_a_base_that_is_none(tmp_path: Path, content: str, said: str):
    (tmp_path / "base.toml").write_text(SOURCE)
    path = tmp_path / "run.toml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert said in str(caught.value)


def test_what_trains_identifies_a_run_and_not_what_the_bundle_is_called(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text(SOURCE)
    plain = load_config(path, {}).fingerprint
    assert plain == load_config(path, {}).fingerprint
    assert plain != load_config(path, {"train.seed": 1}).fingerprint
    assert plain != load_config(path, {"network.layers": 3}).fingerprint
    called = {"name": "another", "version": "2", "license": "MIT", "train.compile": True}
    assert plain == load_config(path, called).fingerprint


def test_a_run_is_the_same_in_another_checkout(tmp_path: Path):
    found = set()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "run.toml"
        path.write_text(SOURCE + '[[sources]]\nname = "ours"\npath = "./ours.toml"\n')
        found.add(load_config(path, {}).steps_fingerprint)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("changed", "same_steps"),
    [
        ({"train.linear_strength": 9.0}, True),
        ({"network.ngrams": 64}, True),
        ({"train.baseline": False}, True),
        ({"sources": [{"name": "s", "path": "s.csv", "linear": 0.5, "domain": "d"}]}, True),
        ({"sources": [{"name": "s", "path": "s.csv", "epochs": 0.5}]}, False),
        ({"train.learning_rate": 0.1}, False),
    ],
)
def test_what_is_fitted_after_the_steps_leaves_them_as_they_are(changed, same_steps):
    config = RunConfig.model_validate({"sources": [{"name": "s", "path": "s.csv"}]})
    other = overlaid(config, changed)
    assert other.fingerprint != config.fingerprint
    assert (other.steps_fingerprint == config.steps_fingerprint) is same_steps


RUNS = sorted(
    path
    for path in CONFIGS.glob("*.toml")
    if path.read_text().count('\nname = "realce-') + path.read_text().count("\nbase = ")
)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_committed_runs_are_read(path: Path):
    config = load_config(path, {})
    assert config.name.startswith("realce-")
    for source in (*config.sources, *config.unlabelled):
        assert source.license
        assert source.origin


def test_the_open_run_is_the_labelled_one_without_what_forbids_commerce():
    whole, part = (
        load_config(CONFIGS / f"{name}.toml", {}) for name in ("labelled", "embedded-open")
    )
    assert part.train == whole.train
    assert part.unlabelled == whole.unlabelled
    assert [one for one in whole.sources if "-NC-" not in one.license] == list(part.sources)
    assert {one.name for one in whole.test} - {one.name for one in part.test} == {"B2W recommend"}
