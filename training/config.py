"""A training run as a committed file: data, network, schedule."""

import difflib
import hashlib
import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.bundle import Label, Name, Version
from model.config import ModelConfig
from model.faults import faults
from training.data.sources import SourceConfig

_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
TABLES = ("sources", "unlabelled", "translated", "validation", "test")
CHOICES = ("without", "only")  # of tables of a base
SHARE = "base_share"  # of what a base reads of each source
# What tells no run from another, and what tells runs of the same steps apart.
_ABOUT = {"name": True, "version": True, "license": True, "train": {"compile"}}
_OF_SOURCE = {"__all__": {"linear", "domain"}}
_AFTER = {
    "weights": True,
    "network": {"ngrams", "ends"},
    "train": {"linear_strength", "baseline", "start_share", "compile"},
    "sources": _OF_SOURCE,
    "unlabelled": _OF_SOURCE,
    "translated": {"__all__": {"linear"}},
}


class ConfigError(ValueError):
    """The configuration cannot be used; the message names key, value and reason."""


class NetworkConfig(BaseModel):
    """The network's shape; vocabulary and classes come from the data. See `ModelConfig`."""

    model_config = _FROZEN

    d_model: int = 192
    layers: int = 2
    heads: int = 6
    d_ff: int = 384
    max_tokens: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.0
    ngrams: int = 2**18
    ends: float = 1.5


class TrainConfig(BaseModel):
    """How the network is fitted."""

    model_config = _FROZEN

    seed: int = Field(0, ge=0, lt=2**32)
    vocab_size: int = Field(12_000, ge=64, description="Most pieces that the tokenizer may learn.")
    token_vectors: bool = Field(
        False, description="Begin with embeddings from co-occurrence, unlabelled text included."
    )
    epochs: int | None = Field(
        None,
        ge=0,
        description="Passes over the rows; None: more the fewer rows there are; 0: none, what the "
        "run starts from is finished as it is.",
    )
    max_batch_tokens: int = Field(
        2048,
        ge=64,
        description="Most padded tokens in one step, all ranks; of few rows a tenth at a time.",
    )
    crop_tokens: int = Field(256, ge=8, description="Longer texts show a random window a step.")
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="Of the layers' matrices; the rest is always AdamW's."
    )
    learning_rate: float = Field(1e-3, gt=0)
    warmup: float = Field(0.06, ge=0, le=1, description="Share of the steps that warm up.")
    weight_decay: float = Field(0.05, ge=0)
    gradient_clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    token_dropout: float = Field(0.1, ge=0, lt=1, description="Share of tokens masked in a step.")
    replaced_tokens: float = Field(
        0.2, gt=0, lt=1, description="Share of tokens drawn anew in a step of pretraining."
    )
    ema_decay: float = Field(0.998, ge=0, lt=1, description="Averaged weights; 0 turns it off.")
    evaluations_per_epoch: int = Field(1, ge=1)
    patience: int = Field(
        4,
        ge=1,
        description="Evaluations without a better one before the end, which is not in the first "
        "200 steps.",
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="Which evaluation's weights; last where validation is too small to rank them.",
    )
    max_steps: int | None = Field(
        None, ge=1, description="Stop here although the schedule goes on: a later stage follows."
    )
    start_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the weights that the run started from in those that it ends with.",
    )
    linear_strength: float = Field(
        3.0, gt=0, description="Inverse of the penalty on the linear part's weights (C)."
    )
    baseline: bool = Field(True, description="Fit a linear model on the same rows to compare.")
    checkpoint_every_steps: int = Field(200, ge=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = Field(
        False, description="Compile the layers first: half a minute, then shorter steps."
    )


class UnlabelledConfig(SourceConfig):
    """Texts without labels: `train.token_vectors` learns from them and, where a teacher is named,
    the network does, under the labels that the teacher gives."""

    least_confidence: float = Field(
        0.6, ge=0, lt=1, description="Texts of which the teacher is less sure are left out."
    )

    @model_validator(mode="after")
    def _of_texts_alone(self) -> Self:
        for key in ("labels", "passages", "matching", "frames", "domain"):
            if value := getattr(self, key):
                raise ValueError(f"{self.name}: {key}={value!r} is for sources with labels")
        return self


class TranslatedConfig(BaseModel):
    """A source once more, word for word in another language (`training.data.translation`)."""

    model_config = _FROZEN

    name: str
    source: str = Field(description="Name of the source; its rows keep their labels.")
    aligned: tuple[str, str] = Field(
        description="Two files with a column `text`, row by row of the same meaning; the second is "
        "in the language to come."
    )
    language: str
    epochs: float = Field(1.0, ge=0, description="As of a source.")
    stage: int = Field(1, ge=1, description="As of a source.")
    linear: float = Field(1.0, ge=0, description="As of a source.")

    def of(self, source: SourceConfig) -> SourceConfig:
        """The source that comes of it."""
        own = self.model_dump(include={"name", "language", "epochs", "stage", "linear"})
        return source.model_copy(update=own | {"origin": f"{source.origin} (word for word)"})


class RunConfig(BaseModel):
    """One run, from rows to bundle. `sources` come in order of trust: of a text that occurs in two,
    the first is kept."""

    model_config = _FROZEN

    name: Name = "model"
    version: Version = "1"
    license: str = "unspecified"
    labels: tuple[Label, ...] | None = Field(None, description="Class order; None: as discovered.")
    weights: Literal["float32", "float16"] = Field(
        "float32", description="How model.onnx stores its weights; computing is float32."
    )
    exclude_keys: str | None = Field(None, description="File of row keys never to train on.")
    exclude_held_out: bool = Field(True, description="Train on no text of a held-out set.")
    validation_share: float = Field(0.1, gt=0, lt=0.5, description="Split off if none is given.")
    test_share: float = Field(0.1, gt=0, lt=0.5, description="Split off if none is given.")
    network: NetworkConfig = NetworkConfig()
    train: TrainConfig = TrainConfig()
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    unlabelled: tuple[UnlabelledConfig, ...] = Field(
        (), description="Texts whose label column, if any, is not looked at."
    )
    translated: tuple[TranslatedConfig, ...] = ()
    validation: tuple[SourceConfig, ...] = ()
    test: tuple[SourceConfig, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        train, network = self.train, self.network
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels={self.labels} has one twice")
        try:
            ModelConfig(vocab_size=train.vocab_size, classes=2, **network.model_dump())
        except ValidationError as error:
            raise ValueError(f"network: {faults(error)}") from error
        own = {source.name for source in self.sources if not source.teacher}
        for source in (*self.sources, *self.unlabelled):
            if unknown := sorted(set(source.teacher) - own):
                raise ValueError(
                    f"{source.name}: teacher={unknown} is no source with labels of its own; there "
                    f"are {sorted(own)}"
                )
        names = [source.name for source in self.sources]
        for one in self.translated:
            if one.source not in names:
                raise ValueError(
                    f"{one.name}: source={one.source!r} is none of the sources {sorted(names)}"
                )
        learnt = [source.name for source in (*self.sources, *self.unlabelled)]
        learnt += [one.name for one in self.translated]
        for key, of_key in (
            ("sources", learnt),
            ("validation", [one.name for one in self.validation]),
            ("test", [one.name for one in self.test]),
        ):
            for name, times in Counter(of_key).items():
                if times > 1:
                    raise ValueError(f"{key}: name={name!r} is there {times} times")
        for key in ("epochs", "linear"):
            if not any(getattr(source, key) for source in self.sources):
                raise ValueError(f"sources: {key}=0 in all leaves nothing to learn from")
        if train.crop_tokens > network.max_tokens:
            raise ValueError(
                f"train.crop_tokens={train.crop_tokens} exceeds "
                f"network.max_tokens={network.max_tokens}"
            )
        if train.max_batch_tokens < train.crop_tokens:
            raise ValueError(
                f"train.max_batch_tokens={train.max_batch_tokens} cannot hold one text of "
                f"train.crop_tokens={train.crop_tokens}"
            )
        return self

    @property
    def domains(self) -> tuple[str, ...]:
        """The kinds of text that sources of the linear part name, in their order; of one alone
        nothing can be told from another."""
        named = (source.domain for source in self.sources if source.linear)
        domains = tuple(dict.fromkeys(name for name in named if name))
        return domains if len(domains) > 1 else ()

    @property
    def fingerprint(self) -> str:
        """Identifies the run. The order of keys says nothing: TOML writes tables last. Nor does
        what the bundle is called and allowed for."""
        return self._digest(_ABOUT)

    @property
    def steps_fingerprint(self) -> str:
        """Identifies the steps of the run: a checkpoint goes on only under the configuration that
        made it, whatever is fitted after the last of them."""
        return self._digest(_ABOUT | _AFTER)

    def _digest(self, exclude: Mapping[str, Any]) -> str:
        values = self.model_dump(mode="json", exclude=exclude)
        for kind in TABLES:
            for table in values[kind]:
                path = Path(table.get("path") or "")
                if path.is_absolute():  # it moves with the checkout
                    table["path"] = path.name
        content = json.dumps(values, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def load_config(path: Path | None, overrides: dict[str, Any]) -> RunConfig:
    """Read a TOML file (none: defaults) and lay `overrides`, keyed `section.key`, over it.

    A file may begin with another: `base` names it, `without` the tables of it to leave out, or
    `only` those to keep, and `base_share` what part of each source's epochs is read; a source or
    set of the same name says only what it has otherwise.
    """
    values = {} if path is None else _read(path)
    _lay(values, overrides)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        near = _meant(error)
        raise ConfigError(f"{path or 'command line'}: {faults(error)}{near}") from error


def _meant(error: ValidationError) -> str:
    """What a key that is not known may have been meant as."""
    known = {key: key for key in RunConfig.model_fields}
    for table, kind in (("network", NetworkConfig), ("train", TrainConfig)):
        known |= {key: f"{table}.{key}" for key in kind.model_fields}
    for fault in error.errors(include_url=False):
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
            return f"; did you mean {known[near[0]]}?" if near else ""
    return ""


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file, laid over those of its base; `above` are the files that led to it."""
    if path.resolve() in above:
        raise ConfigError(f"{path}: base leads back to where it began")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    _beside(path, values)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base={base!r} is to be a file")
    chosen = {key: values.pop(key) for key in CHOICES if key in values}
    for key, names in chosen.items():
        if not isinstance(names, list):
            raise ConfigError(f"{path}: {key}={names!r} is to be a list")
    share = values.pop(SHARE, None)
    beneath = _read(path.absolute().parent / base, (*above, path.resolve()))
    for key, names in chosen.items():
        if unknown := _choose(beneath, names, keep=key == "only"):
            raise ConfigError(f"{path}: {key}={unknown}: {base} has no such table")
    if share is not None:
        _share(path, beneath, share)
    return _over(beneath, values)


def _choose(values: dict[str, Any], names: Sequence[str], *, keep: bool) -> list[str]:
    """Keep only the tables so named, or all but them; returns the names that none has."""
    unknown = set(map(str, names))
    for kind in TABLES:
        tables = [table for table in values.get(kind, ()) if isinstance(table, dict)]
        values[kind] = [table for table in tables if (table.get("name") in names) is keep]
        unknown -= {str(table.get("name")) for table in tables}
    return sorted(unknown)


def _share(path: Path, values: dict[str, Any], share: Any) -> None:
    """Let each source be read so much of its epochs."""
    if not isinstance(share, float | int) or isinstance(share, bool) or share <= 0:
        raise ConfigError(f"{path}: {SHARE}={share!r} is to be a number above 0")
    for kind in ("sources", "unlabelled", "translated"):
        for table in values.get(kind, ()):
            table["epochs"] = share * table.get("epochs", 1.0)


def _over(beneath: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` laid over what is beneath: tables key by key, lists of tables name by name."""
    laid = beneath | values
    for key in beneath.keys() & values.keys():
        below, above = beneath[key], values[key]
        if isinstance(below, dict) and isinstance(above, dict):
            laid[key] = _over(below, above)
        elif key in TABLES and isinstance(above, list):
            laid[key] = _by_name(below, above)
    return laid


def _by_name(beneath: list[dict[str, Any]], tables: list[Any]) -> list[Any]:
    laid: list[Any] = list(beneath)
    places = {table["name"]: place for place, table in enumerate(beneath) if "name" in table}
    for table in tables:
        place = places.get(table.get("name")) if isinstance(table, dict) else None
        if place is None:
            laid.append(table)
        else:
            laid[place] = _over(beneath[place], table)
    return laid


def overlaid(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """The same run but for `overrides`, keyed `section.key`."""
    values = config.model_dump(exclude_unset=True)
    _lay(values, overrides)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(faults(error)) from error


def _lay(values: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for key, value in overrides.items():
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{key}={value}: {section}={target!r} is no table of settings")
        target[last] = value


def _beside(config: Path, values: dict[str, Any]) -> None:
    """Let a path that begins with ./ start from the folder of the config file itself."""
    for kind in TABLES:
        tables = values.get(kind)
        for table in tables if isinstance(tables, list) else ():
            place = table.get("path") if isinstance(table, dict) else None
            if isinstance(place, str) and place.startswith("./"):
                table["path"] = str(config.absolute().parent / place)
