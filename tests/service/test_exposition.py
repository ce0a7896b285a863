"""Metrics as Prometheus reads them."""

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from socketserver import BaseServer

import pytest

from service.exposition import Exposition, _Caller, registry_of
from service.metrics import Metrics
from service.settings import SHARED

COUNT = """
import sys
from service.metrics import Metrics
metrics = Metrics()
metrics.call("Classify", "OK", float(sys.argv[1]))
metrics.batch([3, 5])
metrics.queued_tokens.set(7)
print(flush=True)
sys.stdin.read()
"""


def read(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        return answer.read().decode()


def test_what_is_counted_is_shown_until_it_is_closed():
    metrics = Metrics()
    exposition = Exposition("127.0.0.1:0", metrics.registry)
    metrics.call("Classify", "OK", 0.25)
    assert exposition.url == f"http://127.0.0.1:{exposition.port}/metrics"
    assert 'realce_calls_total{code="OK",method="Classify"} 1.0\n' in read(exposition.url)
    metrics.call("Classify", "OK", 0.25)
    assert 'realce_calls_total{code="OK",method="Classify"} 2.0\n' in read(exposition.url)
    exposition.close()
    with pytest.raises(OSError, match="refused"):
        read(exposition.url)


def test_it_listens_on_ipv6():
    exposition = Exposition("[::1]:0", Metrics().registry)
    assert exposition.url == f"http://[::1]:{exposition.port}/metrics"
    assert "realce_tokens_total 0.0" in read(exposition.url)
    exposition.close()


def test_a_port_in_use_is_an_error():
    exposition = Exposition("127.0.0.1:0", Metrics().registry)
    with pytest.raises(OSError, match="in use"):
        Exposition(f"127.0.0.1:{exposition.port}", Metrics().registry)
    exposition.close()


@pytest.mark.parametrize("said", [b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nHost:"])
def test_who_says_no_more_is_hung_up_on_and_nothing_is_written_of_it(monkeypatch, capfd, said):
    monkeypatch.setattr(_Caller, "timeout", 0.05)
    exposition = Exposition("127.0.0.1:0", Metrics().registry)
    with socket.create_connection(("127.0.0.1", exposition.port), timeout=20) as caller:
        caller.sendall(said)
        assert not caller.recv(1)
    exposition.close()
    assert capfd.readouterr().err == ""


def test_it_looks_often_whether_to_end(monkeypatch):
    polls, serve = [], BaseServer.serve_forever

    def noted(server: BaseServer, poll_s: float = 0.5) -> None:
        polls.append(poll_s)
        serve(server, poll_s)

    monkeypatch.setattr(BaseServer, "serve_forever", noted)
    Exposition("127.0.0.1:0", Metrics().registry).close()
    assert [poll_s <= 0.1 for poll_s in polls] == [True]


def test_processes_count_together(tmp_path: Path):
    environment = os.environ | {SHARED: str(tmp_path)}
    counting = [
        subprocess.Popen(
            [sys.executable, "-c", COUNT, seconds],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for seconds in ("0.25", "0.5")
    ]
    for process in counting:
        assert process.stdout is not None
        process.stdout.readline()
    counted = registry_of(str(tmp_path)).get_sample_value
    assert counted("realce_calls_total", {"method": "Classify", "code": "OK"}) == 2
    assert counted("realce_call_seconds_sum", {"method": "Classify"}) == 0.75
    assert counted("realce_call_seconds_bucket", {"method": "Classify", "le": "0.25"}) == 1
    assert counted("realce_batch_rows_sum") == 4
    assert counted("realce_padding_tokens_total") == 4
    assert counted("realce_queued_tokens") == 14
    for process in counting:
        process.communicate()
