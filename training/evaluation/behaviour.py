"""What a classifier must be able to do, as tests of its behaviour (CheckList, Ribeiro et al. 2020).

A suite is a TOML file: `[slots]` and templates as in `training.data.templates`, and `[[tests]]`,
each of one `capability` and of one `kind`:

    mft  minimum functionality: every sentence has the label `label`
    inv  invariance: a change leaves the label as it is or, where `tolerance` is given, moves no
         probability by more than that
    dir  direction: a change moves the probability of `label` against `direction` ("up" or "down")
         by no more than `tolerance` (default: 0.1, as in the paper)

The change is one of `perturbation` (a name in `training.evaluation.perturbations`), `replace` (a
table of words and what stands in their place), `swap` (a slot: each of its words against its first
one), `append` and `prepend` (sentences).
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.box import HORIZONTALS
from rich.table import Table
from rich.text import Text

from model.bundle import Bundle
from model.faults import faults
from training.data.batches import Dataset
from training.data.formats import DataError
from training.data.templates import expand
from training.evaluation.metrics import Graph, Logits
from training.evaluation.perturbations import PERTURBATIONS

CONFIGS = Path(__file__).parents[1] / "configs"
LABELS = ("negative", "positive")
DIRECTION_TOLERANCE = 0.1
CHANGES = ("perturbation", "replace", "swap", "append", "prepend")

Predict = Callable[[Sequence[str]], Logits]  # probabilities [N, C] of N texts
_Row = npt.NDArray[np.float32]
_Word = Annotated[str, Field(pattern=r"^[^{}]+$")]
_Words = Annotated[list[_Word], Field(min_length=1)]
_Template = Annotated[str, Field(pattern=r"^([^{}]|\{[A-Za-z_]\w*\})+$")]


class Expectation(BaseModel):
    """What a test expects of all its cases; tolerances are of probabilities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: _Word
    kind: Literal["mft", "inv", "dir"]
    capability: _Word
    label: str | None = None
    direction: Literal["up", "down"] | None = None
    tolerance: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A sentence and, but in a test of kind mft, what a change makes of it."""

    text: str
    changed: str | None = None


@dataclass(frozen=True, slots=True)
class BehaviourTest:
    """An expectation and the cases that must meet it."""

    expectation: Expectation
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that does not meet the expectation, and why not, in words."""

    case: Case
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a test went: of so many cases, these failed."""

    expectation: Expectation
    cases: int
    failures: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """How a suite went, test by test."""

    outcomes: tuple[Outcome, ...]

    @property
    def capabilities(self) -> dict[str, list[Outcome]]:
        """The tests of each capability, in the suite's order."""
        groups: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            groups.setdefault(outcome.expectation.capability, []).append(outcome)
        return groups

    def table(self, title: str | None = None) -> Table:
        """For the terminal: every capability, under it its tests."""
        table = Table(title=title)
        table.add_column("capability, test")
        table.add_column("kind")
        for column in ("cases", "failed", "passed"):
            table.add_column(column, justify="right")
        for name, outcomes in self.capabilities.items():
            table.add_row(name, "", *_cells(outcomes), style="bold")
            for outcome in outcomes:
                expected = outcome.expectation
                table.add_row(f"  {expected.name}", expected.kind, *_cells([outcome]))
            table.add_section()
        table.add_row("all", "", *_cells(self.outcomes), style="bold")
        return table

    def examples(self, most: int) -> Table:
        """For the terminal: at most `most` failures of each test."""
        table = Table(box=HORIZONTALS, show_lines=True, expand=True)
        for column, share in (("test", 2), ("case", 5), ("why it failed", 3)):
            table.add_column(column, ratio=share)
        for outcome in self.outcomes:
            # From beginning to end: neighbours are of one template and much alike.
            step = max(1, len(outcome.failures) // max(1, most))
            for failure in outcome.failures[::step][: max(0, most)]:
                case = failure.case
                text = case.text if case.changed is None else f"{case.text}\n→ {case.changed}"
                table.add_row(outcome.expectation.name, Text(text), Text(failure.reason))
        return table

    def to_json(self) -> dict[str, Any]:
        """Everything, every failure included, of types that JSON knows."""
        return _figures(self.outcomes) | {
            "capabilities": {name: _figures(tests) for name, tests in self.capabilities.items()},
            "tests": [
                outcome.expectation.model_dump(include={"name", "kind", "capability"})
                | _figures([outcome])
                | {
                    "examples": [
                        {"text": one.case.text, "changed": one.case.changed, "reason": one.reason}
                        for one in outcome.failures
                    ]
                }
                for outcome in self.outcomes
            ],
        }


class _Entry(Expectation):
    """A test as its file says it."""

    templates: Annotated[list[_Template], Field(min_length=1)]
    perturbation: str | None = None
    replace: dict[_Word, str] | None = None
    swap: str | None = None
    append: _Words | None = None
    prepend: _Words | None = None

    @model_validator(mode="after")
    def _says_what_its_kind_needs(self) -> Self:
        needed = {"mft": {"label"}, "inv": set(), "dir": {"label", "direction"}}[self.kind]
        allowed = needed | ({"tolerance"} if self.kind != "mft" else set())
        for key in ("label", "direction", "tolerance"):
            value = getattr(self, key)
            if value is None and key in needed:
                raise ValueError(f"{key} is missing; kind={self.kind!r} needs it")
            if value is not None and key not in allowed:
                raise ValueError(f"{key}={value!r}: kind={self.kind!r} has none")
        given = [key for key in CHANGES if getattr(self, key) is not None]
        if self.kind == "mft" and given:
            raise ValueError(f"{given[0]}={getattr(self, given[0])!r}: kind='mft' changes nothing")
        if self.kind != "mft" and len(given) != 1:
            raise ValueError(f"kind={self.kind!r} needs one of {list(CHANGES)}; there are {given}")
        if self.perturbation not in (None, *PERTURBATIONS):
            raise ValueError(f"perturbation={self.perturbation!r}: known are {list(PERTURBATIONS)}")
        return self

    def cases(self, slots: Mapping[str, list[str]]) -> Iterator[Case]:
        """Every sentence of every template, with all that it is changed into."""
        for number, template in enumerate(self.templates):
            place = f"templates[{number}]"
            cases = [
                Case(sentence, changed)
                for sentence, changed in self._pairs(template, slots, place)
                if sentence != changed
            ]
            if not cases:
                raise ValueError(f"{place}={template!r}: nothing in it is changed")
            yield from cases

    def _pairs(
        self, template: str, slots: Mapping[str, list[str]], place: str
    ) -> Iterator[tuple[str, str | None]]:
        if self.swap is not None:
            slot = f"{{{self.swap}}}"
            if slot not in template:
                raise ValueError(f"{place}={template!r}: has no {slot}, which swap names")
            # With its own slot left in, a sentence is a template of nothing else.
            for sentence in expand(template, {**slots, self.swap: [slot]}, place):
                first, *others = expand(sentence, slots, place)
                yield from ((first, other) for other in others)
            return
        for sentence in expand(template, slots, place):
            if self.kind == "mft":
                yield sentence, None
            if self.perturbation is not None:
                yield sentence, PERTURBATIONS[self.perturbation](sentence)
            if self.replace is not None:
                yield sentence, _replaced(sentence, self.replace)
            yield from ((sentence, f"{sentence} {added}") for added in self.append or ())
            yield from ((sentence, f"{added} {sentence}") for added in self.prepend or ())


class _Suite(BaseModel):
    """A suite as its file says it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    slots: dict[str, _Words] = {}
    tests: Annotated[list[dict[str, Any]], Field(min_length=1)]


def read_suite(path: Path, labels: Sequence[str] = LABELS) -> tuple[BehaviourTest, ...]:
    """The tests of a suite over `labels`, all their cases made.

    Raises `DataError` naming file, test, key and value where it is not of the form that this
    module's docstring says.
    """
    try:
        suite = _Suite.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        raise DataError(f"{path}: {faults(error)}") from error
    tests: dict[str, BehaviourTest] = {}
    for number, content in enumerate(suite.tests):
        name = content.get("name", number)
        place = f"{path}: test {name!r}"
        try:
            entry = _Entry.model_validate(content)
            cases = tuple(entry.cases(suite.slots))
        except ValidationError as error:
            raise DataError(f"{place}: {faults(error)}") from error
        except ValueError as error:
            raise DataError(f"{place}: {error}") from error
        if entry.name in tests:
            raise DataError(f"{place}: there are two of that name")
        if entry.label not in (None, *labels):
            raise DataError(
                f"{place}: label={entry.label!r}: there are {list(labels)}; --label VALUE="
                f"{entry.label} calls one so when training"
            )
        tests[entry.name] = BehaviourTest(entry, cases)
    return tuple(tests.values())


def run(tests: Sequence[BehaviourTest], predict: Predict, labels: Sequence[str] = LABELS) -> Report:
    """Judge every case by `predict`, which is asked once, its classes being `labels`."""
    pairs = ((case.text, case.changed) for test in tests for case in test.cases)
    texts = list(dict.fromkeys(text for pair in pairs for text in pair if text is not None))
    rows = dict(zip(texts, predict(texts), strict=True))
    outcomes = []
    for test in tests:
        failures = []
        for case in test.cases:
            after = None if case.changed is None else rows[case.changed]
            reason = _fault(test.expectation, rows[case.text], after, labels)
            if reason is not None:
                failures.append(Failure(case, reason))
        outcomes.append(Outcome(test.expectation, len(test.cases), tuple(failures)))
    return Report(tuple(outcomes))


def check(bundle: Bundle, suites: Sequence[Path] = ()) -> dict[Path, Report]:
    """Run suites on a bundle's own graph; by default ours in the languages of the bundle.

    Raises `DataError` where a suite cannot be read or none is in the bundle's languages.
    """
    languages = bundle.manifest.languages
    ours = (CONFIGS / f"behaviour-{language}.toml" for language in languages)
    paths = suites or [path for path in ours if path.is_file()]
    if not paths:
        raise DataError(
            f"no suite is in the bundle's languages ({', '.join(languages)}): name one with "
            "--suite, or train with --language en or pt"
        )

    graph = Graph(bundle)

    def predict(texts: Sequence[str]) -> Logits:
        encodings = bundle.tokenizer.encode_batch(texts, offsets=False)
        return graph.predict(Dataset.encode(encodings))

    labels = bundle.manifest.labels
    return {path: run(read_suite(path, labels), predict, labels) for path in paths}


def _fault(
    expected: Expectation, before: _Row, after: _Row | None, labels: Sequence[str]
) -> str | None:
    """Why probabilities [C], before and after a change, are not as expected; None: they are."""
    if not np.isfinite(before).all() or (after is not None and not np.isfinite(after).all()):
        return "a probability is no number"
    own = int(before.argmax())
    if after is None:
        fine = labels[own] == expected.label
        return None if fine else f"expected {expected.label}, got {labels[own]} {before[own]:.2f}"
    if expected.direction is not None:
        at = labels.index(str(expected.label))
        up = expected.direction == "up"
        loss = float(before[at] - after[at] if up else after[at] - before[at])
        limit = DIRECTION_TOLERANCE if expected.tolerance is None else expected.tolerance
        fine, said = loss <= limit, f"must not {'fall' if up else 'rise'}"
    elif expected.tolerance is not None:
        at = int(np.abs(after - before).argmax())
        fine, said = abs(after[at] - before[at]) <= expected.tolerance, "must stay"
    else:
        at = own
        fine, said = after.argmax() == own, "must stay ahead"
    return None if fine else f"{labels[at]} {said}: {before[at]:.2f} → {after[at]:.2f}"


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    cases = sum(outcome.cases for outcome in outcomes)
    failures = sum(len(outcome.failures) for outcome in outcomes)
    return {"cases": cases, "failures": failures, "pass_rate": 1 - failures / cases}


def _cells(outcomes: Sequence[Outcome]) -> tuple[str, str, str]:
    figures = _figures(outcomes)
    return str(figures["cases"]), str(figures["failures"]), f"{figures['pass_rate']:.1%}"


def _replaced(sentence: str, words: Mapping[str, str]) -> str:
    """Whole words of any case by others; one that begins with a capital by one that does, too."""
    pattern = "|".join(rf"\b{re.escape(word)}\b" for word in sorted(words, key=len, reverse=True))
    folded = {word.lower(): other for word, other in words.items()}

    def other(match: re.Match[str]) -> str:
        new = folded[match[0].lower()]
        return new[:1].upper() + new[1:] if match[0][:1].isupper() else new

    return re.sub(pattern, other, sentence, flags=re.IGNORECASE)
