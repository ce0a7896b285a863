"""A peer: mosec, a batching model server over HTTP, with the same messages as bodies."""

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from mosec import Server, Worker  # type: ignore[import-not-found]

from model.bundle import read_bundle
from protos.realce.v1 import classifier_pb2 as pb
from service.ort_backend import cpu_quota
from tests.benchmarks.peers.host import arguments, respond
from tests.benchmarks.raw import BATCH, Raw

BUNDLE = "BENCHMARK_BUNDLE"  # workers are processes of their own
WAIT_MS = 5
PATIENCE_MS = 60_000  # else it gives up calls of many texts


class Classify(Worker):  # type: ignore[misc]
    """Computes whatever calls came together as one batch, padded to the longest."""

    def __init__(self) -> None:
        self._raw = Raw(read_bundle(Path(os.environ[BUNDLE])), threads=1)

    def deserialize(self, data: bytes) -> Sequence[str]:
        """The texts of a call."""
        return pb.ClassifyRequest.FromString(data).texts

    def forward(self, data: list[Sequence[str]]) -> list[pb.ClassifyResponse]:
        """One answer a call."""
        outputs = self._raw.compute(self._raw.tokenize([text for texts in data for text in texts]))
        answers, at = [], 0
        for texts in data:
            rows = slice(at, at + len(texts))
            answers.append(respond(self._raw.labels, *(one[rows] for one in outputs)))
            at += len(texts)
        return answers

    def serialize(self, data: pb.ClassifyResponse) -> bytes:
        """The answer as bytes."""
        return data.SerializeToString()


def main() -> None:
    """Serve with a worker for each CPU, each with one thread."""
    options = arguments(__doc__)
    os.environ[BUNDLE] = str(options.bundle)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(port)]
    sys.argv += ["--timeout", str(PATIENCE_MS), "--log-level", "error"]
    server = Server()
    server.append_worker(Classify, num=cpu_quota(), max_batch_size=BATCH, max_wait_time=WAIT_MS)
    print(json.dumps({"address": f"http://127.0.0.1:{port}"}), file=sys.stderr, flush=True)
    server.run()


if __name__ == "__main__":
    main()
