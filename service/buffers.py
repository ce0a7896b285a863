"""Places on a device that a session reads its inputs from and writes its outputs to."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from model.tokenizer import UNK_ID
from service.types import IntArray

LEAST_WIDTH = 16  # tokens
UNRECORDED = -1  # to ONNX Runtime the number of a run that is neither recorded nor repeated

_numbers = itertools.count(1)  # of recordings; a session keeps them by number


@dataclass(frozen=True, slots=True)
class Bucket:
    """The buffers of all batches that are padded to one shape, bound to their session.

    `inputs` are places on the device where what a run launches is recorded, else there are none and
    inputs come from the host.
    """

    shape: tuple[int, int]
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    binding: Any
    options: onnxruntime.RunOptions

    def fill(self, name: str, values: IntArray) -> None:
        """Let the next run read `values`, of the bucket's shape, as its input of this name."""
        if self.inputs:
            self.inputs[name].update_inplace(values)
        else:
            # Where one node of a graph runs on the CPU, as those of bundles before version 2.7
            # do, ONNX Runtime 1.31 misreads inputs that lie on a GPU.
            self.binding.bind_cpu_input(name, values)


class Buffers:
    """Runs a session in buffers that are made once for each bucket of shapes and used again.

    So a device that is warm allocates nothing more, and its addresses stay. B and S are padded to
    powers of two: there are few buckets, and on a GPU a batch of short texts costs what launching
    its kernels does. For one thread at a time.
    """

    def __init__(self, session: onnxruntime.InferenceSession, device: str, max_tokens: int) -> None:
        """`device` as ONNX Runtime names it: "cuda", or "cpu"; no S is beyond `max_tokens`."""
        self._session, self._device, self._max_tokens = session, device, max_tokens
        self._buckets: dict[tuple[int, int], Bucket] = {}
        self._axes = session.get_inputs()[0].shape  # what the graph calls B and S
        self._outputs = {output.name: output.shape for output in session.get_outputs()}

    def record(self, shape: tuple[int, int]) -> None:
        """Record what batches padded to this shape launch, for this thread to launch as one (CUDA
        graphs)."""
        self._buckets[shape] = self._bucket(shape, next(_numbers))
        try:
            self.run(np.full(shape, UNK_ID), np.ones(shape, np.int64))
        except Exception:
            del self._buckets[shape]
            raise

    def run(self, input_ids: IntArray, attention_mask: IntArray) -> list[npt.NDArray[np.float32]]:
        """All outputs in the session's order, cut to the B and S of input_ids and attention_mask
        [B, S]."""
        rows, width = input_ids.shape
        shape = padded(rows, width, self._max_tokens)
        if shape not in self._buckets:
            self._buckets[shape] = self._bucket(shape, UNRECORDED)
        bucket = self._buckets[shape]
        for name, values, filler in (
            ("input_ids", input_ids, UNK_ID),
            ("attention_mask", attention_mask, 1),
        ):
            whole = np.zeros(bucket.shape, np.int64)
            whole[:rows, :width] = values
            whole[rows:, 0] = filler  # a row of nothing but padding has nothing to attend to
            bucket.fill(name, whole)
        self._session.run_with_iobinding(bucket.binding, bucket.options)
        return [
            np.array(bucket.outputs[name].numpy()[self._cut(axes, rows, width)])
            for name, axes in self._outputs.items()
        ]

    def _bucket(self, shape: tuple[int, int], number: int) -> Bucket:
        sizes = dict(zip(self._axes, shape, strict=True))
        binding, inputs = self._session.io_binding(), {}
        if number != UNRECORDED:
            inputs = {one.name: self._value(shape, np.int64) for one in self._session.get_inputs()}
        outputs = {
            name: self._value([sizes.get(axis, axis) for axis in axes], np.float32)
            for name, axes in self._outputs.items()
        }
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(number))
        return Bucket(shape, inputs, outputs, binding, options)

    def _value(self, shape: Any, kind: type[np.generic]) -> Any:
        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        return make(list(shape), kind, self._device, 0)

    def _cut(self, axes: list[int | str], rows: int, width: int) -> tuple[slice, ...]:
        """Where in an output, whose axes the graph calls so, B and S are without padding."""
        ends = dict(zip(self._axes, (rows, width), strict=True))
        return tuple(slice(ends.get(axis)) for axis in axes)


def buckets(max_tokens: int, area: int) -> list[tuple[int, int]]:
    """The shapes [B, S] of at most `area` tokens that batches are padded to."""
    widths = sorted({padded(1, width, max_tokens)[1] for width in range(1, max_tokens + 1)})
    return [(1 << power, wide) for wide in widths for power in range((area // wide).bit_length())]


def padded(rows: int, width: int, max_tokens: int) -> tuple[int, int]:
    """The bucket of a batch of this B and S, of which none is beyond `max_tokens`."""
    return _power_of_two(rows), min(max(LEAST_WIDTH, _power_of_two(width)), max_tokens)


def most_padded(tokens: int) -> int:
    """The most tokens of the bucket of a batch of so many, unless its texts have less than half of
    the least width."""
    return 2 * _power_of_two(tokens)


def _power_of_two(number: int) -> int:
    """The least that is not less."""
    return 1 << (number - 1).bit_length()
