"""What many tests share: a bundle trained on our own sentences, and a server that serves it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
import torch
from hypothesis import HealthCheck, settings

from model.bundle import Bundle, read_bundle
from service.server import Server
from service.settings import Settings
from training.config import load_config
from training.loop.trainer import Ranks
from training.pipeline import fit
from training.progress import Display

# No test fails by the clock: the machine may be busy.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

REVIEWS = Path(__file__).parent / "data" / "reviews.csv"

TINY = {
    "name": "tiny",
    "weights": "float16",
    "network.d_model": 32,
    "network.layers": 2,
    "network.heads": 4,
    "network.d_ff": 48,
    "network.max_tokens": 64,
    "train.vocab_size": 400,
    "network.dropout": 0.0,
    "train.token_dropout": 0.0,
    "train.epochs": 20,
    "train.patience": 20,
    "train.max_batch_tokens": 256,
    "train.crop_tokens": 64,
    "train.learning_rate": 5e-3,
    "train.ema_decay": 0.9,
}


# Small tensors on several threads spend their time waiting for each other.
torch.set_num_threads(1)


def source(path: Path = REVIEWS) -> dict[str, str]:
    """A source of a run over a file of our sentences."""
    return {"name": path.stem, "path": str(path), "language": "en", "license": "Apache-2.0"}


@pytest.fixture(autouse=True)
def logs_as_new() -> Iterator[None]:
    """A command run inside a test configures logs for the whole process; the next test must not
    inherit its level."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small real bundle, trained, calibrated and exported by the real pipeline."""
    folder = tmp_path_factory.mktemp("tiny")
    # It is to know its few sentences by heart, not to generalise from them.
    rows = {"sources": [source()], "validation": [source()], "test": [source()]}
    config = load_config(None, TINY | rows | {"exclude_held_out": False})
    where = Ranks(0, 1, torch.device("cpu"))
    out = folder / "bundle"
    fit(config, Path(), folder / "run", out, where, Display(quiet=True))
    return out


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    """The same, read and verified."""
    return read_bundle(tiny_bundle)


@pytest.fixture
def settings(tiny_bundle: Path) -> Settings:
    """Settings of a server of the tiny bundle on a free port."""
    return Settings(bundle=tiny_bundle, grpc="127.0.0.1:0", http="", device="cpu", grace_s=5)


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Server]:
    """A real server, answering."""
    server = await Server.start(settings)
    yield server
    await server.close()
