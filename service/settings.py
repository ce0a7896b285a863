"""Every setting of the server: flag, then REALCE_* environment, then default."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "REALCE_"
EMBEDDED_BUNDLE = Path(__file__).parent / "bundle"
# Where processes count metrics together: prometheus_client looks for it when it is loaded.
SHARED = "PROMETHEUS_MULTIPROC_DIR"

Count = Annotated[int, Field(ge=1, le=1 << 40)]
Bytes = Annotated[int, Field(ge=1, le=1 << 30)]  # a gRPC message holds less than 2 GiB


class SettingsError(ValueError):
    """A setting cannot be used; the message names the key as given, the value and the reason."""


class Contradiction(ValueError):
    """Two settings cannot hold together: the value of `small` exceeds that of `large`."""

    def __init__(self, small: str, large: str) -> None:
        super().__init__(f"{small} exceeds {large}")
        self.small, self.large = small, large


class Settings(BaseSettings):
    """The server's settings. Each field is a flag of `realce serve` and a REALCE_ variable."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    bundle: Path = Field(EMBEDDED_BUNDLE, description="folder of the bundle to serve")
    grpc: str = Field("127.0.0.1:50051", description="HOST:PORT to listen on; port 0 picks one")
    http: str = Field(
        "127.0.0.1:8080", description="HOST:PORT of /metrics, for Prometheus; empty is nowhere"
    )
    transport: Literal["grpc", "native"] = Field(
        "grpc",
        description="who speaks HTTP/2: gRPC's own library, or pygrpc-native, for more calls of "
        "few texts from callers that can be trusted",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where to compute; auto is cuda where it is installed, else cpu"
    )
    cuda_graphs: bool = Field(
        True, description="on a GPU, record before serving what batches launch, to launch it as one"
    )
    threads: int = Field(
        0, ge=0, le=1024, description="batches computed side by side on a CPU; 0 is the CPU quota"
    )
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="processes that share port, threads and callers; one that ends, ends all, so "
        "that what supervises starts them anew",
    )
    reuse_port: bool = Field(
        False, description="listen on the port beside other servers that do so too"
    )
    max_texts: int = Field(1024, ge=1, lt=1 << 32, description="most texts in one call")
    max_text_bytes: Bytes = Field(262_144, description="longest text, in UTF-8 bytes")
    max_request_bytes: Bytes = Field(8 << 20, description="largest request message, in bytes")
    max_answer_bytes: Bytes = Field(64 << 20, description="largest answer, in bytes of tensors")
    max_held_bytes: Bytes = Field(
        128 << 20,
        description="bytes of tensors in all answers that are not sent yet, before calls for more "
        "are refused",
    )
    max_batch_tokens: Count = Field(2048, description="padded tokens computed in one batch")
    max_queue_tokens: Count = Field(131_072, description="tokens waiting before calls are refused")
    max_waiting_calls: int = Field(
        512,
        ge=1,
        lt=1 << 31,
        description="calls that have come and wait to be looked at; from half of that on some are "
        "cut off, beyond it all, and the log does not know of them: fewer where callers have "
        "deadlines, more where many call at once; the native transport refuses those beyond it",
    )
    hang_s: float = Field(
        30.0,
        ge=1,
        le=3600,
        description="seconds on one batch after which the device counts as lost",
    )
    grace_s: float = Field(
        20.0, ge=0, le=3600, description="seconds to finish what is under way after SIGTERM"
    )
    keepalive_s: float = Field(
        60.0, ge=1, le=86_400, description="seconds between pings to a caller that is silent"
    )
    connection_age_s: float = Field(
        300.0,
        ge=0,
        le=86_400,
        description="about how many seconds until a caller is asked to connect anew, and so finds "
        "servers that have been added; 0 is never, as it is with the native transport",
    )
    reflection: bool = Field(False, description="serve gRPC reflection")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log line written; debug has one line a call"
    )

    _keys: dict[str, str] = PrivateAttr(default_factory=dict)

    def given(self, name: str) -> str:
        """A setting as it was given, for messages: `REALCE_THREADS=2`, `--threads=2`."""
        keys = self._keys or {field: field for field in self.model_fields_set}
        return _given(keys, name, getattr(self, name))

    def environment(self) -> dict[str, str]:
        """The environment in which another server would have these settings."""
        others = {key: one for key, one in os.environ.items() if not key.upper().startswith(PREFIX)}
        return others | {PREFIX + name.upper(): str(value) for name, value in self}

    @field_validator("grpc", "http")
    @classmethod
    def _host_and_port(cls, value: str, info: ValidationInfo) -> str:
        if info.field_name == "http" and not value:
            return value
        host, sign, port = value.rpartition(":")
        if not (sign and host and port.isdecimal() and int(port) < 65_536):
            raise ValueError("must be HOST:PORT with a port from 0 to 65535")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for small, large in (
            ("max_batch_tokens", "max_queue_tokens"),
            ("max_text_bytes", "max_request_bytes"),
            ("max_answer_bytes", "max_held_bytes"),
        ):
            if getattr(self, small) > getattr(self, large):
                raise Contradiction(small, large)
        return self


def load_settings(flags: Mapping[str, Any]) -> Settings:
    """Settings from flags (by field name) over the environment, read here and nowhere else.

    Raises `SettingsError`, which tells all that is wrong.
    """
    variables = {PREFIX + name.upper(): name for name in Settings.model_fields}
    present = [key for key in os.environ if key.upper().startswith(PREFIX)]
    unknown = sorted(key for key in present if key.upper() not in variables)
    if unknown:
        near = difflib.get_close_matches(unknown[0].upper(), variables, n=1)
        raise SettingsError(
            f"{', '.join(unknown)}: no such setting; there are {', '.join(sorted(variables))}. "
            + (f"Did you mean {near[0]}? " if near else "")
            + "In Kubernetes, set enableServiceLinks: false"
        )
    keys = {variables[key.upper()]: key for key in present} | {name: flag(name) for name in flags}
    try:
        settings = Settings(**flags)
    except ValidationError as error:
        reasons = (_reason(keys, dict(fault)) for fault in error.errors())
        raise SettingsError("; ".join(reasons)) from error
    settings._keys = keys
    return settings


def count_in(folder: str | None) -> None:
    """Have metrics counted in `folder` together with others', or alone. That an image or a shell
    names a folder, for programs of its own, is nothing to us."""
    for name in (SHARED, SHARED.lower()):
        os.environ.pop(name, None)
    if folder is not None:
        os.environ[SHARED] = folder


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def _given(keys: Mapping[str, str], name: str, value: object) -> str:
    return f"{keys[name]}={value}" if name in keys else f"{flag(name)}={value} (the default)"


def _reason(keys: Mapping[str, str], fault: dict[str, Any]) -> str:
    clash = fault.get("ctx", {}).get("error")
    if isinstance(clash, Contradiction):
        values = fault["input"]  # as given; what is not among them has its default
        small, large = (
            _given(keys, name, values.get(name, Settings.model_fields[name].default))
            for name in (clash.small, clash.large)
        )
        return f"{small} exceeds {large}"
    name = str(fault["loc"][0])
    reason = fault["msg"].removeprefix("Value error, ")
    return f"{_given(keys, name, fault['input'])}: {reason[:1].lower() + reason[1:]}"
