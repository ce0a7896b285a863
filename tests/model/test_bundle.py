import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from model.bundle import About, BundleError, read_bundle, sha256, write_bundle
from model.tokenizer import Tokenizer


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def edit_manifest(path: Path, edit: Callable[[dict], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    edit(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def rehash(path: Path, name: str) -> None:
    digest = sha256((path / name).read_bytes())
    edit_manifest(path, lambda manifest: manifest["files"].update({name: digest}))


def edit_graph(path: Path, edit: Callable[[onnx.ModelProto], object]) -> None:
    graph = onnx.load(path / "model.onnx")
    edit(graph)
    (path / "model.onnx").write_bytes(graph.SerializeToString())
    rehash(path, "model.onnx")


def test_reads_what_training_wrote(bundle):
    assert bundle.manifest.labels == ("negative", "positive")
    assert bundle.tokenizer.vocab_size == bundle.manifest.config.vocab_size
    assert len(bundle.fingerprint) == 64


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "report/model_card.md"])
def test_one_flipped_bit_is_noticed(copy: Path, name: str):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}: damaged"):
        read_bundle(copy)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "report/loss.png"])
def test_missing_file(copy: Path, name: str):
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        read_bundle(copy)


def test_unknown_file(copy: Path):
    (copy / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"unknown file extra\.bin"):
        read_bundle(copy)


def test_links_are_refused(copy: Path):
    (copy / "report" / "link").symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match="links are refused"):
        read_bundle(copy)


def test_no_such_folder(tmp_path: Path):
    with pytest.raises(BundleError, match="no such folder"):
        read_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda m: m.update(schema_version=2), "schema_version"),
        (lambda m: m.update(colour="red"), "colour"),
        (lambda m: m.pop("labels"), "labels"),
        (lambda m: m.update(labels=["a", "b", "c"]), "labels has 3 entries, config.classes is 2"),
        (lambda m: m.update(labels=["a", "a"]), "not distinct"),
        (lambda m: m.update(temperature=0), "temperature"),
        (lambda m: m.update(bias=[0.0]), "bias"),
        (lambda m: m.update(bias=[0.0, float("nan")]), "bias"),
        (lambda m: m["config"].update(vocab_size=7), "a tokenizer of another model"),
        (lambda m: m.update(opset=26), "opset"),
        (lambda m: m["files"].pop("model.onnx"), "does not list model.onnx"),
        (lambda m: m["files"].update({"../x": "0" * 64}), "leads out of the bundle"),
        (lambda m: m["files"].update({"a\0b": "0" * 64}), "cannot be read: embedded null"),
        (lambda m: m["files"].update({"x" * 300: "0" * 64}), "cannot be read: File name too long"),
        (lambda m: m["config"].update(heads=7), "must divide"),
    ],
)
def test_manifest_is_checked(copy: Path, edit, reason: str):
    edit_manifest(copy, edit)
    with pytest.raises(BundleError, match=reason):
        read_bundle(copy)


def external(graph: onnx.ModelProto) -> None:
    put_elsewhere(graph.graph.initializer[0])


def put_elsewhere(tensor: onnx.TensorProto) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="/etc/passwd"))


def elsewhere() -> onnx.TensorProto:
    tensor = onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, [1], [0.0])
    tensor.ClearField("float_data")
    put_elsewhere(tensor)
    return tensor


def constant_elsewhere(graph: onnx.ModelProto) -> None:
    node = onnx.helper.make_node("Constant", [], ["t"])
    node.attribute.append(onnx.helper.make_attribute("value", elsewhere()))
    graph.graph.node.append(node)


def nested_elsewhere(graph: onnx.ModelProto) -> None:
    inner = onnx.helper.make_graph([], "g", [], [], initializer=[elsewhere()])
    graph.graph.node.append(onnx.helper.make_node("If", ["c"], [], then_branch=inner))


def sparse_elsewhere(graph: onnx.ModelProto) -> None:
    graph.graph.sparse_initializer.add().values.CopyFrom(elsewhere())


def nested_domain(graph: onnx.ModelProto) -> None:
    inner = onnx.helper.make_graph([onnx.helper.make_node("X", [], [], domain="evil")], "g", [], [])
    graph.graph.node.append(onnx.helper.make_node("If", ["c"], [], then_branch=inner))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda g: g.opset_import.append(onnx.helper.make_opsetid("com.evil", 1)), "com.evil"),
        (lambda g: setattr(g.graph.node[0], "domain", "com.evil"), "com.evil"),
        (nested_domain, "evil"),
        (external, "outside the file"),
        (constant_elsewhere, "outside the file"),
        (nested_elsewhere, "outside the file"),
        (sparse_elsewhere, "outside the file"),
        (lambda g: g.training_info.add(), "training info"),
        (lambda g: setattr(g.graph.input[0], "name", "ids"), "inputs are"),
        (lambda g: setattr(g.opset_import[0], "version", 21), "opset 21"),
        (lambda g: g.graph.output.pop(), "outputs are"),
        (lambda g: g.functions.add(name="f"), "functions"),
    ],
)
def test_odd_graphs_are_refused_even_with_their_hash_right(copy: Path, edit, reason: str):
    edit_graph(copy, edit)
    with pytest.raises(BundleError, match=reason):
        read_bundle(copy)


def test_a_graph_of_noise_is_refused(copy: Path):
    (copy / "model.onnx").write_bytes(b"\x00noise")
    rehash(copy, "model.onnx")
    with pytest.raises(BundleError, match="not an ONNX model"):
        read_bundle(copy)


def test_a_tokenizer_of_another_model_is_refused_even_with_its_hash_right(copy: Path):
    other = Tokenizer.train(["a b c"] * 9, vocab_size=40, max_tokens=64)
    (copy / "tokenizer.json").write_bytes(other.to_json())
    rehash(copy, "tokenizer.json")
    with pytest.raises(BundleError, match="exported with another tokenizer"):
        read_bundle(copy)


def about(bundle) -> About:
    return About(**bundle.manifest.model_dump(exclude={"files"}))


def test_a_failing_write_leaves_the_old_bundle(copy: Path, bundle):
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    graph = onnx.ModelProto.FromString(bundle.graph.SerializeToString())
    del graph.metadata_props[:]
    graph.graph.output.pop()
    with pytest.raises(BundleError, match="outputs are"):
        write_bundle(copy, graph=graph, tokenizer=bundle.tokenizer, about=about(bundle), report={})
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


def rewritten(bundle, path: Path):
    graph = onnx.ModelProto.FromString(bundle.graph.SerializeToString())
    del graph.metadata_props[:]
    return write_bundle(
        path, graph=graph, tokenizer=bundle.tokenizer, about=about(bundle), report={}
    )


def test_a_new_bundle_takes_the_place_of_the_old_one_whole(copy: Path, bundle):
    written = rewritten(bundle, copy)
    assert written.fingerprint != bundle.fingerprint
    assert set(written.manifest.files) == {"model.onnx", "tokenizer.json"}
    assert not (copy / "report").exists()
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux swaps two names")
def test_a_bundle_takes_the_place_of_another_at_once(copy: Path, bundle, monkeypatch):
    """Renamed one after the other, a process killed in between would leave none."""
    monkeypatch.setattr(Path, "rename", None)
    assert read_bundle(copy).fingerprint == bundle.fingerprint
    written = rewritten(bundle, copy)
    assert read_bundle(copy).fingerprint == written.fingerprint != bundle.fingerprint
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


def test_an_interrupt_between_two_names_puts_the_old_bundle_back(copy: Path, bundle, monkeypatch):
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if ".old-" in target.name:
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr("model.bundle._exchanged", lambda *_: False)  # not all file systems can
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rewritten(bundle, copy)
    assert read_bundle(copy).fingerprint == bundle.fingerprint


@pytest.mark.parametrize(
    ("fault", "told", "reason"),
    [
        (OSError(28, "No space left"), BundleError, "copy: cannot be written: No space left"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_when_the_last_step_fails_the_old_bundle_is_put_back(
    copy: Path, bundle, monkeypatch, fault, told, reason
):
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".new-" in self.name:
            raise fault
        return rename(self, target)

    monkeypatch.setattr("model.bundle._exchanged", lambda *_: False)  # not all file systems can
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(told, match=reason):
        rewritten(bundle, copy)
    assert read_bundle(copy).fingerprint == bundle.fingerprint
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]


@pytest.mark.parametrize("name", ["mine", "mine/letter.txt", "link"])
def test_what_is_no_bundle_is_not_written_over(tmp_path: Path, bundle, name: str):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(BundleError, match=f"{name}: "):
        rewritten(bundle, tmp_path / name)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("manifest.json", "holds files, but no bundle"),  # many things have one
        ("report/letter.txt", "holds report/letter.txt beside a bundle"),
    ],
)
def test_what_else_is_in_a_folder_is_never_lost(copy: Path, bundle, name: str, reason: str):
    (copy / name).write_text('{"short_name": "shop"}')
    with pytest.raises(BundleError, match=reason):
        rewritten(bundle, copy)
    assert (copy / name).read_text() == '{"short_name": "shop"}'
    assert (copy / "model.onnx").exists()


def test_an_empty_folder_is_filled(tmp_path: Path, bundle):
    assert rewritten(bundle, tmp_path).path == tmp_path


@pytest.mark.parametrize("name", [".", "/"])
def test_a_place_needs_a_name(bundle, name: str):
    with pytest.raises(BundleError, match="name a folder"):
        rewritten(bundle, Path(name))


def test_a_file_over_the_limit_is_not_read(copy: Path, monkeypatch):
    monkeypatch.setattr("model.bundle.MAX_FILE_BYTES", 1000)
    with pytest.raises(BundleError, match=r"bytes, the limit is 1000"):
        read_bundle(copy)
