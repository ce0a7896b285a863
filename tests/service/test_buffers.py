from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
import pytest

from service.buffers import Buffers
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
    backend = OrtBackend(bundle, device="cpu", threads=1, bind=True)
    backend._recording = Lock()
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


@pytest.mark.parametrize("variant", list(Variant))
def test_nothing_runs_beside_a_recording(recorded, variant):
    with ThreadPoolExecutor(1) as pool:
        with recorded._recording:
            running = pool.submit(recorded.run, *batch(2, 5), variant)
            with pytest.raises(TimeoutError):
                running.result(timeout=0.2)
        assert list(running.result()) == list(variant.value)


def test_every_bucket_has_a_recording_of_its_own(bundle, plain):
    session, most = plain._sessions[Variant.PLAIN], bundle.manifest.max_tokens
    pair = [Buffers(session, "cpu", most, recorded=True) for _ in range(2)]
    numbers = set()
    for buffers in pair:
        for shape in ((1, 1), (2, 1), (1, 2)):
            buffers.run(*batch(*shape))
        numbers |= {
            bucket.options.get_run_config_entry("gpu_graph_id")
            for bucket in buffers._buckets.values()
        }
    assert len(numbers) == 4  # both have two buckets


@pytest.mark.parametrize("kind", ["bound", "recorded"])
def test_batches_side_by_side_have_buffers_of_their_own(request, kind, plain):
    bound = request.getfixturevalue(kind)
    shapes = [(rows, width) for rows in (1, 2, 3) for width in (7, 12, 15, 20)] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda shape: bound.run(*batch(*shape), Variant.PLAIN), shapes))
    for shape, outputs in zip(shapes, found, strict=True):
        expected = plain.run(*batch(*shape), Variant.PLAIN)
        np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=1e-6)
