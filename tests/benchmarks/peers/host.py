"""What peers share: flags, answers, and for most a grpc.aio server on a free port of loopback."""

import argparse
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from protos.realce.v1 import classifier_pb2 as pb
from service.settings import EMBEDDED_BUNDLE
from service.types import FloatArray

Classify = Callable[[pb.ClassifyRequest, Any], Awaitable[pb.ClassifyResponse]]


def arguments(description: str | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--bundle", type=Path, default=EMBEDDED_BUNDLE)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="of a run; 0 is the library's")
    return parser.parse_args()


def respond(
    labels: Sequence[str], logits: FloatArray, probabilities: FloatArray
) -> pb.ClassifyResponse:
    """The answer of rows of outputs [B, C], as the protocol has it."""
    answer = pb.ClassifyResponse(model_name="peer", model_version="1")
    for row, shares in zip(logits.tolist(), probabilities.tolist(), strict=True):
        best = max(range(len(shares)), key=shares.__getitem__)
        prediction = answer.predictions.add(label=labels[best], probability=shares[best])
        for label, probability, logit in zip(labels, shares, row, strict=True):
            prediction.scores.add(label=label, probability=probability, logit=logit)
    return answer


async def serve(classify: Classify) -> None:
    """Serve `Classify` until the process is ended; write the address to stderr as JSON."""
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *unlimited])
    method = grpc.unary_unary_rpc_method_handler(
        classify,
        request_deserializer=pb.ClassifyRequest.FromString,
        response_serializer=pb.ClassifyResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler("realce.v1.Classifier", {"Classify": method})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"address": f"127.0.0.1:{port}"}), file=sys.stderr, flush=True)
    await server.wait_for_termination()
