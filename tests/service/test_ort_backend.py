import builtins
import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from service import cuda, ort_backend
from service.backend import BackendGone
from service.ort_backend import DeviceError, OrtBackend, choose_provider, cpu_quota
from service.types import Variant


@pytest.fixture(scope="module")
def backend(bundle):
    backend = OrtBackend(bundle, device="cpu", threads=1)
    backend.warm_up()
    return backend


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    """Three texts of 11, 6 and 1 tokens."""
    mask = (np.arange(11) < np.array([[11], [6], [1]])).astype(np.int64)
    return np.random.default_rng(0).integers(3, 300, (3, 11)) * mask, mask


def test_variants_agree_and_hold_no_more_than_their_outputs(backend, batch):
    whole = backend.run(*batch, Variant.FULL)
    for variant in Variant:
        part = backend.run(*batch, variant)
        assert tuple(part) == variant.value
        for name, values in part.items():
            np.testing.assert_allclose(values, whole[name], atol=1e-6)


def test_account_is_complete_and_padding_holds_exactly_nothing(backend, batch, bundle):
    got, (_, mask) = backend.run(*batch, Variant.FULL), batch
    bias = np.array(bundle.manifest.bias, np.float32)
    for view in ("evidence", "contributions"):
        assert np.abs(got[view].sum(axis=1) + bias - got["logits"]).max() <= 1e-5
        assert (got[view][mask == 0] == 0).all()
    assert np.abs(got["attentions"].sum(axis=-1) - 1).max() <= 1e-5
    assert (got["attentions"][1, ..., 6:] == 0).all()
    assert (got["pooling_attention"][2, :, 1:] == 0).all()


def test_a_text_answers_the_same_alone_and_in_company(backend, batch):
    input_ids, mask = batch
    company = backend.run(input_ids, mask, Variant.EXPLAIN)
    alone = backend.run(input_ids[1:2, :6], mask[1:2, :6], Variant.EXPLAIN)
    assert np.abs(alone["logits"][0] - company["logits"][1]).max() <= 1e-5
    assert np.abs(alone["contributions"][0] - company["contributions"][1, :6]).max() <= 1e-5


def test_probabilities_are_calibrated_inside_the_graph(backend, batch, bundle):
    got = backend.run(*batch, Variant.PLAIN)
    exponent = np.exp(got["logits"] / bundle.manifest.temperature)
    expected = exponent / exponent.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got["probabilities"], expected, atol=1e-6)


def test_a_device_that_is_not_there_is_refused_with_what_is():
    with pytest.raises(DeviceError, match=r"^this ONNX Runtime has only .*CPU"):
        choose_provider("cuda")
    assert choose_provider("auto") == "CPUExecutionProvider"


@pytest.mark.parametrize("graphs", [True, False])
def test_a_gpu_is_told_how_much_of_it_a_session_may_take(monkeypatch, bundle, graphs):
    class Asked(Exception):
        """Of a session, with these providers."""

    def ask(part: bytes, _: object, providers: object) -> None:
        raise Asked(len(part), providers)

    monkeypatch.setattr(ort_backend, "choose_provider", lambda _: ort_backend.CUDA)
    monkeypatch.setattr(onnxruntime, "InferenceSession", ask)
    with pytest.raises(Asked) as asked:
        OrtBackend(bundle, device="cuda", max_batch_tokens=500, graphs=graphs)
    weights, providers = asked.value.args
    config = bundle.manifest.config
    assert providers == [(ort_backend.CUDA, cuda.options(config, weights, 1024, recorded=graphs))]


@pytest.mark.parametrize(("graphs", "told"), [(True, "--no-cuda-graphs"), (False, "^no kernel$")])
def test_a_bundle_that_cannot_be_recorded_is_refused_with_the_way_out(
    monkeypatch, bundle, graphs, told
):
    def fail(*_: object, **__: object) -> None:
        raise Fail("no kernel")

    monkeypatch.setattr(ort_backend, "choose_provider", lambda _: ort_backend.CUDA)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises((DeviceError, Fail), match=told) as refused:
        OrtBackend(bundle, device="cuda", graphs=graphs)
    assert isinstance(refused.value, DeviceError) is graphs


def test_a_cpu_records_nothing_and_computes_on_the_thread_that_asks(bundle, batch, monkeypatch):
    backend = OrtBackend(bundle, device="cpu", threads=1, graphs=True)
    backend.warm_up()
    monkeypatch.setattr(ort_backend, "launcher", lambda: pytest.fail("there is nothing to launch"))
    backend.run(*batch, Variant.PLAIN)


def test_a_device_that_answers_otherwise_than_a_cpu_does_not_start(bundle):
    other = copy.deepcopy(bundle.graph)
    weight = next(one for one in other.graph.initializer if one.name == "network.head.bias")
    values = numpy_helper.to_array(weight) + np.float32([0.01, 0.0])
    weight.CopyFrom(numpy_helper.from_array(values.astype(np.float32), weight.name))
    backend = OrtBackend(bundle, device="cpu", threads=1)
    backend._unproven = bundle
    backend.warm_up()
    backend._unproven = dataclasses.replace(bundle, graph=other)
    with pytest.raises(
        DeviceError, match=r"answers otherwise than a CPU: logits by 0\.01, .*0\.001"
    ):
        backend.warm_up()


def test_two_runtimes_over_each_other_are_refused(monkeypatch):
    monkeypatch.setattr(ort_backend, "_installed", lambda package: True)
    with pytest.raises(DeviceError, match="onnxruntime and onnxruntime-gpu are both installed"):
        choose_provider("auto")


def test_auto_takes_cuda_where_it_is_and_never_falls_back(monkeypatch, bundle):
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    assert choose_provider("auto") == "CUDAExecutionProvider"
    assert choose_provider("cpu") == "CPUExecutionProvider"
    with pytest.raises((DeviceError, ValueError)), pytest.warns(UserWarning):
        OrtBackend(bundle, device="cuda")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": ""}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000"}, 8),
    ],
)
def test_threads_follow_the_quota_of_the_container(monkeypatch, files, expected):
    def read_text(path: Path) -> str:
        name = str(path).removeprefix("/sys/fs/cgroup/")
        if name in files:
            return files[name]
        raise builtins.FileNotFoundError(path)

    monkeypatch.setattr(ort_backend.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(Path, "read_text", read_text)
    assert cpu_quota() == expected


@pytest.mark.parametrize(
    "code",
    [
        "from service.ort_backend import OrtBackend; OrtBackend(bundle)",
        "from training.evaluation.metrics import Graph; list(Graph(bundle).run(rows, ['logits']))",
    ],
)
def test_the_runtime_keeps_no_record_of_it_and_calls_nobody(tiny_bundle, tmp_path, code):
    """It would write to the home directory, and look up where to send it."""
    script = (
        f"{code.split(';')[0]}; from pathlib import Path; import socket, sys\n"
        "from model.bundle import read_bundle; bundle = read_bundle(Path(sys.argv[1]))\n"
        "from training.data.batches import Dataset\n"
        "rows = Dataset.encode(bundle.tokenizer.encode_batch(['a film'], offsets=False))\n"
        f"{code.split('; ')[1]}\n"
    )
    environment = {
        key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"
    }
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", script, str(tiny_bundle)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*onnxruntime*"))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("CUDA failure 719: unspecified launch failure", BackendGone),
        ("CUDA error cudaErrorIllegalAddress", BackendGone),
        ("Non-zero status code returned while running MatMul", RuntimeError),
    ],
)
def test_a_lost_device_is_told_from_a_batch_that_fails(backend, batch, monkeypatch, said, kind):
    def fail(*_: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(backend, "_values", fail)
    with pytest.raises(RuntimeError) as failed:
        backend.run(*batch, Variant.PLAIN)
    assert type(failed.value) is kind
