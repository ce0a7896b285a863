"""The messages that callers send, as bytes, made before anything is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from protos.realce.v1 import classifier_pb2 as pb

EXPLAINED = (pb.VIEW_EVIDENCE, pb.VIEW_CONTRIBUTIONS, pb.VIEW_POOLING_ATTENTION)
# What callers of all sorts do: share, texts in the call, further fields.
MIXTURE: tuple[tuple[float, int, dict[str, Any]], ...] = (
    (0.55, 1, {}),
    (0.15, 8, {}),
    (0.15, 1, {"views": EXPLAINED}),
    (0.05, 4, {"views": EXPLAINED, "data_type": pb.DATA_TYPE_FLOAT16}),
    (0.05, 1, {"views": [pb.VIEW_ATTENTIONS]}),
    (0.03, 0, {}),  # no text: refused
    (0.02, 1, {"views": [pb.VIEW_UNSPECIFIED]}),  # no view: refused
)


@dataclass(frozen=True, slots=True)
class Request:
    """A message and how many texts it holds."""

    content: bytes
    texts: int


def messages(
    texts: Sequence[str], per_call: int, *, views: Sequence[str] = (), half: bool = False
) -> list[Request]:
    """Calls of `per_call` texts each, all texts in turn; the last one is filled up from the first.

    `views` by name, as in "contributions"; `half` asks for tensors in float16.
    """
    fields: dict[str, Any] = {"views": [pb.View.Value(f"VIEW_{name.upper()}") for name in views]}
    if half:
        fields["data_type"] = pb.DATA_TYPE_FLOAT16
    count = -(-len(texts) // per_call)
    return [_request(texts, i * per_call, per_call, fields) for i in range(count)]


def mixture(texts: Sequence[str], seed: int) -> list[Request]:
    """As many calls as there are texts, each drawn from `MIXTURE`."""
    generator = np.random.default_rng((seed, 2))
    drawn = generator.choice(len(MIXTURE), len(texts), p=[share for share, _, _ in MIXTURE])
    return [_request(texts, i, *MIXTURE[kind][1:]) for i, kind in enumerate(drawn)]


def in_stream(requests: Sequence[Request]) -> list[Request]:
    """The same as messages of a bulk stream, their places in the sequence as ids."""
    return [
        Request(
            pb.ClassifyStreamRequest(
                id=str(i), request=pb.ClassifyRequest.FromString(one.content)
            ).SerializeToString(),
            one.texts,
        )
        for i, one in enumerate(requests)
    ]


def _request(texts: Sequence[str], first: int, size: int, fields: dict[str, Any]) -> Request:
    chosen = [texts[(first + j) % len(texts)] for j in range(size)]
    return Request(pb.ClassifyRequest(texts=chosen, **fields).SerializeToString(), size)
