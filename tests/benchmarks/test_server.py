"""The measured server counts what reaches its backend, and the bench measures it."""

import argparse
import os
import signal
import subprocess
import sys

import pytest

from tests.benchmarks.bench import Bench, halves
from tests.benchmarks.process import launch
from tests.benchmarks.server import COUNTED, COUNTERS, LEAKED_BYTES

# The kernel tells CPU time in hundredths of a second; these take tens of them, in any backend.
CALLS = 400


@pytest.fixture
def bench(tiny_bundle) -> Bench:
    options = argparse.Namespace(
        rounds=1,
        seconds=20.0,
        texts=None,
        count=50,
        seed=0,
        serve="",
        channels=1,
        device="cpu",
        apart=False,
    )
    return Bench(options, {"tiny": tiny_bundle})


@pytest.mark.parametrize("backend", ["null", "leaking"])
def test_it_counts_what_is_computed(bench: Bench, backend: str):
    with bench.measured(bench.first[1], backend) as server:
        before = server.ask(COUNTED)
        figures = bench.measure(server, "closed", callers=2, per_call=3, most=CALLS)
        after = server.ask(COUNTED)
        gained = {name: after[name] - before[name] for name in COUNTERS}
    assert figures["texts_ok"] == gained["rows"] == gained["engine_answered"] >= 3 * CALLS
    assert 0 < gained["tokens"] <= gained["padded_tokens"]
    assert figures["cpu_s_per_1000"] > 0


def test_a_leak_is_seen_in_its_memory(bench: Bench):
    with bench.measured(bench.first[1], "leaking") as server:
        bench.measure(server, "closed", callers=2, per_call=3, most=CALLS)  # pools and caches fill
        settled = server.rss()
        # Far more than what the allocator happens to give back meanwhile, a few megabytes.
        figures = bench.measure(server, "closed", callers=2, per_call=3, most=10 * CALLS)
        assert server.rss() - settled > LEAKED_BYTES * figures["texts_ok"] / 2


def test_its_null_answers_have_every_view(bench: Bench):
    with bench.measured(bench.first[1], "null") as server:
        figures = bench.measure(server, "closed", mix=True, callers=2, most=40)
        streamed = bench.measure(server, "stream", per_call=8, seconds=0.5)
    assert {name for name in figures if name.startswith("calls_")} == {
        "calls_ok",
        "calls_invalid_argument",
    }
    assert streamed["calls_ok"] == streamed["calls"] > 0


def test_it_reloads_under_load_and_no_call_fails(bench: Bench):
    with (
        bench.measured(bench.first[1], "hoarding") as server,
        bench.load(server, "closed", callers=2, mix=True) as load,
    ):
        load.begin()
        for _ in range(3):
            assert server.ask("reloaded", signal.SIGHUP, 20)["bundle"] == "tiny 1"
        summary = load.finish(now=True)
    assert set(summary["codes"]) == {"OK", "INVALID_ARGUMENT"}
    assert summary["calls"] > 10


@pytest.mark.parametrize(
    ("cpus", "expected"), [({0, 1}, ([0], [1])), ({2, 5, 7}, ([2, 5], [7])), ({3}, ([3], []))]
)
def test_cpus_are_halved(cpus, expected):
    assert halves(cpus) == expected


def test_a_process_is_kept_to_its_cpus():
    one = min(os.sched_getaffinity(0))
    asked = [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"]
    process = launch(asked, [one], stdout=subprocess.PIPE)
    assert process.communicate(timeout=30)[0] == f"{{{one}}}\n"
