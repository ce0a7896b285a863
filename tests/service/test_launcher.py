import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.launcher import Launcher


@pytest.fixture(scope="module")
def launcher():
    return Launcher()


def test_all_work_is_done_on_one_thread_that_keeps_no_process(launcher):
    with ThreadPoolExecutor(4) as pool:
        threads = set(pool.map(launcher.run, [threading.current_thread] * 20))
    (thread,) = threads
    assert thread is not threading.current_thread()
    assert thread.daemon


def test_work_returns_or_raises_to_who_asked_and_the_next_is_done(launcher):
    with pytest.raises(ZeroDivisionError):
        launcher.run(lambda: 1 / 0)
    assert launcher.run(lambda: "done") == "done"


def test_nothing_that_is_done_is_kept(launcher):
    class Work:
        def __call__(self) -> None:
            pass

    work, gone = Work(), threading.Event()
    weakref.finalize(work, gone.set)
    launcher.run(work)
    del work
    assert gone.wait(20)


def test_not_even_what_failed_is_kept(launcher):
    class Work:
        def __call__(self) -> None:
            raise ZeroDivisionError

    work = Work()
    kept = weakref.ref(work)
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError):
            launcher.run(work)
        del work
        launcher.run(lambda: None)  # the thread has let go of the first
        assert kept() is None
    finally:
        gc.enable()
