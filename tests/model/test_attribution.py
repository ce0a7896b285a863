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


def slowly_carried(
    evidence: torch.Tensor, attention: MultiHeadAttention, trace: LayerTrace
) -> torch.Tensor:
    """With every vector T_ij written out, [B, S, S, d]."""
    heads, d_head = attention.heads, attention.d_head
    value = attention.v_proj(trace.normed).unflatten(-1, (heads, d_head))  # [B, S, H, D]
    out = attention.out_proj.weight.unflatten(1, (heads, d_head))  # [d, H, D]
    f = torch.einsum("bjhk,dhk->bjhd", value, out)
    t = torch.einsum("bhij,bjhd->bijd", trace.weights, f)
    for i in range(t.size(1)):
        t[:, i, i] += trace.residual[:, i]
    torch.testing.assert_close(t.sum(2), trace.mixed, atol=1e-5, rtol=1e-5)
    y = trace.mixed[:, :, None]
    share = (t * y).sum(-1) / y.square().sum(-1)  # [B, i, j]
    torch.testing.assert_close(share.sum(-1), torch.ones(t.shape[:2]))
    return share.transpose(1, 2) @ evidence


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("classes", [2, 5])
def test_evidence_is_carried_as_vectors_written_out_say(heads, length, classes):
    attention, trace = traced(heads, length)
    evidence = torch.randn(2, length, classes)
    got = attribution.propagate(evidence, attention, trace)
    expected = slowly_carried(evidence, attention, trace)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(got.sum(1), evidence.sum(1), atol=2e-5, rtol=1e-4)


def test_a_token_of_length_0_keeps_its_evidence():
    attention, trace = traced(heads=2, length=3)
    nothing = torch.zeros(2, 3, 16)
    evidence = torch.randn(2, 3, 2)
    got = attribution.propagate(
        evidence, attention, LayerTrace(trace.weights, nothing, nothing, nothing)
    )
    torch.testing.assert_close(got, evidence)


def test_literal_evidence():
    weights = torch.tensor([[[[0.25, 0.75]]]])  # one head, one query, two tokens
    value = torch.tensor([[[[4.0, 0.0], [0.0, 8.0]]]])
    direction = torch.tensor([[[1.0, 0.0]], [[0.0, -1.0]]])  # two classes
    got = attribution.evidence(weights, value, direction)
    torch.testing.assert_close(got, torch.tensor([[[1.0, 0.0], [0.0, -6.0]]]))


def test_literal_carrying():
    """One head that copies; the second token looks at the first, the first at itself."""
    attention = MultiHeadAttention(2, 1)
    with torch.no_grad():
        attention.v_proj.weight.copy_(torch.eye(2))
        attention.out_proj.weight.copy_(torch.eye(2))
    residual = torch.tensor([[[1.0, 0.0], [-1.0, 2.0]]])
    weights = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    context = residual[:, [0, 0]]
    trace = LayerTrace(weights, residual, residual, residual + context)
    got = attribution.propagate(torch.tensor([[[1.0], [3.0]]]), attention, trace)
    # The first is twice itself. The second is (0, 2): all its own, for the first is across it.
    torch.testing.assert_close(got, torch.tensor([[[1.0], [3.0]]]))
    turned = residual.clone()
    turned[0, 1] = torch.tensor([1.0, 0.0])
    trace = LayerTrace(weights, turned, residual, turned + context)
    got = attribution.propagate(torch.tensor([[[1.0], [3.0]]]), attention, trace)
    torch.testing.assert_close(got, torch.tensor([[[2.5], [1.5]]]))  # half of the second's
