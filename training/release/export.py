"""From torch to ONNX, and the proof that nothing changed on the way."""

import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from model.bundle import INPUTS, OUTPUTS
from model.classifier import TextClassifier
from training.signals import deferred

OPSET, IR_VERSION = 20, 10
SHAPES = ((1, 1), (1, 2), (1, 7), (3, 5), (2, 33), (8, 64))  # B, S
# How the names of the network's weights begin and end; what it keeps beside them.
OWN, TURNED, HALVED, ANGLES = "network.", ".T", ".half", ("cos", "sin")
SMALLEST_HALVED = 1024  # below this many elements, halving a tensor saves nothing worth a node


class ExportError(RuntimeError):
    """The exported graph does not answer as the network does."""


class Served(nn.Module):
    """The network as it is served: every output by name, probabilities at their temperature."""

    def __init__(self, network: TextClassifier, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """All of `OUTPUTS`, in that order."""
        logits, *account = self.network.explain(input_ids, attention_mask)
        return logits, (logits / self.temperature).softmax(dim=-1), *account


def halve_weights(network: TextClassifier) -> None:
    """Round every large weight to half precision in place, so that storing it so loses nothing."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() >= SMALLEST_HALVED:
                parameter.copy_(parameter.half().float())


def export(network: TextClassifier, temperature: float, *, half_weights: bool) -> onnx.ModelProto:
    """The graph of the network with B and S dynamic, IR 10, opset 20.

    With `half_weights` (after `halve_weights`) large weights are stored in float16 and cast back
    when the graph is loaded; the arithmetic stays float32.
    """
    width = min(9, network.config.max_tokens)
    example_ids = torch.randint(3, network.config.vocab_size, (2, width))
    example_mask = torch.ones_like(example_ids)
    example_mask[1, width // 2 :] = 0
    axes = {0: torch.export.Dim("B"), 1: torch.export.Dim("S", max=network.config.max_tokens)}
    # The tracer has many callbacks, in which an interrupt is lost or aborts the process.
    with deferred(), warnings.catch_warnings():
        # The exporter warns about its own internals.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            Served(network.cpu().eval(), temperature),
            (example_ids, example_mask),
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes=(axes, axes),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph = onnx.load_from_string(_bytes(program.model_proto))
    graph.ir_version = IR_VERSION
    _forget_origins(graph)
    _name_turned(graph, network)
    if half_weights:
        store_halved(graph)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def exported_weights(graph: onnx.ModelProto) -> dict[str, Tensor]:
    """The network's weights, by the names that they have there, as `export` wrote them."""
    found = {}
    for tensor in graph.graph.initializer:
        name = tensor.name.removesuffix(HALVED)
        if name.startswith(OWN) and name.removeprefix(OWN) not in ANGLES:
            value = torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float32))
            if name.endswith(TURNED):
                name, value = name.removesuffix(TURNED), value.T
            found[name.removeprefix(OWN)] = value
    return found


def _bytes(proto: onnx.ModelProto) -> bytes:
    buffer = io.BytesIO()
    onnx.save(proto, buffer)
    return buffer.getvalue()


def _forget_origins(graph: onnx.ModelProto) -> None:
    """Drop what the exporter notes of source files: paths of the machine that exported."""
    graph.doc_string = ""
    graph.graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:]
    for node in graph.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        value.doc_string = ""
        del value.metadata_props[:]
    for tensor in graph.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]


def _name_turned(graph: onnx.ModelProto, network: TextClassifier) -> None:
    """Name the matrices that the exporter has transposed, and named anew, after what they were."""
    turned = {
        parameter.detach().T.contiguous().numpy().tobytes(): f"{OWN}{name}{TURNED}"
        for name, parameter in network.named_parameters()
        if parameter.dim() == 2
    }
    names = {}
    for tensor in graph.graph.initializer:
        if not tensor.name.startswith(OWN):
            values = numpy_helper.to_array(tensor).tobytes()
            names[tensor.name] = tensor.name = turned.pop(values, tensor.name)
    for node in graph.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def store_halved(graph: onnx.ModelProto) -> None:
    """Store large float32 initialisers, where that loses nothing, as float16 in place, each behind
    a cast that loading folds away."""
    casts = []
    for index, tensor in enumerate(graph.graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < SMALLEST_HALVED:
            continue
        halved = values.astype(np.float16)
        if not np.array_equal(halved.astype(np.float32), values):
            continue  # a constant that is no weight of the network, such as the rotary angles
        name = tensor.name
        graph.graph.initializer[index].CopyFrom(numpy_helper.from_array(halved, name + HALVED))
        casts.append(
            helper.make_node(
                "Cast", [name + HALVED], [name], f"{name}.cast", to=onnx.TensorProto.FLOAT
            )
        )
    nodes = list(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend([*casts, *nodes])


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest differences found, over all shapes tried."""

    by_output: dict[str, float]
    completeness: float
    padding: float
    company: float

    @property
    def worst(self) -> float:
        """The largest difference of any output from the network's own."""
        return max(self.by_output.values())


def check_parity(
    graph: onnx.ModelProto,
    network: TextClassifier,
    temperature: float,
    *,
    shapes: Sequence[tuple[int, int]] | None = None,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Parity:
    """Run graph and network side by side over `shapes` (B, S), padded and not, alone and not.

    Checks every output against torch, that evidence and contributions plus bias are the logits,
    that padding holds exactly 0, and that a text answers the same alone as in company. Raises
    `ExportError` naming output, shape and size of the first difference beyond `tolerance`.
    """
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    served = Served(network.cpu().eval(), temperature)
    longest = network.config.max_tokens
    tried = shapes or [*SHAPES, (1, longest), (2, longest)]
    generator = np.random.default_rng(seed)
    by_output = dict.fromkeys(OUTPUTS, 0.0)
    completeness = padding = company = 0.0
    for size, length in tried:
        if length > longest:
            continue
        for padded in (False, True):
            ids = generator.integers(3, network.config.vocab_size, (size, length))
            lengths = generator.integers(1, length + 1, size) if padded else np.full(size, length)
            lengths[0] = length
            mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
            ids = ids * mask
            got = _run(session, ids, mask)
            with torch.inference_mode():
                expected = served(torch.from_numpy(ids), torch.from_numpy(mask))
            for name, tensor in zip(OUTPUTS, expected, strict=True):
                gap = float(np.abs(got[name] - tensor.numpy()).max(initial=0))
                by_output[name] = max(by_output[name], gap)
                if not gap <= tolerance:
                    raise ExportError(f"{name} at B={size}, S={length}: off by {gap:.2e}")
            bias = network.head.bias.detach().numpy()
            for name in ("evidence", "contributions"):
                gap = float(np.abs(got[name].sum(axis=1) + bias - got["logits"]).max())
                completeness = max(completeness, gap)
            padding = max(padding, _on_padding(got, mask))
            last = size - 1
            alone = _run(session, ids[last:, : lengths[last]], mask[last:, : lengths[last]])
            gap = float(np.abs(alone["logits"][0] - got["logits"][last]).max())
            company = max(company, gap)
    for what, value, limit in (
        ("completeness", completeness, tolerance),
        ("padding", padding, 0.0),
        ("alone against in company", company, tolerance),
    ):
        if not value <= limit:
            raise ExportError(f"{what}: off by {value:.2e}, the limit is {limit:.0e}")
    return Parity(by_output, completeness, padding, company)


def _run(
    session: onnxruntime.InferenceSession, ids: np.ndarray, mask: np.ndarray
) -> dict[str, np.ndarray]:
    values = session.run(list(OUTPUTS), {"input_ids": ids, "attention_mask": mask})
    return dict(zip(OUTPUTS, values, strict=True))


def _on_padding(got: dict[str, np.ndarray], mask: np.ndarray) -> float:
    """Largest value that stands on padding, where exactly 0 belongs."""
    off = 1 - mask
    return max(
        float(np.abs(got["evidence"] * off[:, :, None]).max()),
        float(np.abs(got["contributions"] * off[:, :, None]).max()),
        float(np.abs(got["pooling_attention"] * off[:, None]).max()),
        float(np.abs(got["attentions"] * off[:, None, None, None]).max(initial=0)),
    )
