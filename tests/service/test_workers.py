"""Several processes on one port, as the operator sees them."""

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import workers
from service.client import Classifier
from service.server import StartError
from service.settings import SHARED, Settings, load_settings
from service.workers import reserve, worker_settings
from tests.signals import hangups

REALCE = [sys.executable, "-m", "service", "serve", "--http", "127.0.0.1:0", "--device", "cpu"]
COMMAND = [*REALCE, "--grpc", "127.0.0.1:0"]


class Workers:
    """Workers under their parent, and what they have logged."""

    def __init__(self, process: subprocess.Popen[str], number: int = 2) -> None:
        self.process = process
        self.lines: list[dict] = []
        while sum(line["event"] == "serving" for line in self.lines) < number:
            assert process.stderr is not None
            self.lines.append(json.loads(process.stderr.readline()))

    @property
    def pids(self) -> list[int]:
        return next(line["pids"] for line in self.lines if line["event"] == "workers")

    @property
    def address(self) -> str:
        (address,) = self._told("address")  # one and the same
        return address

    @property
    def metrics(self) -> str:
        (url,) = self._told("metrics") - {None}  # the parent's
        return url

    def _told(self, name: str) -> set[str | None]:
        """By parent and workers as they begin; one may have reloaded before another has."""
        return {line[name] for line in self.lines if line["event"] in ("workers", "serving")}


@contextlib.contextmanager
def serving(bundle: Path, number: int) -> Iterator[Workers]:
    command = [*COMMAND, "--workers", str(number), "--grace-s", "5", "--bundle", str(bundle)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Workers(process, number)
        finally:
            process.terminate()


def two_workers(bundle: Path) -> contextlib.AbstractContextManager[Workers]:
    return serving(bundle, 2)


def shown(workers: Workers) -> str:
    with urllib.request.urlopen(workers.metrics) as answer:
        return answer.read().decode()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_workers_share_a_port_and_end_together_at_a_signal(tiny_bundle):
    with two_workers(tiny_bundle) as workers:
        for _ in range(6):  # each a connection of its own
            with Classifier(workers.address) as classifier:
                assert len(classifier.classify(["I loved it", "I hated it"])) == 2
        told = shown(workers)  # of both together
        assert 'realce_calls_total{code="OK",method="Classify"} 6.0\n' in told
        assert "realce_answered_rows_total 12.0\n" in told
        assert re.search(r'^realce_serving\{bundle="tiny",.*\} 2.0$', told, re.MULTILINE)
        second = [*REALCE, "--grpc", workers.address, "--workers", "2"]
        refused = subprocess.run(second, capture_output=True, text=True, timeout=60, check=False)
        assert refused.returncode == 2
        assert f"--grpc={workers.address}: cannot listen there" in refused.stderr
        workers.process.send_signal(signal.SIGTERM)
        assert workers.process.wait(20) == 0
        assert all(gone(pid) for pid in workers.pids)


@pytest.mark.parametrize(
    ("number", "name", "folder"), [(1, SHARED, "gone"), (1, SHARED.lower(), "."), (2, SHARED, ".")]
)
def test_where_others_count_together_is_nothing_to_us(
    tiny_bundle, tmp_path, monkeypatch, number, name, folder
):
    monkeypatch.setenv(name, str(tmp_path / folder))
    with serving(tiny_bundle, number) as workers:
        told = shown(workers)
    found = re.search(r'^realce_serving\{bundle="tiny",.*\} (.*)$', told, re.MULTILINE)
    assert found is not None
    assert float(found[1]) == number
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_ends_however_well_takes_the_others_with_it(tiny_bundle, number):
    with two_workers(tiny_bundle) as workers:
        os.kill(workers.pids[0], number)
        assert workers.process.wait(20) == 1
        assert all(gone(pid) for pid in workers.pids)


def test_workers_end_with_a_parent_that_was_killed(tiny_bundle):
    with two_workers(tiny_bundle) as workers:
        workers.process.kill()
        assert workers.process.stderr is not None
        told = workers.process.stderr.read()  # ends once nobody can write to it any more
        assert [json.loads(line)["event"] for line in told.splitlines()].count("stopped") == 2
        with reserve(Settings(grpc=workers.address)):
            pass


def test_what_no_worker_can_serve_is_told_once_as_it_was_given(tmp_path):
    command = [*COMMAND, "--workers", "2", "--bundle", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    (told,) = done.stderr.splitlines()
    assert re.fullmatch(rf"realce: .*: cannot be read: .* \(--bundle={tmp_path}\)", told)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"transport": "native"}, "transport=native: pygrpc-native is missing"),
        ({"device": "cuda"}, "this ONNX Runtime has only"),
        ({"bundle": Path("/nowhere")}, "/nowhere: no such folder"),
        ({"max_batch_tokens": 1}, "max_batch_tokens=1 cannot hold one text"),
    ],
)
async def test_what_can_be_known_before_is_no_matter_of_a_worker(
    settings, monkeypatch, change, reason
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(workers, "_start", lambda *_: pytest.fail("a worker was started"))
    with pytest.raises(RuntimeError, match=reason):
        await workers.run_workers(settings.model_copy(update={"workers": 2} | change))


@pytest.mark.parametrize(("of_worker", "code"), [(0, 1), (2, 2)])
async def test_workers_end_with_the_code_of_the_one_that_failed(
    settings, monkeypatch, of_worker, code
):
    async def start(*_: object) -> asyncio.subprocess.Process:
        ending = f"raise SystemExit({of_worker})"
        return await asyncio.create_subprocess_exec(sys.executable, "-c", ending)

    monkeypatch.setattr(workers, "_start", start)
    assert await workers.run_workers(settings.model_copy(update={"workers": 2})) == code


def test_a_worker_gets_every_setting_and_its_share_of_the_threads(monkeypatch):
    monkeypatch.setenv("REALCE_MAX_TEXTS", "7")
    monkeypatch.setenv("OTHER", "kept")
    settings = load_settings({"workers": 3, "threads": 8, "reflection": True})
    environment = worker_settings(settings, "127.0.0.1:7").environment()
    assert environment["OTHER"] == "kept"
    monkeypatch.undo()
    for key, value in environment.items():
        if key.startswith("REALCE_"):
            monkeypatch.setenv(key, value)
    worker = load_settings({})
    changed = {"grpc": "127.0.0.1:7", "http": "", "workers": 1, "threads": 2, "reuse_port": True}
    assert worker.model_dump() == settings.model_dump() | changed
    assert (worker.max_texts, worker.reflection) == (7, True)


@pytest.mark.parametrize(
    ("threads", "number", "share"), [(0, 2, 4), (0, 3, 2), (0, 9, 1), (6, 2, 3), (1, 4, 1)]
)
def test_workers_share_what_this_process_may_use(monkeypatch, threads, number, share):
    monkeypatch.setattr(workers, "cpu_quota", lambda: 8)
    settings = Settings(threads=threads, workers=number)
    assert worker_settings(settings, "127.0.0.1:7").threads == share


async def test_a_worker_that_will_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(workers, "LAST_WORD_S", 0.05)
    code = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); "
        "signal.pause()"
    )
    deaf = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    assert deaf.stdout is not None
    await deaf.stdout.readline()
    await workers._end([deaf], 0.0)
    assert deaf.returncode == -signal.SIGKILL


async def test_a_signal_to_a_worker_that_has_just_ended_leaves_its_exit_code(monkeypatch):
    noticed, wait = threading.Event(), os.waitpid
    monkeypatch.setattr(os, "waitpid", lambda *given: noticed.wait() and wait(*given))
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(3)")
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    workers._send([worker], signal.SIGTERM)
    noticed.set()
    assert await worker.wait() == 3


@pytest.mark.parametrize("shared", [0, 1])
def test_a_port_that_a_server_has_just_left_is_free(shared):
    with socket.socket() as before:
        before.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        before.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        before.bind(("127.0.0.1", 0))
        before.listen()
        host, port = before.getsockname()
        with socket.create_connection((host, port)) as caller:
            before.accept()[0].close()  # who hangs up first has the port linger
            assert not caller.recv(1)
    with reserve(Settings(grpc=f"{host}:{port}")) as held:
        assert held == f"{host}:{port}"


def test_a_port_somebody_listens_on_is_refused_even_if_shared():
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        settings = Settings(grpc=f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(StartError, match="cannot listen there"), reserve(settings):
            pass


def test_a_port_is_shared_with_others_where_that_is_asked_for():
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with reserve(Settings(grpc=address, reuse_port=True)) as held:
            assert held == address


@pytest.mark.parametrize("host", ["192.0.2.1", "a" * 64])
def test_a_host_that_is_not_there_is_refused(host: str):
    with (
        pytest.raises(StartError, match=rf"grpc={host}:0: cannot listen there"),
        reserve(Settings(grpc=f"{host}:0")),
    ):
        pass


def test_workers_are_of_the_package_that_was_started(tiny_bundle, tmp_path, monkeypatch):
    other = tmp_path / "service"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('another package')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # of the parent; ours is where it is installed
    with two_workers(tiny_bundle) as workers, Classifier(workers.address) as classifier:
        assert len(classifier.classify(["I loved it"])) == 1


def test_a_signal_to_reload_while_workers_start_ends_nobody(tiny_bundle):
    command = [*COMMAND, "--workers", "2", "--grace-s", "5", "--bundle", str(tiny_bundle)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            with hangups(process.pid):
                workers = Workers(process)
            with Classifier(workers.address) as classifier:
                assert len(classifier.classify(["I loved it"])) == 1
            assert process.poll() is None
        finally:
            process.terminate()


async def test_workers_say_that_their_metrics_need_a_folder(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    settings = Settings(grpc="127.0.0.1:0", http="127.0.0.1:0", workers=2)
    with pytest.raises(StartError, match=r"workers=2: No usable temporary .*, for their metrics; "):
        await workers.run_workers(settings)
