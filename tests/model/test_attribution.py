import pytest
import torch

from model import attribution
from model.attention import MultiHeadAttention
from model.encoder import LayerTrace


def traced(heads: int, length: int) -> tuple[MultiHeadAttention, LayerTrace]:
    torch.manual_seed(heads * 100 + length)
    attention = MultiHeadAttention(16, heads)
    residual = torch.randn(2, length, 16)
    normed = torch.nn.functional.layer_norm(residual, (16,))
    context, weights = attention(normed, normed)
    return attention, LayerTrace(weights, residual, normed, residual + context)


def slow_mixing(attention: MultiHeadAttention, trace: LayerTrace) -> torch.Tensor:
    """ALTI with every vector T_ij written out, [B, S, S, d]."""
    heads, d_head = attention.heads, attention.d_head
    value = attention.v_proj(trace.normed).unflatten(-1, (heads, d_head))  # [B, S, H, D]
    out = attention.out_proj.weight.unflatten(1, (heads, d_head))  # [d, H, D]
    f = torch.einsum("bjhk,dhk->bjhd", value, out)
    t = torch.einsum("bhij,bjhd->bijd", trace.weights, f)
    for i in range(t.size(1)):
        t[:, i, i] += trace.residual[:, i]
    torch.testing.assert_close(t.sum(2), trace.mixed, atol=1e-5, rtol=1e-5)
    y = trace.mixed[:, :, None]
    share = (y.norm(dim=-1) - (y - t).norm(dim=-1)).clamp(min=0)
    return share / share.sum(-1, keepdim=True)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_mixing_agrees_with_vectors_written_out(heads, length):
    attention, trace = traced(heads, length)
    got = attribution.mixing(attention, trace)
    torch.testing.assert_close(got, slow_mixing(attention, trace), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(got.sum(-1), torch.ones(2, length))


def test_literal_evidence():
    weights = torch.tensor([[[[0.25, 0.75]]]])  # one head, one query, two tokens
    value = torch.tensor([[[[4.0, 0.0], [0.0, 8.0]]]])
    direction = torch.tensor([[[1.0, 0.0]], [[0.0, -1.0]]])  # two classes
    got = attribution.evidence(weights, value, direction)
    torch.testing.assert_close(got, torch.tensor([[[1.0, 0.0], [0.0, -6.0]]]))


def test_literal_contributions():
    evidence = torch.tensor([[[1.0], [3.0]]])
    first = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    second = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    # Back through the second layer the tokens change places; then the second shares out a half.
    got = attribution.contributions(evidence, [first, second])
    torch.testing.assert_close(got, torch.tensor([[[3.5], [0.5]]]))
