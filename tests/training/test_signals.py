import signal
import threading
from collections.abc import Iterator

import pytest

from training.signals import deferred

INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.fixture(autouse=True)
def deaf() -> Iterator[None]:
    """What is not deferred is heard by nobody."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (INT, TERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def work(asked: list[int], told: list[list[int]]) -> None:
    """Be asked to stop now and again, and tell each time what has been heard by then."""
    with deferred() as heard:
        for number in asked:
            signal.raise_signal(number)
            told.append([*heard])


@pytest.mark.parametrize(
    ("asked", "told"),
    [([INT], [[INT]]), ([TERM], [[TERM]]), ([TERM, INT], [[TERM]]), ([INT, INT, INT], [[INT]])],
)
def test_who_asks_to_stop_is_heard_at_the_end_and_asking_again_at_once(asked, told):
    heard: list[list[int]] = []
    with pytest.raises(KeyboardInterrupt):
        work(asked, heard)
    assert heard == told
    assert {signal.getsignal(number) for number in (INT, TERM)} == {signal.SIG_IGN}


def test_who_is_not_asked_goes_on_on_any_thread():
    done: list[None] = []
    thread = threading.Thread(target=lambda: done.append(work([], [])))
    thread.start()
    thread.join()
    done.append(work([], []))
    assert len(done) == 2
