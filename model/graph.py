"""The served graph: one set of weights, cut to the outputs that are asked for."""

from collections.abc import Iterator, Sequence

import onnx


def extract(graph: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """The part of a graph that computes `outputs`: the same nodes and weights, and no others.

    ONNX Runtime computes every output of a graph, whichever of them are asked for.
    """
    producer = {name: node for node in graph.graph.node for name in node.output}
    needed, pending = set[str](), list(outputs)
    while pending:
        name = pending.pop()
        if name and name not in needed:
            needed.add(name)
            if name in producer:
                pending.extend(_reads(producer[name]))
    part = onnx.ModelProto(ir_version=graph.ir_version)
    part.opset_import.extend(graph.opset_import)
    part.graph.name = graph.graph.name
    part.graph.input.extend(graph.graph.input)
    by_name = {value.name: value for value in graph.graph.output}
    part.graph.output.extend(by_name[name] for name in outputs)
    part.graph.node.extend(n for n in graph.graph.node if not needed.isdisjoint(n.output))
    part.graph.initializer.extend(t for t in graph.graph.initializer if t.name in needed)
    return part


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for subgraph in (attribute.g, *attribute.graphs):
            for inner in subgraph.node:
                yield from _reads(inner)
