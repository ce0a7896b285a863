"""A server as a process: started, watched from outside, stopped, and never left behind."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import psutil

ROOT = Path(__file__).parents[2]
SERVING = "serving"  # the event of our own; peers name none
START_S, STOP_S = 60.0, 30.0
POLL_S = 0.002
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class ProcessFailed(RuntimeError):
    """A process did not start or did not do what it was to do; the message has its last words."""


def launch(
    command: Sequence[str], cpus: Collection[int] | None = None, **streams: Any
) -> "subprocess.Popen[str]":
    """Start a command in a process group of its own, which dies with this process, on these CPUs
    or on those of this process.

    Settings of the service in this process's environment are not passed on.
    """
    environment = {k: v for k, v in os.environ.items() if not k.upper().startswith("REALCE_")}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        start_new_session=True,
        preexec_fn=partial(_begin, cpus),
        **streams,
    )


def end_group(process: "subprocess.Popen[str]", patience_s: float) -> bool:
    """SIGTERM, wait, then SIGKILL for all that is left of the group; True if it stopped by itself.

    The group was made by `launch`, so that nothing else can be in it.
    """
    process.terminate()
    try:
        process.wait(patience_s)
        stopped = True
    except subprocess.TimeoutExpired:
        stopped = False
    with contextlib.suppress(ProcessLookupError):  # where nothing is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return stopped


class Process:
    """A server's process, from its start to its stop; a context manager.

    It is to write a JSON object with its `address` to stderr once it serves, as `realce serve`
    does. `ready_s` is how long that took, from before it was started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.address = ""
        self.ready_s = 0.0
        # A file: nobody has to read along, which would cost CPU while CPU is measured.
        self._log = tempfile.NamedTemporaryFile("w+", prefix="realce-benchmark-")  # noqa: SIM115
        started = time.monotonic()
        self._process = launch(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._log
        )
        self._watched = psutil.Process(self._process.pid)
        try:
            self.address = self._await_address(started + START_S)
        except BaseException:
            self.stop()
            raise
        self.ready_s = time.monotonic() - started

    def cpu_s(self) -> float:
        """CPU-seconds, user and system, of its whole tree since it started."""
        total = 0.0
        for one in self._tree():
            try:
                times = one.cpu_times()
            except psutil.NoSuchProcess:
                continue  # its parent has them once it has waited for it
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def rss(self) -> int:
        """Bytes of memory resident now, of its whole tree."""
        total = 0
        for one in self._tree():
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of its log with this `event`."""
        return [line for line in self._lines() if line.get("event") == name]

    def ask(
        self, name: str, number: signal.Signals = signal.SIGUSR1, patience_s: float = 5.0
    ) -> dict[str, Any]:
        """Send a signal and wait for one more line with this `event`."""
        before = len(self.events(name))
        self._process.send_signal(number)
        end = time.monotonic() + patience_s
        while len(found := self.events(name)) == before:
            if time.monotonic() > end or self._process.poll() is not None:
                raise self._failed(f"did not answer {number.name} with a line {name!r}")
            time.sleep(POLL_S)
        return found[-1]

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what is left of its group. Raises where that was needed."""
        try:
            if not end_group(self._process, STOP_S):
                raise self._failed(f"did not stop within {STOP_S:.0f} s of SIGTERM")
        finally:
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _await_address(self, until: float) -> str:
        while time.monotonic() < until:
            for line in self._lines():
                if "address" in line and line.get("event", SERVING) == SERVING:
                    return str(line["address"])
            if self._process.poll() is not None:
                raise self._failed(f"ended with status {self._process.returncode} at start")
            time.sleep(POLL_S)
        raise self._failed(f"did not serve within {START_S:.0f} s")

    def _lines(self) -> Iterator[dict[str, Any]]:
        with Path(self._log.name).open(encoding="utf-8", errors="replace") as file:
            for text in file:
                if text.startswith("{") and text.endswith("}\n"):
                    yield json.loads(text)

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._watched, *self._watched.children(recursive=True)]
        except psutil.NoSuchProcess as error:
            raise self._failed("is gone") from error

    def _failed(self, what: str) -> ProcessFailed:
        words = Path(self._log.name).read_text(encoding="utf-8", errors="replace")[-2000:]
        return ProcessFailed(f"{' '.join(self.command)}: {what}\n{words}")


def _begin(cpus: Collection[int] | None) -> None:
    """In the new process, before its command."""
    if cpus is not None:
        os.sched_setaffinity(0, cpus)
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
