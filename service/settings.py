"""Every setting of the server: flag, then REALCE_* environment, then default."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "REALCE_"
EMBEDDED_BUNDLE = Path(__file__).parent / "bundle"

Count = Annotated[int, Field(ge=1)]


class SettingsError(ValueError):
    """A setting cannot be used; the message names the key as given, the value and the reason."""


class Settings(BaseSettings):
    """The server's settings. Each field is a flag of `realce serve` and a REALCE_ variable."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    bundle: Path = Field(EMBEDDED_BUNDLE, description="folder of the bundle to serve")
    grpc: str = Field("127.0.0.1:50051", description="HOST:PORT to listen on; port 0 picks one")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where to compute; auto is cuda where it is installed, else cpu"
    )
    threads: int = Field(
        0, ge=0, le=1024, description="batches computed side by side on a CPU; 0 is the CPU quota"
    )
    max_texts: Count = Field(1024, description="most texts in one call")
    max_text_bytes: Count = Field(262_144, description="longest text, in UTF-8 bytes")
    max_request_bytes: Count = Field(8 << 20, description="largest request message, in bytes")
    max_answer_bytes: Count = Field(64 << 20, description="largest answer, in bytes of tensors")
    max_batch_tokens: Count = Field(2048, description="padded tokens computed in one batch")
    max_queue_tokens: Count = Field(131_072, description="tokens waiting before calls are refused")
    grace_s: float = Field(
        20.0, ge=0, le=3600, description="seconds to finish what is under way after SIGTERM"
    )
    reflection: bool = Field(False, description="serve gRPC reflection")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log line written; debug has one line a call"
    )

    @field_validator("grpc")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, sign, port = value.rpartition(":")
        if not (sign and host and port.isdecimal() and int(port) < 65_536):
            raise ValueError("must be HOST:PORT with a port from 0 to 65535")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for small, large in (
            ("max_batch_tokens", "max_queue_tokens"),
            ("max_text_bytes", "max_request_bytes"),
        ):
            if getattr(self, small) > getattr(self, large):
                raise ValueError(
                    f"{small}={getattr(self, small)} exceeds {large}={getattr(self, large)}"
                )
        return self


def load_settings(flags: Mapping[str, Any]) -> Settings:
    """Settings from flags (by field name) over the environment, read here and nowhere else.

    Raises `SettingsError`.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(k for k in os.environ if k.startswith(PREFIX) and k not in known)
    if unknown:
        raise SettingsError(
            f"{unknown[0]}: no such setting; there are {', '.join(sorted(known))}. "
            "In Kubernetes, set enableServiceLinks: false"
        )
    try:
        return Settings(**flags)
    except ValidationError as error:
        fault = error.errors()[0]
        reason = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:
            raise SettingsError(reason) from error
        name = str(fault["loc"][0])
        key = flag(name) if name in flags else PREFIX + name.upper()
        raise SettingsError(f"{key}={fault['input']}: {reason}") from error


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")
