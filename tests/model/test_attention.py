import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model.attention import (
    MultiHeadAttention,
    rotary_angles,
    rotate,
    scaled_dot_product_attention,
)


def test_literal_attention():
    query = torch.tensor([[[[math.sqrt(2) * math.log(3), 0.0]]]])  # [1, 1, 1, 2]
    key = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]]])
    value = torch.tensor([[[[4.0, 0.0], [0.0, 8.0], [100.0, 100.0]]]])
    mask = torch.tensor([[[[True, True, False]]]])
    context, weights = scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(weights, torch.tensor([[[[0.75, 0.25, 0.0]]]]))
    torch.testing.assert_close(context, torch.tensor([[[[3.0, 2.0]]]]))
    assert weights[0, 0, 0, 2] == 0


def torch_twin(ours: MultiHeadAttention, d_model: int) -> nn.MultiheadAttention:
    twin = nn.MultiheadAttention(d_model, ours.heads, bias=False, batch_first=True)
    parts = (ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight)
    with torch.no_grad():
        twin.in_proj_weight.copy_(torch.cat(parts))
        twin.out_proj.weight.copy_(ours.out_proj.weight)
    return twin


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("queries", ["self", "cross"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_agrees_with_torch(heads, queries, padded, need_weights):
    torch.manual_seed(0)
    ours = MultiHeadAttention(32, heads)
    key_value = torch.randn(3, 7, 32)
    query = key_value if queries == "self" else torch.randn(3, 2, 32)
    mask = torch.ones(3, 7, dtype=torch.bool)
    if padded:
        mask[1, 4:] = False
    expected, expected_weights = torch_twin(ours, 32)(
        query, key_value, key_value, key_padding_mask=~mask, average_attn_weights=False
    )
    context, weights = ours(query, key_value, mask[:, None, None], need_weights=need_weights)
    assert (context - expected).abs().max() <= 1e-6
    if need_weights:
        assert (weights - expected_weights).abs().max() <= 1e-6
        assert (weights.sum(-1) - 1).abs().max() <= 1e-6
        assert (weights[1, :, :, 4:] == 0).all() == padded
    else:
        assert weights is None


@pytest.mark.parametrize("turned", [False, True])
def test_in_half_precision_both_ways_agree_forward_and_back(turned):
    torch.manual_seed(0)
    attention = MultiHeadAttention(32, 2)
    rotary = rotary_angles(7, 16, theta=10_000.0) if turned else None
    x = torch.randn(3, 7, 32)
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3, [True] * 7])[:, None, None]
    found = []
    for half, need_weights in ((False, True), (True, True), (True, False)):
        attention.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            context, _ = attention(x, x, mask, rotary, need_weights=need_weights)
        context.float().square().sum().backward()
        found.append((context.float(), attention.q_proj.weight.grad))
        assert (context.dtype == torch.bfloat16) == half
    for context, gradient in found[1:]:
        torch.testing.assert_close(context, found[0][0], rtol=0, atol=0.02)
        torch.testing.assert_close(gradient, found[0][1], rtol=0, atol=0.02)


def test_weights_are_those_before_dropout():
    torch.manual_seed(0)
    attention = MultiHeadAttention(16, 2, dropout=0.5)
    x = torch.randn(2, 5, 16)
    _, training = attention(x, x)
    _, evaluating = attention.eval()(x, x)
    torch.testing.assert_close(training, evaluating)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20))
def test_rotary_scores_depend_on_distance_alone(first, second, shift):
    cos, sin = rotary_angles(64, 8, 10_000.0)
    generator = torch.Generator().manual_seed(first * 41 + second)
    q, k = torch.randn(2, 8, generator=generator)

    def score(i: int, j: int) -> torch.Tensor:
        return rotate(q, cos[i], sin[i]) @ rotate(k, cos[j], sin[j])

    torch.testing.assert_close(
        score(first, second), score(first + shift, second + shift), atol=1e-4, rtol=1e-4
    )


def test_literal_rotation():
    cos, sin = rotary_angles(2, 4, theta=100.0)  # pairs turn by 1 and by 100^(-1/2) a position
    torch.testing.assert_close(cos[0], torch.ones(4))
    turned = torch.tensor([1.0, 0.1, 1.0, 0.1])
    torch.testing.assert_close(cos[1], turned.cos())
    torch.testing.assert_close(sin[1], turned.sin())
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])  # the pairs (1, 3) and (2, 4)
    quarter = rotate(x, torch.zeros(4), torch.ones(4))
    torch.testing.assert_close(quarter, torch.tensor([[-3.0, -4.0, 1.0, 2.0]]))


def test_queries_and_keys_are_turned_alike():
    torch.manual_seed(0)
    attention, x = MultiHeadAttention(16, 2).eval(), torch.randn(1, 6, 16)
    cos, sin = rotary_angles(40, 8, 10_000.0)
    _, here = attention(x, x, None, (cos[:6], sin[:6]))
    _, shifted = attention(x, x, None, (cos[30:36], sin[30:36]))
    torch.testing.assert_close(here, shifted, atol=1e-5, rtol=1e-4)
    _, unturned = attention(x, x)
    assert not torch.allclose(here, unturned, atol=1e-3)


@pytest.mark.parametrize("need_weights", [True, False])
def test_weights_are_dropped_in_training_alone(need_weights):
    torch.manual_seed(0)
    attention, x = MultiHeadAttention(16, 2, dropout=0.5), torch.randn(1, 6, 16)
    one, other = (attention(x, x, need_weights=need_weights)[0] for _ in range(2))
    assert not torch.allclose(one, other)
    attention.eval()
    one, other = (attention(x, x, need_weights=need_weights)[0] for _ in range(2))
    assert torch.equal(one, other)
