"""A peer: an empty grpc.aio method, the floor under every service of that library."""

import asyncio

from protos.realce.v1 import classifier_pb2 as pb
from tests.benchmarks.peers.host import arguments, serve


async def main() -> None:
    """Answer every call with the same prediction."""
    arguments(__doc__)
    prediction = pb.Prediction(label="positive", probability=0.9)
    for label in ("negative", "positive"):
        prediction.scores.add(label=label, probability=0.5, logit=1.0)
    answer = pb.ClassifyResponse(predictions=[prediction], model_name="empty", model_version="1")

    async def classify(request: pb.ClassifyRequest, context: object) -> pb.ClassifyResponse:
        return answer

    await serve(classify)


if __name__ == "__main__":
    asyncio.run(main())
