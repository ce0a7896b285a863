"""Signals to stop that are heard where it is safe to."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def deferred() -> Iterator[list[int]]:
    """Meanwhile SIGINT and SIGTERM are only put into the list that this yields, and raise
    `KeyboardInterrupt` at the end of it, unless that is an error; asked for again, at once."""
    heard: list[int] = []

    def hear(number: int, _: FrameType | None) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)

    before = {}
    with contextlib.suppress(ValueError):  # of a thread that is not the first
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, hear)
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if heard:
        raise KeyboardInterrupt
