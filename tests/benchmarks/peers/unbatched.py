"""A peer: grpc.aio without batching, as tutorials write it: tokenize and run in each call."""

import asyncio

from model.bundle import read_bundle
from protos.realce.v1 import classifier_pb2 as pb
from tests.benchmarks.peers.host import arguments, respond, serve
from tests.benchmarks.raw import Raw


async def main() -> None:
    """Answer each call by itself, its texts padded to the longest of them."""
    options = arguments(__doc__)
    raw = Raw(read_bundle(options.bundle), options.threads, options.device)

    async def classify(request: pb.ClassifyRequest, context: object) -> pb.ClassifyResponse:
        return respond(raw.labels, *raw.compute(raw.tokenize(request.texts)))

    await serve(classify)


if __name__ == "__main__":
    asyncio.run(main())
