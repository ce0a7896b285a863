import pytest
import torch

from model.classifier import TextClassifier
from tests.networks import random_network


@pytest.fixture
def network() -> TextClassifier:
    return random_network(classes=3, d_model=24, layers=3, heads=4, d_ff=32, max_tokens=16)


@pytest.fixture
def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts, of 9 and of 5 tokens."""
    input_ids = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    return input_ids * mask, mask


def test_explaining_answers_as_not_explaining(network, padded):
    torch.testing.assert_close(network.explain(*padded).logits, network(*padded))


@pytest.mark.parametrize("view", ["evidence", "contributions"])
def test_account_is_complete(network, padded, view):
    explanation = network.explain(*padded)
    total = getattr(explanation, view).sum(dim=1) + network.head.bias
    assert (total - explanation.logits).abs().max() <= 1e-5


def test_padding_holds_exactly_nothing(network, padded):
    explanation = network.explain(*padded)
    assert (explanation.evidence[1, 5:] == 0).all()
    assert (explanation.contributions[1, 5:] == 0).all()
    assert (explanation.pooling_attention[1, :, 5:] == 0).all()
    assert (explanation.attentions[1, ..., 5:] == 0).all()


def test_attention_rows_sum_to_one(network, padded):
    explanation = network.explain(*padded)
    for weights in (explanation.attentions, explanation.pooling_attention):
        assert (weights.sum(dim=-1) - 1).abs().max() <= 1e-6


def test_a_text_answers_the_same_alone_and_in_company(network, padded):
    input_ids, mask = padded
    alone = network.explain(input_ids[1:, :5], mask[1:, :5])
    company = network.explain(*padded)
    assert (alone.logits[0] - company.logits[1]).abs().max() <= 1e-5
    assert (alone.contributions[0] - company.contributions[1, :5]).abs().max() <= 1e-5
    assert (alone.attentions[0] - company.attentions[1, ..., :5, :5]).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("view", "shape"),
    [
        ("logits", (2, 3)),
        ("evidence", (2, 9, 3)),
        ("contributions", (2, 9, 3)),
        ("pooling_attention", (2, 4, 9)),
        ("attentions", (2, 3, 4, 9, 9)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shapes_and_types(network, padded, view, shape, dtype):
    tensor = getattr(network.to(dtype).explain(*padded), view)
    assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype)
    assert tensor.isfinite().all()


def test_one_token_owns_the_whole_answer(network):
    alone = torch.tensor([[7]])
    explanation = network.explain(alone, torch.ones_like(alone))
    assert (explanation.attentions == 1).all()
    assert (explanation.pooling_attention == 1).all()
    torch.testing.assert_close(explanation.contributions, explanation.evidence)
    torch.testing.assert_close(
        explanation.evidence[0, 0] + network.head.bias, explanation.logits[0]
    )


def test_padding_learns_nothing(network, padded):
    network(*padded).sum().backward()
    assert (network.embedding.weight.grad[0] == 0).all()


def test_what_is_saved_is_what_was_learnt(network):
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
