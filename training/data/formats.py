"""Tables of any format as one stream of rows, and where in them a fault is."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from training.data.templates import read_templates

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet", ".toml")
MAX_FIELD_CHARACTERS = 1 << 24
SEPARATORS = {";": "semicolon", "\t": "tab", "|": "bar", ",": "comma"}
UNCLOSED = "unexpected end of data"  # the library's words

Record = tuple[str, Sequence[Any]]  # where it is, and its columns' values


class DataError(ValueError):
    """The rows cannot be used; the message names file, line or column, value and limit."""


def read_file(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    """Place of every row ('line 7', or 'row 7' in a file without lines) and its `columns`.

    A TOML file holds sentences by template (`training.data.templates`); whatever the columns, it
    has sentence and label.

    The format is told by the name. Raises `DataError`, with file and place, where it breaks.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        del suffixes[-1]
    kind = suffixes[-1] if suffixes else ""
    if kind not in FORMATS:
        raise DataError(f"{path}: format not known; use one of {', '.join(FORMATS)}, plain or .gz")
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if kind == ".toml":
        yield from _templates(path)
        return
    place = "line 1"
    try:
        with _open(path) as file:
            if kind == ".parquet":
                yield from _parquet(path, file.read(), columns)
                return
            with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
                read = _jsonl(path, lines, columns) if kind == ".jsonl" else None
                for record in read or _table(path, lines, columns, "," if kind == ".csv" else "\t"):
                    place = record[0]
                    yield record
    except UnicodeDecodeError as error:
        line = _undecodable_line(path)
        raise DataError(
            f"{path}: line {line}: not UTF-8: {error.reason}; save the file as UTF-8"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: after {place}: broken gzip: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_hub(name: str, config: str | None, split: str, columns: Sequence[str]) -> Iterator[Record]:
    """Rows of a set on a hub, as `read_file` gives them."""
    import datasets  # slow to import, rarely needed

    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library raises many kinds
        raise DataError(f"hub:{name}: cannot be loaded: {error}") from error
    _check_columns(f"hub:{name}", table.column_names, columns)
    for number, record in enumerate(table, 1):
        yield f"row {number}", [record[column] for column in columns]


def _check_columns(where: str, present: Sequence[str], wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in present:
            raise DataError(
                f"{where}: no column {column!r}; there are {list(present)}{_advice(present)}"
            )
        if present.count(column) > 1:
            raise DataError(f"{where}: column {column!r} is there {present.count(column)} times")


def _advice(present: Sequence[str]) -> str:
    others = [name for sign, name in SEPARATORS.items() if len(present) == 1 and sign in present[0]]
    if others:
        return f", separated by {others[0]}s: a .csv has commas, a .tsv tabs"
    return "; --text-column and --label-column name others"


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _undecodable_line(path: Path) -> int:
    """Found by a second reading: the first one decodes ahead, in blocks."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _table(path: Path, lines: TextIO, columns: Sequence[str], delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    at: list[int] = []
    while True:
        line = reader.line_num + 1  # a quoted text may go on over several
        try:
            row = next(reader, None)
        except csv.Error as error:
            reason = "a quotation mark is never closed" if str(error) == UNCLOSED else error
            raise DataError(f"{path}: line {line}: {reason}") from error
        if row is None:
            break
        if not row:
            continue
        if not header:
            _check_columns(str(path), row, columns)
            header, at = row, [row.index(column) for column in columns]
        elif len(row) != len(header):
            raise DataError(
                f"{path}: line {line}: {len(row)} columns, the header has {len(header)}"
            )
        else:
            yield f"line {line}", [row[i] for i in at]
    if not header:
        raise DataError(f"{path}: empty file")


def _jsonl(path: Path, lines: TextIO, columns: Sequence[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}: {place}: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}: {place}: is no JSON object")
        _check_columns(f"{path}: {place}", list(record), columns)
        yield place, [record[column] for column in columns]


def _templates(path: Path) -> Iterator[Record]:
    try:
        with _open(path) as file:
            for place, sentence, label in read_templates(file.read().decode()):
                yield place, (sentence, label)
    # TOML that does not parse is a ValueError; a file that is cut short ends too early.
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: {error}") from error


def _parquet(path: Path, content: bytes, columns: Sequence[str]) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        _check_columns(str(path), table.schema_arrow.names, columns)
        for batch in table.iter_batches(columns=list(dict.fromkeys(columns))):
            for values in zip(*(batch[column].to_pylist() for column in columns), strict=True):
                number += 1
                yield f"row {number}", values
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not Parquet: {error}") from error
