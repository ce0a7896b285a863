"""Which server stands at the edge."""

import importlib.util
import tempfile

import pytest

from service.settings import Settings
from service.transport import TransportError, make_server


@pytest.mark.parametrize("transport", ["grpc", "native"])
async def test_either_listens_and_only_where_asked_to_beside_others(transport):
    server = make_server(Settings(transport=transport), print)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    other = make_server(Settings(transport=transport), print)
    with pytest.raises(RuntimeError, match="bind"):
        other.add_insecure_port(f"127.0.0.1:{port}")
    await server.stop(None)
    await other.stop(None)


async def test_one_that_is_not_installed_is_told_with_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = r"transport=native: pygrpc-native is missing; .* pip install -e '\.\[native\]'$"
    with pytest.raises(TransportError, match=told):
        make_server(Settings(transport="native"), print)


async def test_the_native_one_says_that_it_needs_a_folder_for_a_socket(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    with pytest.raises(TransportError, match=r"transport=native: No usable temporary .*; mount "):
        make_server(Settings(transport="native"), print)
