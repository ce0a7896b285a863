"""What is counted, under which name."""

import re
from dataclasses import replace

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics
from service.types import ModelDescription
from tests.fakes import FakeEngine


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"realce_{name}", labels)


def model(version: str) -> ModelDescription:
    return replace(FakeEngine.description, version=version)


def test_calls_are_counted_by_method_and_status(metrics):
    metrics.call("Classify", "OK", 0.003)
    metrics.call("Classify", "OK", 0.2)
    metrics.call("Classify", "INVALID_ARGUMENT", 0.001)
    assert value(metrics, "calls_total", method="Classify", code="OK") == 2
    assert value(metrics, "calls_total", method="Classify", code="INVALID_ARGUMENT") == 1
    assert value(metrics, "call_seconds_sum", method="Classify") == pytest.approx(0.204)
    assert value(metrics, "call_seconds_bucket", method="Classify", le="0.005") == 2


@pytest.mark.parametrize(
    ("batches", "rows", "tokens", "padding"),
    [
        ([[7]], 1, 7, 0),
        ([[3, 5, 1]], 3, 9, 6),
        ([[4, 4], [2, 8]], 4, 18, 6),
    ],
)
def test_a_batch_is_its_rows_its_tokens_and_what_they_are_padded_by(
    metrics, batches, rows, tokens, padding
):
    for lengths in batches:
        metrics.batch(lengths)
    assert value(metrics, "batch_rows_count") == len(batches)
    assert value(metrics, "batch_rows_sum") == rows
    assert value(metrics, "tokens_total") == tokens
    assert value(metrics, "padding_tokens_total") == padding


def test_one_bundle_is_in_service_at_a_time_or_none(metrics):
    def serving() -> dict[str, float]:
        (family,) = [f for f in metrics.registry.collect() if f.name == "realce_serving"]
        return {sample.labels["version"]: sample.value for sample in family.samples}

    metrics.serve(None)
    assert serving() == {}
    metrics.serve(model("1"))
    metrics.serve(model("1"))
    assert serving() == {"1": 1}
    metrics.serve(model("2"))
    assert serving() == {"1": 0, "2": 1}
    metrics.serve(None)
    assert serving() == {"1": 0, "2": 0}


def test_names_are_ours_and_all_is_said_what_it_is(metrics):
    families = list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))
    assert len(families) == 14
    for family in families:
        assert re.fullmatch(r"realce_[a-z_]+", family.name)
        assert family.documentation
        assert family.type in {"counter", "gauge", "histogram"}
