"""The raw loop's books, with a model and a clock made up."""

import itertools

import pytest

from tests.benchmarks import raw


class Clock:
    """Time that passes only where it is said to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("pause", "texts"), [(0.0, 11), (0.75, 4)])
def test_pauses_between_texts_are_not_counted(monkeypatch, pause, texts):
    clock = Clock()
    monkeypatch.setattr(raw, "time", clock)

    class Slow:
        def tokenize(self, texts):
            return texts

        def compute(self, rows):
            clock.now += 0.25

    taken = raw.one_by_one(Slow(), itertools.cycle(["bom", "ruim"]), until=2.5, pause=pause)
    assert taken == [0.25] * texts
