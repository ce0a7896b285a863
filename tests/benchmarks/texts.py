"""The texts that are sent: real ones from a file, or made of our own sentences by a fixed rule."""

import csv
import gzip
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from training.data.templates import read_templates

SENTENCES = Path(__file__).parents[2] / "training" / "configs"
LANGUAGES = ("en", "pt")
LONGEST_WORDS = 512


def reviews(generator: np.random.Generator, count: int) -> list[int]:
    """Words in each text, as in short reviews: 3 to 120, a mean of about 20, with a long tail."""
    sizes: list[int] = np.minimum(3 + generator.exponential(18, count).astype(int), 120).tolist()
    return sizes


def wide(generator: np.random.Generator, count: int) -> list[int]:
    """Words in each text: 1 to 512, every length of the same order equally often."""
    exponents = generator.uniform(0, np.log(LONGEST_WORDS + 1), count)
    sizes: list[int] = np.clip(np.exp(exponents).astype(int), 1, LONGEST_WORDS).tolist()
    return sizes


LENGTHS: dict[str, Callable[[np.random.Generator, int], list[int]]] = {
    "reviews": reviews,
    "wide": wide,
}


def made(count: int, *, lengths: str = "reviews", seed: int = 0) -> list[str]:
    """Texts of everyday sentences, every other one in Portuguese, the same for the same seed.

    Each has as many words as `LENGTHS[lengths]` says; the last sentence ends where it has to.
    """
    generator = np.random.default_rng(seed)
    sizes = LENGTHS[lengths](generator, count)
    sentences = {language: _sentences(language) for language in LANGUAGES}
    texts = []
    for size, language in zip(sizes, itertools.cycle(LANGUAGES), strict=False):
        words: list[str] = []
        while len(words) < size:
            own = sentences[language]
            words += own[generator.integers(len(own))].split()
        texts.append(" ".join(words[:size]))
    return texts


def from_file(path: Path, count: int, *, seed: int = 0) -> list[str]:
    """`count` texts drawn from a file, fewer if it has fewer: the column `text` of a CSV, or lines.

    Either may be gzipped. Raises `ValueError` where there is no such column or no text.
    """
    with opened(path) as file:
        found: Iterator[str] | list[str] = file
        if ".csv" in path.suffixes:
            rows = csv.DictReader(file)
            if "text" not in (rows.fieldnames or ()):
                raise ValueError(f"{path}: has no column text, only {rows.fieldnames}")
            found = (row["text"] or "" for row in rows)
        texts = [text.strip() for text in found if text.strip()]
    if not texts:
        raise ValueError(f"{path}: holds no text")
    order = np.random.default_rng(seed).permutation(len(texts))[:count]
    return [texts[i] for i in order]


def opened(path: Path) -> TextIO:
    """The file for reading as text, gzipped or not."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def chosen(file: Path | None, count: int, *, lengths: str = "reviews", seed: int = 0) -> list[str]:
    """Texts from the file where one is given, else made ones."""
    if file is not None:
        return from_file(file, count, seed=seed)
    return made(count, lengths=lengths, seed=seed)


def _sentences(language: str) -> list[str]:
    content = (SENTENCES / f"everyday-{language}.toml").read_text(encoding="utf-8")
    return [sentence for _, sentence, _ in read_templates(content)]
