"""What scenarios make of what they measured."""

import importlib
import math

import numpy as np
import onnxruntime
import pytest

from model.bundle import read_bundle
from model.graph import extract
from service.ort_backend import OrtBackend
from service.settings import EMBEDDED_BUNDLE
from service.types import Variant
from tests.benchmarks.__main__ import SCENARIOS, main
from tests.benchmarks.bench import as_flags
from tests.benchmarks.calls import Call
from tests.benchmarks.process import ProcessFailed
from tests.benchmarks.report import COLUMNS
from tests.benchmarks.scenarios.coldstart import costs
from tests.benchmarks.scenarios.overload import judge
from tests.benchmarks.scenarios.parity import compare
from tests.benchmarks.scenarios.precision import labelled, precisions, widened
from tests.benchmarks.server import padding


def probes(first: float, last: float, seconds: float, code: str = "OK") -> list[Call]:
    count = round((last - first) * 20)
    return [
        Call(at, at, seconds, code, 1, told=code != "OK")
        for at in (first + i / 20 for i in range(count))
    ]


def test_probes_tell_when_all_is_well_again():
    calls = probes(0, 2, 0.01) + probes(2, 5, 0.003, "RESOURCE_EXHAUSTED")
    calls += probes(5, 5.5, 0.4) + probes(5.5, 8, 0.01)
    figures = judge(calls, began=2.0, ended=5.0)
    assert figures["recovery_s"] == pytest.approx(0.5)
    assert figures["probe_refusal_p99_ms"] == pytest.approx(3)
    assert figures["probe_goodput_per_s"] == pytest.approx(1 / 3)  # the one sent as it ended


def test_without_calm_before_there_is_no_recovery():
    assert math.isnan(judge(probes(2, 8, 0.01), began=2.0, ended=5.0)["recovery_s"])


def test_import_costs_add_up_by_package():
    log = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       120 |        120 |     numpy.core\n"
        "import time:        30 |        150 |   numpy\n"
        "import time:         5 |          5 | service.server\n"
    )
    assert costs(log) == {"numpy": 150, "service": 5}


def test_padding_is_a_share_of_what_was_computed():
    before, after = {"tokens": 5, "padded_tokens": 10}, {"tokens": 50, "padded_tokens": 60}
    assert padding(before, after) == {"padding_share": pytest.approx(0.1)}
    assert math.isnan(padding(after, after)["padding_share"])


def test_every_scenario_can_be_run():
    for name in SCENARIOS:
        scenario = importlib.import_module(f"tests.benchmarks.scenarios.{name}")
        assert set(scenario.SHOWN) <= set(COLUMNS)
        assert callable(scenario.run)


def test_differences_between_devices_are_found(tiny_bundle, monkeypatch):
    assert set(compare(tiny_bundle, "cpu", seed=0).values()) == {0.0}
    run, first = OrtBackend.run, []

    def run_otherwise(backend, ids, mask, variant):
        outputs = run(backend, ids, mask, variant)
        first[:] = first or [backend]
        if backend is not first[0] and "evidence" in outputs:
            outputs["evidence"] = outputs["evidence"] - 0.25
        return outputs

    monkeypatch.setattr(OrtBackend, "run", run_otherwise)
    gaps = compare(tiny_bundle, "cpu", seed=0)
    assert gaps["evidence"] == pytest.approx(0.25, abs=1e-6)
    assert gaps["logits"] == 0.0


def test_fewer_bits_answer_about_the_same():
    embedded = read_bundle(EMBEDDED_BUNDLE)
    graphs = precisions(embedded.graph)
    assert list(graphs) == ["float16", "int8"]
    full = widened(embedded.graph)
    assert list(precisions(full)) == ["float32", "float16", "int8"]
    ids = np.array([[5, 6, 7, 8], [9, 10, 0, 0]])
    feeds = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
    exact = _logits(full, feeds)
    np.testing.assert_allclose(_logits(graphs["float16"], feeds), exact, atol=1e-5)
    rough = _logits(graphs["int8"], feeds)
    assert 0 < np.abs(rough - exact).max() < 0.2
    assert graphs["int8"].ByteSize() < 0.7 * extract(full, Variant.PLAIN.value).ByteSize() / 2


def _logits(graph, feeds):
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return session.run(["logits"], feeds)[0]


def test_labels_are_classes_by_name_or_number(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nbom,positive\nruim,0\n", encoding="utf-8")
    texts, classes = labelled(path, ["negative", "positive"], 10, seed=0)
    assert dict(zip(texts, classes.tolist(), strict=True)) == {"bom": 1, "ruim": 0}
    path.write_text("text,label\nbom,great\n", encoding="utf-8")
    with pytest.raises(ProcessFailed, match="label 'great' is none of"):
        labelled(path, ["negative", "positive"], 10, seed=0)


def test_a_device_that_is_not_there_is_refused_at_once(capsys, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(SystemExit):
        main(["unary", "--device", "cuda"])
    assert "device=cuda: this ONNX Runtime has only CPUExecutionProvider" in capsys.readouterr().err


def test_a_folder_that_is_no_bundle_is_refused_at_once(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["precision", "--bundles", str(tmp_path / "none")])
    assert f"--bundles {tmp_path / 'none'}: no such folder" in capsys.readouterr().err


def test_flags_of_values():
    values = {"per_call": 8, "half": True, "mix": False, "deadline": None, "views": ["a", "b"]}
    assert as_flags(values) == ["--per-call", "8", "--half", "--views", "a", "b"]
