"""Where weights come from, which a run folder and every bundle of it tell."""

from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from model.bundle import Bundle, Source
from training.config import RunConfig
from training.splits import Splits

ORIGIN = "origin.json"


class Origin(BaseModel):
    """What was learnt from, under which licence, and what the weights know of the classes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    license: str
    labels: tuple[str, ...]
    heads: int
    sources: tuple[Source, ...]

    @classmethod
    def of_run(cls, config: RunConfig, splits: Splits, before: Self | None) -> Self:
        """A run's own sources, then those of what it begins with, whose licence stays theirs unless
        the run names one of its own."""
        counts = np.bincount(splits.train.sources, minlength=len(splits.sources))
        own = [
            Source(
                name=source.name,
                language=source.language,
                rows=int(count) or splits.texts_of.get(source.name, 0),
                license=source.license,
                origin=source.origin,
                domain=source.domain,
            )
            for source, count in zip(splits.sources, counts, strict=True)
        ]
        own = [source for source in own if source.rows]
        names, licence, earlier = {source.name for source in own}, config.license, []
        if before is not None:
            way = f"(by way of {before.name} {before.version})"
            earlier = [
                source.model_copy(update={"origin": f"{source.origin} {way}".strip()})
                for source in before.sources
                if source.name not in names
            ]
            if "license" not in config.model_fields_set:
                licence = before.license
        return cls(
            name=config.name,
            version=config.version,
            license=licence,
            labels=splits.labels,
            heads=config.network.heads,
            sources=(*own, *earlier),
        )

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Self:
        """As its manifest tells."""
        about = bundle.manifest
        return cls(
            name=about.name,
            version=about.version,
            license=about.license,
            labels=about.labels,
            heads=about.config.heads,
            sources=about.sources,
        )

    @classmethod
    def kept(cls, run: Path) -> Self | None:
        """As a run folder tells; None of one before version 2.5. Raises `ValidationError`."""
        path = run / ORIGIN
        return cls.model_validate_json(path.read_bytes()) if path.exists() else None

    def keep(self, run: Path) -> None:
        """Write it into a run folder."""
        (run / ORIGIN).write_text(self.model_dump_json(indent=2), encoding="utf-8")
