"""Sentences by template: one pattern with slots stands for many sentences."""

import hashlib
import itertools
import random
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST_PER_TEMPLATE = 80  # a template with many slots would otherwise drown the others

_SLOT = re.compile(r"\{(\w+)\}")


def read_templates(content: str) -> Iterator[tuple[str, str, str]]:
    """Place ("positive[3]"), sentence and label of everything that a TOML file of templates says.

    `[slots]` names lists of words; every other section is a label with a list `templates`. Raises
    `ValueError` naming section, template and slot where the file is not of that form.
    """
    sections = tomllib.loads(content)
    slots = sections.pop("slots", {})
    if not isinstance(slots, dict):
        raise ValueError("[slots] must name lists of words")
    for label, section in sections.items():
        templates = section.get("templates") if isinstance(section, dict) else None
        if not isinstance(templates, list) or not all(isinstance(one, str) for one in templates):
            raise ValueError(
                f"[{label}]: templates must be a list of texts (a recipe goes with --config)"
            )
        for number, template in enumerate(templates):
            place = f"{label}[{number}]"
            for sentence in expand(template, slots, place):
                yield place, sentence, label


def expand(template: str, slots: Mapping[str, Any], place: str = "template") -> Sequence[str]:
    """The sentences that a template stands for, at most `MOST_PER_TEMPLATE`, always the same.

    Every sentence begins with a capital, even where a slot's word comes first.
    """
    names = _SLOT.findall(template)
    if set("{}") & set(_SLOT.sub("", template)):
        raise ValueError(f"{place}: a slot is {{name}}, of letters, digits and _: {template!r}")
    for name in names:
        words = slots.get(name)
        if not isinstance(words, list) or not words:
            raise ValueError(f"{place}: slot {{{name}}} has no words; there are {sorted(slots)}")
    distinct = list(dict.fromkeys(names))
    choices = list(itertools.product(*(slots[name] for name in distinct)))
    if len(choices) > MOST_PER_TEMPLATE:
        seed = hashlib.sha256(template.encode()).digest()
        choices = random.Random(seed).sample(choices, MOST_PER_TEMPLATE)
    sentences = (template.format(**dict(zip(distinct, words, strict=True))) for words in choices)
    return [sentence[:1].upper() + sentence[1:] for sentence in sentences]
