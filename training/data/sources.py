"""Rows in: labelled texts from files and hubs, checked and named."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from model.bundle import MAX_LABEL_CHARACTERS
from training.data.formats import DataError, read_file, read_hub
from training.data.rows import Rows, excluded, row_key

MAX_DISCOVERED = 256
ROUNDED = 1e-3  # what a row's shares may miss 1 by together, being written with few digits
PLACE = "{text}"  # where a frame says the text

Shares = Mapping[str, float]  # by class, sums to 1
Unit = Literal["text", "sentences"]  # what of a text is a row

_SENTENCE = re.compile(r"(?<=[.!?…])[\"')\]]*\s+|\n+")
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_SPANS = TypeAdapter(list[tuple[int, int]])


class SourceConfig(BaseModel):
    """Where labelled texts come from and what their labels are called."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    path: str | None = Field(None, description="CSV, TSV, JSONL, Parquet or TOML, plain or .gz.")
    hub: str | None = Field(None, description="OWNER/NAME for the datasets library.")
    hub_config: str | None = None
    hub_split: str = "train"
    text: str = Field("text", description="Column of the text.")
    label: str = Field(
        "label",
        description="Column of the label: its name or, in JSONL and Parquet, each name's share of "
        "it, as `realce-train label` writes them.",
    )
    labels: dict[str, str | dict[str, float] | Literal[False] | None] | None = Field(
        None,
        description="Name of each label value, or each name's share of it; false leaves its rows "
        "out. None: as they are.",
    )
    language: str = "und"
    license: str = "unspecified"
    origin: str = ""
    unit: Unit = Field(
        "text", description="'sentences': each sentence under its text's label (weak labels)."
    )
    passages: str | None = Field(
        None,
        description="Column of what in a text tells its label, marked by people: pairs of word "
        "offsets, the second beyond the last word ([[3, 7], …], as ERASER writes them). These "
        "passages stand for the text.",
    )
    matching: str | None = Field(
        None, description="Use only the texts that this regular expression matches as a whole."
    )
    frames: tuple[str, ...] = Field(
        (), description="Sentences that say each text at their {text}, and stand for it."
    )
    teacher: tuple[str, ...] = Field(
        (),
        description="Sources whose linear model labels these texts; where they have labels, both "
        "words count.",
    )
    epochs: float = Field(
        1.0,
        ge=0,
        description="Passes over the rows in one training epoch; 0: only linear models read them.",
    )
    stage: int = Field(
        1, ge=1, description="Rows of a lower stage all come before those of a higher one."
    )
    domain: str = Field(
        "",
        description="Kind of text, such as reviews, where sources name several: the linear part "
        "learns what words say in each, and what they say anywhere, from rows of none as well.",
    )
    linear: float = Field(
        1.0,
        ge=0,
        description="What each of its rows weighs for the linear part and the baseline.",
    )
    strip_html: bool = Field(False, description="Turn <br /> into a space.")
    limit: int | None = Field(None, ge=1, description="Use the first rows only.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError(f"{self.name}: give one of path and hub")
        if self.passages is not None and self.unit != "text":
            raise ValueError(f"{self.name}: give one of passages and unit={self.unit!r}")
        return self

    @field_validator("matching")
    @classmethod
    def _expression(cls, matching: str | None) -> str | None:
        try:
            re.compile(matching or "")
        except re.error as error:
            raise ValueError(f"{matching!r} is no regular expression: {error}") from error
        return matching

    @field_validator("frames")
    @classmethod
    def _with_a_place(cls, frames: tuple[str, ...]) -> tuple[str, ...]:
        for frame in frames:
            if frame.count(PLACE) != 1:
                raise ValueError(f"{frame!r}: {PLACE} has to be in it, once")
        return frames

    @field_validator("labels")
    @classmethod
    def _whole(cls, labels: dict[str, Any] | None) -> dict[str, Any] | None:
        for value, shares in (labels or {}).items():
            if isinstance(shares, dict) and not _are_shares(shares, within=0):
                raise ValueError(f"{value!r}: the shares {shares} do not sum to 1")
        return labels


def read_rows(
    source: SourceConfig,
    labels: tuple[str, ...] | None,
    base: Path,
    held_out: frozenset[str] = frozenset(),
    least: int = 2,
) -> tuple[Rows, tuple[str, ...], dict[str, int]]:
    """All usable rows of a source, the labels in class order, and what was dropped, by reason.

    Paths are relative to `base`. Texts whose key is in `held_out` are dropped, and all that would
    be made of them. Where `labels` is None they are the distinct ones found, sorted.
    Raises `DataError` on anything that is not a table of known labels, or of `least` of them where
    they are to be found.
    """
    where = _where(source, base)
    texts: list[str] = []
    wholes: list[str] = []
    shares: list[Shares] = []
    dropped: Counter[str] = Counter()
    for place, raw, value, marked in _records(source, base):
        try:
            share = _shares(source, labels, value)
        except ValueError as error:
            raise DataError(f"{where}: {place}: {source.label}={value!r:.80}: {error}") from error
        if share is None:
            dropped["left-out label"] += 1
            continue
        if not share:
            named = (value for value in source.labels or () if _shares(source, labels, value) != {})
            known = sorted(named if source.labels else labels or ())
            reason = f"; known are {known}" if known else ": a label cannot be blank"
            raise DataError(f"{where}: {place}: {source.label}={value!r}{reason}")
        text = _tidied(source, raw)
        whole = excluded(text, held_out)
        try:
            pieces = _pieces(source, raw, text, marked)
        except ValueError as error:
            raise DataError(f"{where}: {place}: {source.passages}={error}") from error
        key = "" if pieces == [text] and not source.frames else row_key(text)
        for piece in pieces:
            if not piece:
                dropped["blank"] += 1
            elif not _matches(source, piece):
                dropped["not matching"] += 1
            elif whole or (piece != text and excluded(piece, held_out)):
                dropped["held-out"] += 1
            else:
                texts += [frame.replace(PLACE, piece) for frame in source.frames or (PLACE,)]
                more = len(texts) - len(shares)
                shares += [share] * more
                wholes += [key] * more
        if source.limit is not None and len(texts) >= source.limit:
            break
    if not texts:
        raise DataError(f"{where}: no rows{_left_out(dropped)}")
    found = sorted({name for share in shares for name in share})
    if labels is None and len(found) < least:
        first = "" if source.limit is None else f" of the first {source.limit}"
        raise DataError(
            f"{where}: every row{first} is {found[0]!r}; at least {least} labels are needed"
            f"{_left_out(dropped)}"
        )
    if labels is None:
        _check_discovered(where, source, found)
    classes = labels or tuple(found)
    rows = Rows(
        texts=texts,
        targets=np.array([[share.get(name, 0.0) for name in classes] for share in shares], "f4"),
        sources=np.zeros(len(texts), dtype=np.int64),
        languages=np.full(len(texts), source.language),
        wholes=wholes,
    )
    return rows, classes, dict(dropped)


def read_aligned(files: tuple[str, str], base: Path) -> list[tuple[str, str]]:
    """Texts and their translations out of two files with as many rows. Raises `DataError`."""
    columns = [
        [text for _, text, *_ in _unasked(SourceConfig(name=file, path=file), base)]
        for file in files
    ]
    one, other = map(len, columns)
    if one != other:
        first, second = (base / file for file in files)
        raise DataError(f"{first} has {one} rows, {second} has {other}: they are not aligned")
    return list(zip(*columns, strict=True))


def read_texts(source: SourceConfig, base: Path) -> list[str]:
    """The texts of a source, each once; of labels nothing is asked, but which are left out."""
    records = _records(source, base) if source.labels else _unasked(source, base)
    texts = dict.fromkeys(
        _tidied(source, text)
        for _, text, value, _ in records
        if not source.labels or _shares(source, None, value) is not None
    )
    texts.pop("", None)
    return [text for text in texts if _matches(source, text)][: source.limit]


def sentences(text: str) -> list[str]:
    """The sentences of a text, without those of less than three words."""
    return [part.strip() for part in _SENTENCE.split(text) if len(part.split()) >= 3]


def read_keys(path: Path) -> frozenset[str]:
    """Row keys listed in the `key` column of a CSV file."""
    source = SourceConfig(name=path.name, path=str(path), text="key", label="key")
    return frozenset(key for _, key, *_ in _records(source, Path()))


def _shares(source: SourceConfig, labels: tuple[str, ...] | None, value: Any) -> Shares | None:
    """What share of the label each class has; None: leave the row out; none: not known. Raises
    `ValueError` where a row says shares of its own and they are none."""
    name = value
    if source.labels is not None or not isinstance(value, dict):
        key = str(value).strip()
        name = key if source.labels is None else source.labels.get(key, "")
    elif not _are_shares(value, within=ROUNDED):
        raise ValueError("the shares of a label are numbers that sum to 1")
    if name is None or name is False:
        return None
    shares = name if isinstance(name, dict) else {name: 1.0}
    return shares if all(labels is None or one in labels for one in shares) and name else {}


def _are_shares(shares: Mapping[str, Any], within: float) -> bool:
    """Are these numbers that sum to 1 `within` so much?"""
    numbers = [one for one in shares.values() if isinstance(one, int | float) and one >= 0]
    return len(numbers) == len(shares) and math.isclose(sum(numbers), 1, abs_tol=within)


def _check_discovered(where: str, source: SourceConfig, found: list[str]) -> None:
    """A column of texts or numbers is easily taken for one of labels; tell before training."""
    if len(found) > MAX_DISCOVERED:
        raise DataError(
            f"{where}: {source.label} has {len(found)} different values, the limit is "
            f"{MAX_DISCOVERED}; is it the column of labels?"
        )
    longest = max(found, key=len)
    if len(longest) > MAX_LABEL_CHARACTERS:
        raise DataError(
            f"{where}: {source.label}={longest[:20]!r}… has {len(longest)} characters, the limit "
            f"is {MAX_LABEL_CHARACTERS}; is it the column of labels?"
        )
    written: dict[str, str] = {}
    for name in found:
        if (other := written.setdefault(name.casefold(), name)) != name:
            raise DataError(
                f"{where}: {source.label} has both {other!r} and {name!r}; write them alike, or "
                "say what each is by --label VALUE=NAME"
            )


def _left_out(dropped: Counter[str]) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    return f" ({counts})" if counts else ""


def _matches(source: SourceConfig, text: str) -> bool:
    return source.matching is None or re.fullmatch(source.matching, text) is not None


def _tidied(source: SourceConfig, text: str) -> str:
    return (_BREAK.sub(" ", text) if source.strip_html else text).strip()


def _where(source: SourceConfig, base: Path) -> str:
    return f"hub:{source.hub}" if source.path is None else str(base / source.path)


def _pieces(source: SourceConfig, raw: str, text: str, marked: Any) -> list[str]:
    """What a source makes rows of: the tidied text, its sentences, or what is marked in the raw
    one, whose word offsets they are. Raises `ValueError`."""
    if source.passages is not None:
        return [_tidied(source, passage) for passage in _passages(raw, marked)]
    return sentences(text) if source.unit == "sentences" else [text]


def _unasked(source: SourceConfig, base: Path) -> Iterator[tuple[str, str, Any, Any]]:
    """`_records` of a source whose labels do not matter: the text stands in for them."""
    return _records(source.model_copy(update={"label": source.text}), base)


def _records(source: SourceConfig, base: Path) -> Iterator[tuple[str, str, Any, Any]]:
    """Place ('line 7', or 'row 7' where there are no lines), text, label value and what is marked
    in the text of every row."""
    where = _where(source, base)
    columns = [source.text, source.label, *filter(None, [source.passages])]
    if source.hub is not None:
        records = read_hub(source.hub, source.hub_config, source.hub_split, columns)
    else:
        records = read_file(base / str(source.path), columns)
    for place, (text, value, *marked) in records:
        if not isinstance(text, str):
            raise DataError(f"{where}: {place}: {source.text}={text!r:.40} is not text")
        if value is None:
            raise DataError(f"{where}: {place}: {source.label} is missing")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:  # JSON can spell halves of a surrogate pair
                raise DataError(
                    f"{where}: {place}: {source.text} is not Unicode text: {error.reason}"
                ) from error
        yield place, text, value, marked[0] if marked else None


def _passages(text: str, spans: Any) -> list[str]:
    """The passages of a text at pairs of word offsets, which a table spells as JSON. Raises
    `ValueError`."""
    try:
        read = _SPANS.validate_json if isinstance(spans, str) else _SPANS.validate_python
        pairs = read(spans)
    except ValidationError as error:
        raise ValueError(f"{spans!r:.40} is no list of pairs of word offsets") from error
    words = text.split()
    for first, end in pairs:
        if not 0 <= first < end <= len(words):
            raise ValueError(f"…[{first}, {end}]… is outside of a text of {len(words)} words")
    return [" ".join(words[first:end]) for first, end in pairs]
