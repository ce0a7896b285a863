"""One thread that launches what a GPU has recorded."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class Launcher:
    """Runs what others ask for, one after the other.

    CUDA graphs belong to the thread that recorded them, and what any other does on the device
    meanwhile spoils a recording. The thread is a daemon, as a device may hang; who waits for it
    then waits for good.
    """

    def __init__(self) -> None:
        self._asked: SimpleQueue[tuple[Future[object], Callable[[], object]]] = SimpleQueue()
        threading.Thread(target=self._serve, name="launcher", daemon=True).start()

    def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, once the thread has come to it."""
        future: Future[T] = Future()
        self._asked.put((future, work))  # type: ignore[arg-type]
        try:
            return future.result()
        finally:
            del future  # an error knows this frame, and would keep itself

    def _serve(self) -> None:
        while True:
            future, work = self._asked.get()
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            del future, work  # what they hold is not kept until there is more to do
