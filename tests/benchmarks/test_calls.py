"""What a run of calls amounts to."""

import math

import pytest

from tests.benchmarks.calls import Call, read_trace, summary, together, write_trace


def call(at: float, seconds: float = 0.1, code: str = "OK", **more: object) -> Call:
    return Call(at, at, seconds, code, **{"texts": 1, **more})


def test_rates_count_from_the_first_answer_to_the_last_call():
    one_a_second = [call(float(at), 0.5, texts=4) for at in range(11)]
    assert summary(one_a_second)["texts_per_s"] == pytest.approx(36 / 9.5)
    assert summary(one_a_second)["offered_per_s"] == pytest.approx(40 / 9.5)


def test_a_run_of_one_call_each_counts_whole():
    assert summary([call(0.0, 2.0, texts=4), call(0.1, 3.9, texts=4)])["texts_per_s"] == 2.0


def test_goodput_counts_only_answers_within_the_deadline():
    calls = [call(at / 10, 2.0 if at % 2 else 0.5) for at in range(101)]
    figures = summary(calls, deadline_s=1.0)
    # From 1 s to 10 s: those sent every 0.2 s from 0.6 s to 9.4 s, and the first at 0.5 s is out.
    assert figures["goodput_per_s"] == pytest.approx(45 / 9)
    assert figures["texts_per_s"] > figures["goodput_per_s"]
    assert summary(calls)["goodput_per_s"] == summary(calls)["texts_per_s"]


def test_a_refusal_is_what_the_server_itself_told():
    calls = [
        call(0.0),
        call(1.0, 0.002, "RESOURCE_EXHAUSTED", told=True),
        call(1.0, 0.004, "DEADLINE_EXCEEDED", told=True),
        call(1.0, 1.0, "DEADLINE_EXCEEDED"),
        call(1.0, 0.2, "CANCELLED"),
        call(1.0, 0.3, "INVALID_ARGUMENT", told=True),
    ]
    figures = summary(calls, deadline_s=1.0)
    assert figures["refusals"] == 2
    assert figures["unheard"] == 1
    assert figures["refusal_p99_ms"] == pytest.approx(4, abs=0.1)
    assert figures["codes"]["DEADLINE_EXCEEDED"] == 2
    assert figures["p99_ms"] == pytest.approx(100)
    assert figures["texts_ok"] == 1


def test_long_calls_are_those_of_the_largest_requests():
    calls = [call(float(at), 0.1 if at < 95 else 0.7, request_bytes=at) for at in range(100)]
    assert summary(calls)["long_p99_ms"] == pytest.approx(700)
    assert summary(calls)["p50_ms"] == pytest.approx(100)


def test_no_calls_are_no_figures():
    figures = summary([])
    assert figures["calls"] == 0
    assert math.isnan(figures["p50_ms"])
    assert math.isnan(figures["texts_per_s"])


def test_a_trace_is_read_as_it_was_written(tmp_path):
    calls = [call(0.0), call(1.5, 0.2, "CANCELLED", told=False, request_bytes=7, answer_bytes=9)]
    write_trace(tmp_path / "calls.npz", calls)
    assert list(read_trace(tmp_path / "calls.npz")) == calls


def test_loads_side_by_side_are_one():
    one = summary([call(0.0, texts=4), call(1.0, 0.5, texts=4)])
    other = summary([call(2.0, texts=4), call(3.0, 0.1, "UNAVAILABLE", texts=4)])
    whole = together([one, other])
    assert whole.keys() == one.keys()
    assert whole["began"] == 0.0
    assert whole["codes"] == {"OK": 3, "UNAVAILABLE": 1}
    assert (whole["texts"], whole["texts_ok"]) == (16, 12)
    assert whole["p99_ms"] == max(one["p99_ms"], other["p99_ms"])
    assert whole["offered_per_s"] == one["offered_per_s"] + other["offered_per_s"]
    assert together([one]) == one
