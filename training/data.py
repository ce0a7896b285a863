"""Rows in: labelled texts from files and hubs, checked, filtered, split."""

import csv
import gzip
import hashlib
import io
import json
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import regex
from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
MAX_FIELD_CHARACTERS = 1 << 24
KEY_MIN_WORDS = 4  # shorter texts are stock phrases; they coincide without leaking

_NOT_WORD = regex.compile(r"[\W_]+")
_SENTENCE = regex.compile(r"(?<=[.!?…])[\"')\]]*\s+|\n+")
_BREAK = regex.compile(r"<br\s*/?>", regex.IGNORECASE)


class DataError(ValueError):
    """The rows cannot be used; the message names file, line or column, value and limit."""


class SourceConfig(BaseModel):
    """Where labelled texts come from and what their labels are called."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    path: str | None = Field(None, description="CSV, TSV, JSONL or Parquet, plain or .gz.")
    hub: str | None = Field(None, description="OWNER/NAME for the datasets library.")
    hub_config: str | None = None
    hub_split: str = "train"
    text: str = Field("text", description="Column of the text.")
    label: str = Field("label", description="Column of the label.")
    labels: dict[str, str | Literal[False] | None] | None = Field(
        None, description="Name of each label value; false leaves its rows out. None: as they are."
    )
    language: str = "und"
    license: str = "unspecified"
    origin: str = ""
    unit: Literal["text", "sentences"] = Field(
        "text", description="'sentences': each sentence under its text's label (weak labels)."
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the rows in one training epoch.")
    strip_html: bool = Field(False, description="Turn <br /> into a space.")
    limit: int | None = Field(None, ge=1, description="Use the first rows only.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError(f"{self.name}: give one of path and hub")
        return self


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled texts, column by column: texts [N], labels [N] (class index), sources [N] (index of
    the source among those read together) and languages [N]."""

    texts: list[str]
    labels: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]
    languages: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, at: npt.NDArray[Any]) -> "Rows":
        """The rows at these indices, or where this mask is True."""
        at = np.flatnonzero(at) if at.dtype == bool else at
        texts = [self.texts[i] for i in at]
        return Rows(texts, self.labels[at], self.sources[at], self.languages[at])


def read_rows(
    source: SourceConfig, labels: tuple[str, ...] | None, base: Path
) -> tuple[Rows, tuple[str, ...], dict[str, int]]:
    """All usable rows of a source, the labels in class order, and what was dropped, by reason.

    Paths are relative to `base`. Where `labels` is None they are the distinct ones found, sorted.
    Raises `DataError` on anything that is not a table of at least two known labels.
    """
    where = source.path or f"hub:{source.hub}"
    texts: list[str] = []
    names: list[str] = []
    dropped: Counter[str] = Counter()
    for number, text, value in _records(source, base):
        name = _label_name(source, value)
        if name is None:
            dropped["left-out label"] += 1
            continue
        if name == "" or (labels is not None and name not in labels):
            known = sorted(source.labels) if source.labels else list(labels or ())
            raise DataError(f"{where}: row {number}: {source.label}={value!r}; known are {known}")
        if source.strip_html:
            text = _BREAK.sub(" ", text)
        pieces = _sentences(text) if source.unit == "sentences" else [text.strip()]
        for piece in pieces:
            if not piece:
                dropped["blank"] += 1
                continue
            texts.append(piece)
            names.append(name)
        if source.limit is not None and len(texts) >= source.limit:
            break
    if not texts:
        raise DataError(f"{where}: no rows")
    found = sorted(set(names))
    if len(found) < 2:
        raise DataError(f"{where}: every row is {found[0]!r}; at least 2 labels are needed")
    classes = labels or tuple(found)
    index = {name: i for i, name in enumerate(classes)}
    rows = Rows(
        texts=texts,
        labels=np.array([index[name] for name in names], dtype=np.int64),
        sources=np.zeros(len(texts), dtype=np.int64),
        languages=np.full(len(texts), source.language),
    )
    return rows, classes, dict(dropped)


def row_key(text: str) -> str:
    """What a text is recognised by whatever its case, spacing and punctuation: 16 hex digits."""
    folded = unicodedata.normalize("NFKC", text).lower().replace("<br />", " ")
    return hashlib.sha1(_NOT_WORD.sub("", folded).encode()).hexdigest()[:16]


def read_keys(path: Path) -> frozenset[str]:
    """Row keys listed in the `key` column of a CSV file."""
    source = SourceConfig(name=path.name, path=str(path), text="key", label="key")
    return frozenset(key for _, key, _ in _records(source, Path()))


def deduplicate(parts: Sequence[Rows]) -> tuple[Rows, dict[str, int]]:
    """Rows of all parts, numbered by part, each text once.

    Inside a part a text with two labels is dropped; of a text in two parts the first is kept.
    """
    dropped: Counter[str] = Counter()
    taken: set[str] = set()
    kept: list[Rows] = []
    for number, part in enumerate(parts):
        keys = [row_key(text) for text in part.texts]
        first: dict[str, int] = {}
        conflicting: set[str] = set()
        for i, key in enumerate(keys):
            if key not in first:
                first[key] = i
            elif part.labels[first[key]] != part.labels[i]:
                conflicting.add(key)
        dropped["contradictory"] += sum(key in conflicting for key in keys)
        chosen = [i for key, i in first.items() if key not in conflicting and key not in taken]
        taken |= first.keys()
        one = part.take(np.array(chosen, dtype=np.int64))
        kept.append(Rows(one.texts, one.labels, np.full(len(one), number), one.languages))
    rows = concatenate(kept)
    dropped["duplicate"] = sum(map(len, parts)) - len(rows) - dropped["contradictory"]
    return rows, dict(dropped)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """All rows of all parts, in order."""
    return Rows(
        texts=[text for part in parts for text in part.texts],
        labels=np.concatenate([part.labels for part in parts]),
        sources=np.concatenate([part.sources for part in parts]),
        languages=np.concatenate([part.languages for part in parts]),
    )


def exclude(rows: Rows, keys: frozenset[str]) -> tuple[Rows, int]:
    """Rows whose text is not among `keys`, and how many are left out; short texts stay."""
    keep = np.array(
        [len(text.split()) < KEY_MIN_WORDS or row_key(text) not in keys for text in rows.texts],
        dtype=bool,
    )
    return rows.take(keep), int((~keep).sum())


def split(rows: Rows, validation: float, test: float) -> tuple[Rows, Rows, Rows]:
    """Train, validation and test by a hash of the text: a text never changes sides."""
    place = np.array([int(row_key(text), 16) / 16**16 for text in rows.texts])
    in_test = place < test
    in_validation = ~in_test & (place < test + validation)
    return rows.take(~in_test & ~in_validation), rows.take(in_validation), rows.take(in_test)


def _label_name(source: SourceConfig, value: Any) -> str | None:
    """The label's name; None: leave the row out; '': not known."""
    key = str(value).strip()
    if source.labels is None:
        return key
    name = source.labels.get(key, "")
    return None if name is False else name


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in _SENTENCE.split(text) if len(part.split()) >= 3]


def _records(source: SourceConfig, base: Path) -> Iterator[tuple[int, str, Any]]:
    """Row number (from 1), text and label value of every row."""
    if source.hub is not None:
        records: Iterator[Mapping[str, Any]] = _hub(source)
        where = f"hub:{source.hub}"
    else:
        assert source.path is not None
        path = base / source.path
        where = str(path)
        if not path.is_file():
            raise DataError(f"{where}: no such file")
        records = _file(path)
    number = 0
    while True:
        try:
            record = next(records, None)
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: after row {number}: not UTF-8: {error.reason}") from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{where}: after row {number}: broken gzip: {error}") from error
        except (csv.Error, json.JSONDecodeError) as error:
            raise DataError(f"{where}: after row {number}: {error}") from error
        if record is None:
            return
        number += 1
        for column in (source.text, source.label):
            if column not in record:
                raise DataError(f"{where}: no column {column!r}; there are {list(record)}")
        text, value = record[source.text], record[source.label]
        if text is None or value is None:
            raise DataError(f"{where}: row {number}: fewer columns than the header")
        yield number, str(text), value


def _hub(source: SourceConfig) -> Iterator[Mapping[str, Any]]:
    import datasets  # slow to import, rarely needed

    try:
        table = datasets.load_dataset(source.hub, source.hub_config, split=source.hub_split)
    except Exception as error:  # the library raises many kinds
        raise DataError(f"hub:{source.hub}: cannot be loaded: {error}") from error
    yield from table


def _file(path: Path) -> Iterator[Mapping[str, Any]]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if zipped else suffixes)[-1:]
    if not kind or kind[0] not in FORMATS:
        raise DataError(f"{path}: format not known; use one of {', '.join(FORMATS)}, plain or .gz")
    with gzip.open(path) if zipped else path.open("rb") as file:
        if kind[0] == ".parquet":
            yield from _parquet(path, file.read())
            return
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
            if kind[0] == ".jsonl":
                for line in lines:
                    if line.strip():
                        record = json.loads(line)
                        yield record if isinstance(record, dict) else {}
            else:
                csv.field_size_limit(MAX_FIELD_CHARACTERS)
                delimiter = "," if kind[0] == ".csv" else "\t"
                yield from csv.DictReader(lines, delimiter=delimiter, strict=True)


def _parquet(path: Path, content: bytes) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        for batch in table.iter_batches():
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not Parquet: {error}") from error
