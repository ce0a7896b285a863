"""ONNX Runtime: sessions over one set of weights, one for each variant of the graph."""

import importlib.metadata
import math
import os
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from model.bundle import Bundle
from model.graph import extract
from model.tokenizer import UNK_ID
from service import cuda
from service.agreement import differences
from service.backend import BackendGone, Outputs
from service.buffers import Buffers, buckets, most_padded
from service.launcher import Launcher
from service.types import IntArray, Variant

Device = Literal["auto", "cpu", "cuda"]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
WARM_UP_SHAPES = ((1, 1), (1, 16), (4, 32))
PROVEN_SHAPES = ((1, 1), (3, 16), (4, 64))
TOLERANCE = 1e-3  # of any element; in single precision a GPU is off by a thousandth of that


class DeviceError(RuntimeError):
    """The device asked for cannot be used; the message says what can."""


class OrtBackend:
    """The graph in ONNX Runtime, on one device.

    On a CPU each batch runs on one thread and `threads` batches run side by side: measured faster
    than one batch spread over all threads, and it leaves no thread spinning. On a GPU one batch
    runs while the next is made ready, in buffers that stay on the device.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: Device = "auto",
        threads: int = 0,
        bind: bool | None = None,
        graphs: bool = False,
        max_batch_tokens: int = 2048,
    ) -> None:
        """`threads` 0 takes the CPU quota of this process; `bind` says whether to run in buffers
        kept on the device, None: on a GPU; `graphs`, whether what a batch launches there is
        recorded before it serves and launched as one; no batch has more than `max_batch_tokens`,
        by which what is taken of a GPU's memory is bounded. Raises `DeviceError`."""
        self.provider = choose_provider(device)
        on_gpu = self.provider == CUDA
        self.parallel = cuda.PARALLEL if on_gpu else threads or cpu_quota()
        self.prompt = not on_gpu
        self._max_tokens = bundle.manifest.max_tokens
        # What this device has still to show that it computes; a CPU is what it is held against.
        self._unproven: Bundle | None = bundle if on_gpu else None
        self._graphs = graphs and on_gpu
        self._batch_tokens = most_padded(max_batch_tokens)
        # Maps over all pairs of tokens are too large to pad and keep.
        bound = {Variant.PLAIN, Variant.EXPLAIN} if bind or (bind is None and on_gpu) else set()
        self._free: dict[Variant, deque[Buffers]] = {variant: deque() for variant in bound}
        self._sessions = {variant: self._session(bundle, variant) for variant in Variant}

    def _session(self, bundle: Bundle, variant: Variant) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        part = extract(bundle.graph, variant.value).SerializeToString()
        recorded = self._graphs and variant in self._free
        own = {}
        if self.provider == CUDA:
            own = cuda.options(bundle.manifest.config, len(part), self._batch_tokens, recorded)
        try:
            session = onnxruntime.InferenceSession(part, options, providers=[(self.provider, own)])
        except Fail as error:
            if not recorded:
                raise
            raise DeviceError(
                "not all of this bundle's graph runs on the GPU; serve with "
                f"--no-cuda-graphs: {error}"
            ) from error
        if session.get_providers()[0] != self.provider:
            raise DeviceError(
                f"{self.provider} could not start; ONNX Runtime fell back to "
                f"{session.get_providers()[0]}, which is refused"
            )
        session.disable_fallback()
        return session

    def warm_up(self) -> None:
        """Record what is to be recorded and run every variant at a few shapes. Raises
        `DeviceError` where a GPU does not answer as a CPU does."""
        if self._graphs:
            self._record()
        for variant in Variant:
            for rows, width in WARM_UP_SHAPES:
                ids = np.full((rows, width), UNK_ID, dtype=np.int64)
                self.run(ids, np.ones_like(ids), variant)
        if self._unproven is not None:
            self._prove(self._unproven)
            self._unproven = None

    def _prove(self, bundle: Bundle) -> None:
        cpu = OrtBackend(bundle, device="cpu", threads=1)
        found = differences(self, cpu, bundle.tokenizer.vocab_size, self._max_tokens, PROVEN_SHAPES)
        off = {output: gap for output, gap in found.items() if not gap <= TOLERANCE}
        if off:
            told = ", ".join(f"{output} by {gap:.3g}" for output, gap in off.items())
            raise DeviceError(
                f"{self.provider} answers otherwise than a CPU: {told}, where {TOLERANCE:g} is "
                "borne; serve with --device cpu"
            )

    def _record(self) -> None:
        # The largest first: those after it find room in what it has taken of the device.
        shapes = sorted(buckets(self._max_tokens, self._batch_tokens), key=math.prod, reverse=True)
        for variant, free in self._free.items():
            buffers = self._buffers(variant)
            for shape in shapes:  # one by one, as the bundle in service has its turns between
                try:
                    self._launch(partial(buffers.record, shape))
                except Exception as error:
                    if _is_lost(error):
                        raise
                    # There is no room for it now; should such a batch come, it runs as it can.
            free.append(buffers)

    def run(self, input_ids: IntArray, attention_mask: IntArray, variant: Variant) -> Outputs:
        """See `Backend.run`. The interpreter lock is free meanwhile."""
        try:
            values = self._launch(partial(self._values, input_ids, attention_mask, variant))
        except Exception as error:
            if _is_lost(error):
                raise BackendGone(f"{self.provider}: the device is lost") from error
            raise
        return dict(zip(variant.value, values, strict=True))

    def _values(
        self, input_ids: IntArray, attention_mask: IntArray, variant: Variant
    ) -> list[npt.NDArray[np.float32]]:
        session = self._sessions[variant]
        if variant not in self._free:
            feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
            return list(session.run(None, feeds))
        free = self._free[variant]
        try:
            buffers = free.pop()
        except IndexError:  # all are in use
            buffers = self._buffers(variant)
        try:
            return buffers.run(input_ids, attention_mask)
        finally:
            free.append(buffers)

    def _buffers(self, variant: Variant) -> Buffers:
        device = "cuda" if self.provider == CUDA else "cpu"
        return Buffers(self._sessions[variant], device, self._max_tokens)

    def _launch(self, work: Callable[[], Any]) -> Any:
        """Run `work` where it may be run: what is recorded, on the one thread that launches."""
        return launcher().run(work) if self._graphs else work()


@cache
def launcher() -> Launcher:
    """That of this process: a bundle is recorded while the one before it still serves."""
    return Launcher()


def choose_provider(device: Device) -> str:
    """The execution provider for a device, with its libraries loaded. Raises `DeviceError`."""
    provider = find_provider(device)
    if provider == CUDA:
        onnxruntime.preload_dlls()
    return provider


def find_provider(device: Device) -> str:
    """The execution provider for a device; `auto` is CUDA where it is built in, else CPU.

    Never falls back in silence: `cuda` without CUDA raises `DeviceError`.
    """
    packages = [
        name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)
    ]  # each overwrites the other's files
    if len(packages) > 1:
        raise DeviceError(f"{' and '.join(packages)} are both installed; uninstall one of them")
    available = onnxruntime.get_available_providers()
    if device == "cuda" and CUDA not in available:
        raise DeviceError(
            f"this ONNX Runtime has only {', '.join(available)}; "
            "install the extra 'gpu' in place of 'cpu'"
        )
    return CPU if device == "cpu" or CUDA not in available else CUDA


def cpu_quota() -> int:
    """CPUs this process may use: its affinity, cut to the cgroup's quota, at least 1.

    ONNX Runtime sizes its pools from the host and would overcommit a container.
    """
    cpus: float = len(os.sched_getaffinity(0))
    for path, second in (
        (Path("/sys/fs/cgroup/cpu.max"), None),
        (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
    ):
        try:
            fields = path.read_text().split() + (second.read_text().split() if second else [])
            quota, period = fields[0], float(fields[1])
        except (OSError, IndexError, ValueError):
            continue
        if quota not in ("max", "-1"):
            cpus = min(cpus, float(quota) / period)
    return max(1, math.floor(cpus))


def _is_lost(error: Exception) -> bool:
    """Does an error tell that the device will not run anything any more?"""
    return "CUDA failure" in str(error) or "CUDA error" in str(error)


def _installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
