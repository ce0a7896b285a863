"""Bundles side by side, as one HTML page that needs nothing but itself."""

import base64
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeGuard

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from model.bundle import MANIFEST, REPORT, Manifest, read_bundle
from model.faults import faults
from training.config import ConfigError
from training.data.formats import DataError
from training.evaluation.metrics import margin

# Key in a manifest's metrics, heading, and which end is the better one; None: to compare with.
MEASURES = (
    ("accuracy", "accuracy", max),
    ("linear_accuracy", "linear baseline", None),
    ("accuracy_at_80", "on the surest 80 %", max),
    ("macro_f1", "macro-F1", max),
    ("ece", "calibration error", min),
)
KINDS = ("mft", "inv", "dir")
ALL = "all"
MOST_LABELS = 12  # a larger confusion matrix is only shown as the plot

Rate = tuple[int, int]  # cases passed, cases
Place = tuple[str, str, str]  # suite, capability, kind


class _Test(BaseModel):
    kind: Literal["mft", "inv", "dir"]
    capability: str
    cases: Annotated[int, Field(ge=1)]
    failures: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _no_more_failures_than_cases(self) -> Self:
        if self.failures > self.cases:
            raise ValueError(f"failures={self.failures} exceeds cases={self.cases}")
        return self


class _Suite(BaseModel):
    suite: str
    tests: list[_Test]


_SUITES = TypeAdapter(list[_Suite])


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A verified bundle and what the page shows of it. `plots` are data URIs by their caption."""

    title: str
    manifest: Manifest
    fingerprint: str
    settings: dict[str, str]
    plots: dict[str, str]
    behaviour: dict[Place, Rate]


def read_exhibit(folder: Path, behaviour: Path | None = None) -> Exhibit:
    """Read and verify a bundle, or the one in `folder`/bundle where a run keeps it there."""
    kept = folder / "bundle"
    if not (folder / MANIFEST).exists() and (kept / MANIFEST).exists():
        folder = kept
    bundle = read_bundle(folder)
    manifest = bundle.manifest
    plots = {
        Path(name).stem: f"data:image/png;base64,{base64.b64encode(content).decode()}"
        for name in sorted(manifest.files)
        if name.startswith(f"{REPORT}/") and name.endswith(".png")
        for content in [(folder / name).read_bytes()]
    }
    card = f"{REPORT}/model_card.md"
    text = (folder / card).read_text(encoding="utf-8") if card in manifest.files else ""
    return Exhibit(
        title=f"{manifest.name} {manifest.version}",
        manifest=manifest,
        fingerprint=bundle.fingerprint,
        settings=settings(text),
        plots=plots,
        behaviour={} if behaviour is None else read_behaviour(behaviour),
    )


def settings(card: str) -> dict[str, str]:
    """The settings of the run that a model card (`training.release.report.model_card`) lists."""
    section = card.partition("\n## Settings of the run\n")[2].partition("\n## ")[0]
    pairs = (line[2:].partition(": ") for line in section.split("\n") if line.startswith("- "))
    return {key: value for key, _, value in pairs}


def read_behaviour(path: Path) -> dict[Place, Rate]:
    """Passed and all cases of every suite, capability and kind, from `realce-train check --json`;
    as capability `ALL`, those of the suite together.

    Raises `DataError` where the file is no such thing.
    """
    try:
        suites = _SUITES.validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise DataError(f"{path}: not of `realce-train check --json`: {faults(error)}") from error
    rates: dict[Place, Rate] = {}
    for suite in suites:
        for test in suite.tests:
            for capability in (test.capability, ALL):
                place = (suite.suite, capability, test.kind)
                passed, cases = rates.get(place, (0, 0))
                rates[place] = passed + test.cases - test.failures, cases + test.cases
    return rates


def page(folders: Sequence[Path], behaviours: Sequence[Path] = ()) -> str:
    """The page, as HTML. `behaviours` has a file for each bundle, in their order, or is empty."""
    if behaviours and len(behaviours) != len(folders):
        raise ConfigError(
            f"--behaviour: {len(behaviours)} file(s) for {len(folders)} bundle(s); "
            "give one for each, in their order"
        )
    exhibits = [
        read_exhibit(folder, behaviour)
        for folder, behaviour in itertools.zip_longest(folders, behaviours)
    ]
    titles = [one.title for one in exhibits]
    exhibits = [  # two of one name and version are told apart by what identifies them
        one
        if titles.count(one.title) == 1
        else replace(one, title=f"{one.title} ({one.fingerprint[:8]})")
        for one in exhibits
    ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "margin": plus_or_minus,
        "rate": rate,
        "confusions": confusions,
    }
    return environment.get_template("page.html").render(
        zip=zip,
        exhibits=exhibits,
        measures=MEASURES,
        sets=_union(one.manifest.metrics for one in exhibits),
        best=best(exhibits),
        settings={
            key: [one.settings.get(key, "–") for one in exhibits]
            for key in _union(one.settings for one in exhibits)
        },
        kinds=KINDS,
        places=places(exhibits),
    )


def best(exhibits: Sequence[Exhibit]) -> dict[tuple[str, str], float]:
    """The best value of every set and measure that more than one bundle has."""
    values: dict[tuple[str, str], float] = {}
    for name in _union(one.manifest.metrics for one in exhibits):
        metrics = [one.manifest.metrics.get(name, {}) for one in exhibits]
        for key, _, better in MEASURES:
            found = [one[key] for one in metrics if _is_number(one.get(key))]
            if better is not None and len(found) > 1:
                values[name, key] = better(found)
    return values


def places(exhibits: Sequence[Exhibit]) -> dict[str, list[str]]:
    """The capabilities of each suite that any bundle was tested on, `ALL` at the end."""
    suites: dict[str, list[str]] = {}
    for suite, capability, _ in _union(one.behaviour for one in exhibits):
        if capability not in suites.setdefault(suite, []):
            suites[suite].append(capability)
    return {
        suite: sorted(capabilities, key=lambda name: name == ALL)
        for suite, capabilities in suites.items()
    }


def percent(value: Any) -> str:
    """A share as "86.7 %"; a dash for what is not there."""
    return f"{value:.1%}".replace("%", "\u00a0%") if _is_number(value) else "–"


def rate(passed_of_cases: Rate | None) -> str:
    """As "90.0 %, 36/40"; a dash for what was not tested."""
    if passed_of_cases is None:
        return "–"
    passed, cases = passed_of_cases
    return f"{percent(passed / cases)}, {passed}/{cases}"


def plus_or_minus(metrics: Mapping[str, Any]) -> str:
    """How far chance moves the accuracy, as "± 0.4"; nothing where it is not known."""
    accuracy, rows = metrics.get("accuracy"), metrics.get("rows")
    if not (_is_number(accuracy) and _is_number(rows) and rows and 0 <= accuracy <= 1):
        return ""
    return f"±\u00a0{100 * margin(accuracy, int(rows)):.1f}"


def confusions(manifest: Manifest) -> dict[str, list[list[int]]]:
    """The confusion matrix [C, C] of each set that has one; none where labels are too many."""
    classes = len(manifest.labels)
    if classes > MOST_LABELS:
        return {}
    found: dict[str, Any] = {
        name: metrics.get("confusion") or () for name, metrics in manifest.metrics.items()
    }
    return {
        name: matrix
        for name, matrix in found.items()
        if len(matrix) == classes and all(len(counts) == classes for counts in matrix)
    }


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _union(mappings: Any) -> list[Any]:
    """The keys of all, each once, in the order in which they come."""
    return list(dict.fromkeys(key for one in mappings for key in one))
