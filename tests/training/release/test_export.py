import onnx
import pytest
import torch
from torch import Tensor

from model.classifier import Explanation, TextClassifier
from tests.networks import random_network
from training.release.export import (
    ExportError,
    check_parity,
    export,
    exported_weights,
    halve_weights,
)


@pytest.fixture(scope="module")
def network() -> TextClassifier:
    network = random_network(classes=3, d_model=32, layers=2, heads=4, d_ff=48, max_tokens=24)
    halve_weights(network)
    return network


@pytest.fixture(scope="module")
def graph(network: TextClassifier) -> onnx.ModelProto:
    return export(network, 1.7, half_weights=True)


def test_every_output_agrees_with_torch_at_every_shape(graph, network):
    parity = check_parity(graph, network, 1.7)
    assert parity.worst <= 1e-4
    assert parity.completeness <= 1e-4
    assert parity.padding == 0
    assert parity.company <= 1e-5


@pytest.mark.parametrize(("layers", "domains"), [(0, 1), (1, 1), (1, 2)])
def test_so_does_a_network_of_ngrams_with_layers_or_without(layers, domains):
    network = random_network(
        classes=2,
        d_model=32,
        layers=layers,
        heads=4,
        d_ff=48,
        max_tokens=24,
        ngrams=4096,
        domains=domains,
        ends=1.5,
    )
    halve_weights(network)
    graph = export(network, 1.7, half_weights=True)
    parity = check_parity(graph, network, 1.7)
    assert parity.worst <= 1e-4
    assert parity.completeness <= 1e-4
    assert parity.padding == 0
    assert exported_weights(graph).keys() == network.state_dict().keys()


def test_so_does_a_network_of_the_shortest_texts():
    network = random_network(classes=2, d_model=16, layers=1, heads=2, d_ff=16, max_tokens=8)
    assert check_parity(export(network, 1.0, half_weights=False), network, 1.0).worst <= 1e-4


def test_a_difference_is_noticed(graph, network):
    with pytest.raises(ExportError, match=r"probabilities at B=1, S=1: off by"):
        check_parity(graph, network, 1.0)


def test_large_weights_are_stored_in_half(graph):
    halved = [t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert len(halved) >= 10
    assert graph.ir_version <= 13


def test_weights_are_found_again_under_their_names(graph, network):
    found, own = exported_weights(graph), network.state_dict()
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)


def test_nothing_of_the_exporting_machine_is_kept(graph):
    assert b"site-packages" not in graph.SerializeToString()
    assert b".py" not in graph.SerializeToString()


def test_no_node_is_one_that_a_gpu_would_leave_to_the_cpu():
    """ONNX Runtime pads floats alone on a GPU. With one node on the CPU it records no graph there,
    and once it misread inputs that lay on the device."""
    network = random_network(classes=2, d_model=32, heads=4, d_ff=48, max_tokens=24, ngrams=4096)
    inferred = onnx.shape_inference.infer_shapes(export(network, 1.7, half_weights=False)).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    kinds |= {value.name: value.type.tensor_type.elem_type for value in inferred.input}
    padded = [kinds[node.input[0]] for node in inferred.node if node.op_type == "Pad"]
    assert set(padded) <= {onnx.TensorProto.FLOAT}


class Partial(TextClassifier):
    """Its account leaves something out, and its graph will, too."""

    def explain(self, input_ids: Tensor, attention_mask: Tensor) -> Explanation:
        """See `TextClassifier.explain`."""
        whole = super().explain(input_ids, attention_mask)
        return whole._replace(contributions=whole.contributions * 0.9)


class Leaking(TextClassifier):
    """It looks at padding, and its graph will, too."""

    def explain(self, input_ids: Tensor, attention_mask: Tensor) -> Explanation:
        """See `TextClassifier.explain`."""
        whole = super().explain(input_ids, attention_mask)
        return whole._replace(pooling_attention=whole.pooling_attention + 1e-3)


@pytest.mark.parametrize(("kind", "reason"), [(Partial, "completeness"), (Leaking, "padding")])
def test_what_graph_and_network_have_wrong_together_is_noticed(kind, reason, network):
    wrong = kind(network.config).eval()
    wrong.load_state_dict(network.state_dict())
    with pytest.raises(ExportError, match=f"{reason}: off by"):
        check_parity(export(wrong, 1.7, half_weights=False), wrong, 1.7)
