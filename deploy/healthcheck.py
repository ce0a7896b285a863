"""Is the server in this container SERVING? Exits 0 if it is, 1 if not. For Docker's HEALTHCHECK;
Kubernetes asks by itself."""

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 3.0


def serving(target: str) -> bool:
    """Ask grpc.health.v1 at `target` about the whole server."""
    # Docker hands its proxy down to containers, and this machine is not behind it.
    with grpc.insecure_channel(target, options=(("grpc.enable_http_proxy", 0),)) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        try:
            answer = check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    port = os.environ.get("REALCE_GRPC", "127.0.0.1:50051").rpartition(":")[2]
    sys.exit(0 if serving(f"127.0.0.1:{port}") else 1)
