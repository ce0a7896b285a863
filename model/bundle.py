"""The bundle: one folder that is the whole contract between training and service.

    model.onnx      the network, explanation included; weights inside
    tokenizer.json  the tokenizer it was trained with
    manifest.json   what it is, what it reads, how good it is, and the SHA-256 of every other file
    report/         model card and plots, for people

Reading verifies before anything is used, and refuses what it does not know.
"""

import ctypes
import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import onnx
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.config import ModelConfig
from model.faults import faults
from model.tokenizer import Tokenizer

MANIFEST, GRAPH, TOKENIZER, REPORT = "manifest.json", "model.onnx", "tokenizer.json", "report"

INPUTS = ("input_ids", "attention_mask")
OUTPUTS = (
    "logits",
    "probabilities",
    "evidence",
    "contributions",
    "pooling_attention",
    "attentions",
)

MAX_OPSET = 24  # ONNX Runtime 1.31 supports opsets up to 26, the last two in part
MAX_FILE_BYTES = 1 << 30
MAX_LABEL_CHARACTERS = 64
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h
TOKENIZER_KEY = "realce.tokenizer_sha256"

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class BundleError(ValueError):
    """The folder is not a bundle that can be trusted; the message names file and reason."""


class Source(BaseModel):
    """One set that the model was trained on."""

    model_config = _FROZEN

    name: str
    language: str
    rows: int = Field(ge=0)
    license: str
    origin: str = ""
    domain: str = ""


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Version = Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}$")]
Label = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARACTERS)]


class About(BaseModel):
    """Everything the service needs to know that is not weights or vocabulary."""

    model_config = _FROZEN

    schema_version: Literal[1] = 1
    name: Name
    version: Version
    labels: tuple[Label, ...]
    languages: tuple[str, ...]
    config: ModelConfig
    bias: tuple[float, ...] = Field(description="Bias of each class's logit, in class order.")
    temperature: float = Field(gt=0, description="Logits are divided by it inside the graph.")
    abstention_threshold: float | None = Field(
        None, ge=0, le=1, description="Answers less probable than this may be marked as unsure."
    )
    opset: int = Field(ge=20, le=MAX_OPSET)
    metrics: dict[str, dict[str, Any]] = {}
    sources: tuple[Source, ...] = ()
    license: str
    code: str = Field("unknown", description="Identity of the training code: version and commit.")
    created: str = Field("", description="When it was written, ISO 8601, UTC.")

    @property
    def max_tokens(self) -> int:
        """Longest text, in tokens, that the model reads whole."""
        return self.config.max_tokens

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        classes = self.config.classes
        for field, length in (("labels", len(self.labels)), ("bias", len(self.bias))):
            if length != classes:
                raise ValueError(f"{field} has {length} entries, config.classes is {classes}")
        if len(set(self.labels)) != classes:
            raise ValueError(f"labels are not distinct: {list(self.labels)}")
        if not all(math.isfinite(value) for value in (*self.bias, self.temperature)):
            raise ValueError("bias and temperature must be finite")
        return self


class Manifest(About):
    """What the bundle is about, bound to its files."""

    files: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        description="SHA-256 of every file but the manifest, by its path inside the bundle."
    )

    @model_validator(mode="after")
    def _lists_what_is_needed(self) -> Self:
        for required in (GRAPH, TOKENIZER):
            if required not in self.files:
                raise ValueError(f"files does not list {required}")
        return self


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle. `fingerprint` is the SHA-256 of the manifest: it identifies all of it."""

    path: Path
    manifest: Manifest
    fingerprint: str
    graph: onnx.ModelProto
    tokenizer: Tokenizer


def read_bundle(path: Path) -> Bundle:
    """Read and verify the bundle in folder `path`. Raises `BundleError` on anything odd."""
    manifest, fingerprint = read_manifest(path)
    for name in sorted(_files(path)):
        if name not in manifest.files and name != MANIFEST:
            raise BundleError(f"{path}: unknown file {name}: not listed in {MANIFEST}")
    # Each file is read once: what was verified is what is used.
    contents = {}
    for name, expected in manifest.files.items():
        contents[name] = _read(path, name)
        actual = sha256(contents[name])
        if actual != expected:
            raise BundleError(
                f"{path}/{name}: damaged: sha256 is {actual[:12]}…, "
                f"{MANIFEST} says {expected[:12]}…"
            )
    graph = _read_graph(path / GRAPH, contents[GRAPH], manifest)
    tokenizer = _read_tokenizer(path / TOKENIZER, contents[TOKENIZER], manifest)
    return Bundle(path, manifest, fingerprint, graph, tokenizer)


def read_manifest(path: Path) -> tuple[Manifest, str]:
    """The manifest of the bundle in folder `path`, its files unverified, and its fingerprint."""
    if not path.is_dir():
        raise BundleError(f"{path}: no such folder; a bundle is a folder with {MANIFEST}")
    try:
        content = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(f"{path}/{MANIFEST}: cannot be read: {error.strerror}") from error
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise BundleError(f"{path}/{MANIFEST}: {faults(error)}") from error
    return manifest, sha256(content)


def write_bundle(
    path: Path,
    *,
    graph: onnx.ModelProto,
    tokenizer: Tokenizer,
    about: About,
    report: Mapping[str, bytes],
) -> Bundle:
    """Write a bundle into `path`, whole or not at all, and read it back verified.

    `report` maps file names to contents. An earlier bundle in `path` is replaced only once the new
    one has been verified; anything else there is left alone, and `BundleError` raised.
    """
    check_place(path)
    tokenizer_json = tokenizer.to_json()
    graph.metadata_props.append(
        onnx.StringStringEntryProto(key=TOKENIZER_KEY, value=sha256(tokenizer_json))
    )
    contents = {GRAPH: graph.SerializeToString(deterministic=True), TOKENIZER: tokenizer_json}
    contents |= {f"{REPORT}/{name}": content for name, content in report.items()}
    files = {name: sha256(content) for name, content in sorted(contents.items())}
    manifest = Manifest(files=files, **about.model_dump())
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
    contents[MANIFEST] = (text + "\n").encode()

    fresh = path.with_name(f".{path.name}.new-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        for name, content in contents.items():
            target = fresh / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        bundle = read_bundle(fresh)
        _swap(fresh, path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return dataclasses.replace(bundle, path=path)


def check_place(path: Path) -> None:
    """Raise `BundleError` where no bundle can be written: in place of something else, or at all."""
    if not path.name or path.name == "..":
        raise BundleError(f"{path}: name a folder for the bundle")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise BundleError(f"{path}: is no folder; a bundle is not written over it")
    if path.is_dir() and any(path.iterdir()):
        try:
            files = read_manifest(path)[0].files
        except BundleError as error:
            raise BundleError(f"{path}: holds files, but no bundle; name another folder") from error
        for name in _files(path):
            if name not in files and name != MANIFEST:
                raise BundleError(f"{path}: holds {name} beside a bundle; name another folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent):
            pass
    except OSError as error:
        raise BundleError(f"{path}: cannot be written: {error.strerror}") from error


def sha256(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _swap(fresh: Path, path: Path) -> None:
    """Put `fresh` in the place of `path`; what was there is under the other name, or gone."""
    if path.exists() and _exchanged(fresh, path):
        return
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    try:
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except BaseException:  # an interrupt, too
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Have the two swapped names, with both there at any moment? Linux can, mostly."""
    exchange = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if exchange is None:
        return False
    names = (AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other))
    return bool(exchange(*names, RENAME_EXCHANGE) == 0)


def _files(path: Path) -> Iterator[str]:
    for entry in path.rglob("*"):
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise BundleError(f"{entry}: neither file nor folder; links are refused")
        if entry.is_file():
            yield entry.relative_to(path).as_posix()


def _read(path: Path, name: str) -> bytes:
    target = path / name
    try:
        if not target.resolve().is_relative_to(path.resolve()):
            raise BundleError(f"{path}/{MANIFEST}: files: {name!r} leads out of the bundle")
        if not target.is_file():
            raise BundleError(f"{path}/{name}: missing, though {MANIFEST} lists it")
        if (size := target.stat().st_size) > MAX_FILE_BYTES:
            raise BundleError(f"{target}: {size} bytes, the limit is {MAX_FILE_BYTES}")
        return target.read_bytes()
    except BundleError:
        raise
    except (OSError, ValueError) as error:  # the latter of a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"{path}: {name!r} cannot be read: {reason}") from error


def _read_graph(path: Path, content: bytes, manifest: Manifest) -> onnx.ModelProto:
    try:
        graph = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own DecodeError and whatever onnx wraps it in
        raise BundleError(f"{path}: not an ONNX model: {error}") from error
    if graph.functions or graph.training_info:
        raise BundleError(f"{path}: holds functions or training info, which are not served")
    for opset in graph.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            raise BundleError(f"{path}: operator domain {opset.domain!r}: only ONNX's own is run")
        if opset.version > MAX_OPSET or opset.version != manifest.opset:
            raise BundleError(f"{path}: opset {opset.version}, {MANIFEST} says {manifest.opset}")
    for node in _nodes(graph.graph):
        if node.domain not in ("", "ai.onnx"):
            raise BundleError(f"{path}: node {node.name!r} is of domain {node.domain!r}")
    for tensor in _tensors(graph.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise BundleError(f"{path}: tensor {tensor.name!r} keeps its data outside the file")
    for field, expected, values in (
        ("inputs", INPUTS, graph.graph.input),
        ("outputs", OUTPUTS, graph.graph.output),
    ):
        names = tuple(value.name for value in values)
        if names != expected:
            raise BundleError(f"{path}: {field} are {names}, must be {expected}")
    bound = {entry.key: entry.value for entry in graph.metadata_props}.get(TOKENIZER_KEY)
    if bound != manifest.files[TOKENIZER]:
        raise BundleError(f"{path}: was exported with another tokenizer than {TOKENIZER}")
    return graph


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _nodes(subgraph)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _tensors(subgraph)


def _read_tokenizer(path: Path, content: bytes, manifest: Manifest) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_json(content, max_tokens=manifest.max_tokens)
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from error
    if tokenizer.vocab_size != manifest.config.vocab_size:
        raise BundleError(
            f"{path}: {tokenizer.vocab_size} pieces, "
            f"the model has {manifest.config.vocab_size}: a tokenizer of another model"
        )
    return tokenizer
