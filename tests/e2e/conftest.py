"""What tests of a real server share; each file says how its own `server` is set."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from protos.realce.v1 import classifier_pb2_grpc as rpc
from service.server import Server


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A place that a bundle is served from, holding the tiny one."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> rpc.ClassifierStub:
    return rpc.ClassifierStub(channel)
