import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service.buffers import Buffers, buckets, most_padded, padded
from service.ort_backend import OrtBackend
from service.types import Variant


@pytest.fixture(scope="module")
def plain(bundle):
    return OrtBackend(bundle, device="cpu", threads=1)


@pytest.fixture(scope="module")
def bound(bundle):
    return OrtBackend(bundle, device="cpu", threads=1, bind=True)


def batch(rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng([rows, width])
    lengths = generator.integers(1, width + 1, rows)
    lengths[0] = width
    mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
    return generator.integers(3, 300, (rows, width)) * mask, mask


@pytest.fixture(scope="module")
def recorded(bundle):
    """A CPU records nothing, but inputs lie where a recording would read them."""
    backend = OrtBackend(bundle, device="cpu", threads=1, bind=True, max_batch_tokens=40)
    backend._graphs = True
    backend.warm_up()
    return backend


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize("kind", ["bound", "recorded"])
@pytest.mark.parametrize("shape", [(3, 11), (1, 1), (4, 16), (5, 40), (3, 9), (2, 64)])
def test_a_run_in_buffers_is_a_run(plain, request, kind, variant, shape):
    ids, mask = batch(*shape)
    backends = plain, request.getfixturevalue(kind)
    expected, found = (one.run(ids, mask, variant) for one in backends)
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].shape == values.shape
        np.testing.assert_allclose(found[name], values, atol=1e-6)


def test_answers_stay_when_their_buffers_are_used_again(bound):
    first = bound.run(*batch(3, 11), Variant.EXPLAIN)
    kept = {name: values.copy() for name, values in first.items()}
    bound.run(*batch(4, 13), Variant.EXPLAIN)
    for name, values in kept.items():
        np.testing.assert_array_equal(first[name], values)


def test_batches_in_turn_share_buffers_even_after_one_that_failed(bundle, plain):
    backend = OrtBackend(bundle, device="cpu", threads=1, bind=True)
    ids, mask = batch(3, 11)
    for shape in ((4, 13), (3, 11), (1, 30)):
        backend.run(*batch(*shape), Variant.PLAIN)
    with pytest.raises(RuntimeError, match="out of data bounds"):
        backend.run(np.full_like(ids, 1 << 20), mask, Variant.PLAIN)
    found = backend.run(ids, mask, Variant.PLAIN)
    expected = plain.run(ids, mask, Variant.PLAIN)
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-6)
    (buffers,) = backend._free[Variant.PLAIN]
    assert sorted(buffers._buckets) == [(1, 32), (4, 16)]


def test_buffers_are_few_and_none_is_beyond_what_the_model_reads(bundle, plain):
    most = bundle.manifest.max_tokens
    buffers = Buffers(plain._sessions[Variant.PLAIN], "cpu", most)
    for rows, width in [(1, 1), (1, 16), (3, 17), (4, 30), (1, most), (1, most - 1)]:
        buffers.run(*batch(rows, width))
    assert sorted(buffers._buckets) == [(1, 16), (1, most), (4, 32)]


def test_what_is_recorded_runs_on_one_thread_whoever_asks(recorded, bound, monkeypatch):
    threads = []

    def run(self: Buffers, *_: np.ndarray) -> list[np.ndarray]:
        threads.append(threading.current_thread().name)
        return [np.zeros((1, 1))] * 2

    monkeypatch.setattr(Buffers, "run", run)
    for backend in (recorded, bound):
        backend.run(*batch(1, 1), Variant.PLAIN)
    assert threads == ["launcher", threading.current_thread().name]


def test_every_bucket_as_large_as_padding_can_make_a_batch_is_recorded_before_serving(recorded):
    numbers = []
    for variant in (Variant.PLAIN, Variant.EXPLAIN):
        (buffers,) = recorded._free[variant]
        for shape in ((1, 16), (8, 16), (1, 32), (4, 32), (1, 64), (2, 64)):  # of 2 x 64 tokens
            bucket = buffers._buckets[shape]
            assert set(bucket.inputs) == {"input_ids", "attention_mask"}
            numbers.append(bucket.options.get_run_config_entry("gpu_graph_id"))
    assert len(set(numbers)) == len(numbers)


def test_what_is_larger_is_not_recorded_while_others_are_served(recorded, plain):
    ids, mask = batch(9, 60)
    expected, found = (one.run(ids, mask, Variant.PLAIN) for one in (plain, recorded))
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-6)
    (buffers,) = recorded._free[Variant.PLAIN]
    bucket = buffers._buckets[16, 64]
    assert not bucket.inputs
    assert bucket.options.get_run_config_entry("gpu_graph_id") == "-1"


def test_what_has_no_room_to_be_recorded_runs_as_it_can(bundle, plain, monkeypatch):
    def run(self: Buffers, ids: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
        if ids.size > 32:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
        return whole(self, ids, mask)

    backend = OrtBackend(bundle, device="cpu", threads=1, bind=True, max_batch_tokens=64)
    backend._graphs, whole = True, Buffers.run
    with monkeypatch.context() as full:
        full.setattr(Buffers, "run", run)
        backend._record()
    (buffers,) = backend._free[Variant.PLAIN]
    assert sorted(buffers._buckets) == [(1, 16), (1, 32), (2, 16)]
    expected, found = (one.run(*batch(3, 20), Variant.PLAIN) for one in (plain, backend))
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-6)


def test_a_device_that_is_lost_while_recording_is_told(bundle, monkeypatch):
    def run(*_: object) -> None:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    backend = OrtBackend(bundle, device="cpu", threads=1, bind=True)
    backend._graphs = True
    monkeypatch.setattr(Buffers, "run", run)
    with pytest.raises(RuntimeError, match="CUDA failure 700"):
        backend.warm_up()


@pytest.mark.parametrize(("tokens", "expected"), [(512, 1024), (500, 1024), (513, 2048)])
def test_padding_at_most_doubles_a_batch_up_to_a_power_of_two(tokens, expected):
    areas = [math.prod(padded(tokens // width, width, 64)) for width in range(8, 65)]
    assert max(areas) <= expected == most_padded(tokens)


@pytest.mark.parametrize(
    ("max_tokens", "area", "expected"),
    [
        (64, 64, [(1, 16), (2, 16), (4, 16), (1, 32), (2, 32), (1, 64)]),
        (40, 40, [(1, 16), (2, 16), (1, 32), (1, 40)]),
        (8, 16, [(1, 8), (2, 8)]),
        (64, 15, []),
    ],
)
def test_buckets_double_in_rows_and_in_width_up_to_what_the_model_reads(max_tokens, area, expected):
    assert list(buckets(max_tokens, area)) == expected


@pytest.mark.parametrize("kind", ["bound", "recorded"])
def test_batches_side_by_side_have_buffers_of_their_own(request, kind, plain):
    bound = request.getfixturevalue(kind)
    shapes = [(rows, width) for rows in (1, 2, 3) for width in (7, 12, 15, 20)] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda shape: bound.run(*batch(*shape), Variant.PLAIN), shapes))
    for shape, outputs in zip(shapes, found, strict=True):
        expected = plain.run(*batch(*shape), Variant.PLAIN)
        np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=1e-6)
