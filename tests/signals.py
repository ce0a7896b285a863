"""Signals to a process that is starting."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HANGUP = 1 << (signal.SIGHUP - 1)


@contextlib.contextmanager
def hangups(pid: int) -> Iterator[None]:
    """Ask a process to reload, again and again, from when it has begun to read its settings."""
    enough = threading.Event()

    def send() -> None:
        while not enough.wait(0.02):
            if deaf(pid):
                break
        while not enough.wait(0.02):
            os.kill(pid, signal.SIGHUP)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        enough.set()
        sender.join()
        time.sleep(0.05)  # what was sent last is heard


def deaf(pid: int) -> bool:
    """Does the process ignore SIGHUP, or hear it?"""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigIgn", "SigCgt"))]
    return any(mask & HANGUP for mask in masks)
