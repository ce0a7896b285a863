"""The network that tells replaced tokens is the one that will classify."""

import pytest
import torch

from model.classifier import TextClassifier
from model.config import ModelConfig
from training.pretraining.detector import Detector

CONFIG = ModelConfig(
    vocab_size=30, classes=2, d_model=16, heads=2, layers=2, d_ff=24, max_tokens=8, dropout=0.0
)


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(CONFIG)


def test_each_token_gets_an_answer_that_padding_does_not_move(detector):
    short = detector(torch.tensor([[4, 5, 6]]), torch.ones(1, 3))
    padded = detector(torch.tensor([[4, 5, 6, 0]]), torch.tensor([[1, 1, 1, 0]]))
    assert short.shape == (1, 3)
    torch.testing.assert_close(padded[:, :3], short)


def test_an_answer_depends_on_the_whole_text(detector):
    mask = torch.ones(1, 3)
    one = detector(torch.tensor([[4, 5, 6]]), mask)
    other = detector(torch.tensor([[4, 5, 7]]), mask)
    assert (one != other).all()


def test_what_it_learns_is_the_classifiers_and_what_waits_for_labels_stays(detector):
    classifier = TextClassifier(CONFIG)
    shared = {
        name: value for name, value in detector.state_dict().items() if "detector" not in name
    }
    classifier.load_state_dict(shared)
    ids, mask = torch.tensor([[4, 5, 6]]), torch.ones(1, 3)
    assert torch.equal(classifier.states(ids, mask), detector.states(ids, mask))
    detector(ids, mask).sum().backward()
    learning = {name for name, value in detector.named_parameters() if value.grad is not None}
    assert {name.split(".")[0] for name in learning} == {"embedding", "encoder", "detector"}
    assert all(value.grad is not None for value in detector.parameters() if value.requires_grad)
