import pytest
import torch

from model.attention import rotary_angles
from model.config import ModelConfig
from model.encoder import Encoder, FeedForward, TextDropout

CONFIG = ModelConfig(
    vocab_size=8, classes=2, d_model=16, layers=3, heads=2, d_ff=24, max_tokens=8, dropout=0.5
)
ROTARY = rotary_angles(6, 8, 10_000.0)
EVERYONE = torch.ones(2, 1, 1, 6, dtype=torch.bool)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(CONFIG).eval()


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))


def test_literal_feed_forward():
    feed_forward = FeedForward(1, 2)
    with torch.no_grad():
        feed_forward.gate_proj.weight.copy_(torch.tensor([[100.0], [-100.0]]))
        feed_forward.up_proj.weight.copy_(torch.tensor([[2.0], [3.0]]))
        feed_forward.down_proj.weight.copy_(torch.tensor([[0.5, 7.0]]))
        # At 1 the first gate is open (100 · 2 · 0.5), the second shut; at -1 the other way round.
        got = feed_forward(torch.tensor([[1.0], [-1.0]]))
    torch.testing.assert_close(got, torch.tensor([[100.0], [-2100.0]]))


def test_a_gate_that_is_half_open_is_gelu():
    feed_forward = FeedForward(1, 1)
    with torch.no_grad():
        for matrix in feed_forward.parameters():
            matrix.fill_(1.0)
        got = feed_forward(torch.tensor([[1.0], [-0.5]]))
    # x · Φ(x) · x, by a table of the normal distribution.
    torch.testing.assert_close(got, torch.tensor([[0.8413], [0.25 * 0.3085]]), atol=1e-4, rtol=0)


def test_tracing_changes_nothing_but_the_trace(encoder, states):
    plain, nothing = encoder(states, EVERYONE, ROTARY)
    traced, traces = encoder(states, EVERYONE, ROTARY, trace=True)
    assert (plain - traced).abs().max() <= 1e-5
    assert (len(nothing), len(traces)) == (0, 3)


def test_a_trace_holds_what_entered_and_what_left_the_attention(encoder, states):
    _, traces = encoder(states, EVERYONE, ROTARY, trace=True)
    assert torch.equal(traces[0].residual, states)
    for layer, trace in zip(encoder.layers, traces, strict=True):
        torch.testing.assert_close(trace.normed, layer.attention_norm(trace.residual))
        context, weights = layer.attention(trace.normed, trace.normed, EVERYONE, ROTARY)
        torch.testing.assert_close(trace.weights, weights)
        torch.testing.assert_close(trace.mixed, trace.residual + context)
    for layer, below, above in zip(encoder.layers, traces, traces[1:], strict=False):
        fed = below.mixed + layer.feed_forward(layer.feed_forward_norm(below.mixed))
        torch.testing.assert_close(above.residual, fed)


def test_the_last_norm_has_no_offset(encoder, states):
    out, _ = encoder(states, EVERYONE, ROTARY)
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(-1, correction=0), torch.ones(2, 6), atol=1e-3, rtol=0)


def test_masked_tokens_are_seen_by_no_other(encoder, states):
    mask = EVERYONE.clone()
    mask[:, :, :, 4:] = False
    changed = states.clone()
    changed[:, 4:] += 5
    before, _ = encoder(states, mask, ROTARY)
    after, _ = encoder(changed, mask, ROTARY)
    assert torch.equal(before[:, :4], after[:, :4])
    seen, _ = encoder(changed, EVERYONE, ROTARY)
    assert not torch.allclose(before[:, :4], seen[:, :4])


def test_order_matters_through_the_rotation_alone(encoder, states):
    turned = states.flip(1)
    still = tuple(part[:1].expand(6, -1) for part in ROTARY)  # every token at position 0
    torch.testing.assert_close(
        encoder(turned, EVERYONE, still)[0],
        encoder(states, EVERYONE, still)[0].flip(1),
        atol=1e-5,
        rtol=1e-5,
    )
    moved = encoder(turned, EVERYONE, ROTARY)[0] - encoder(states, EVERYONE, ROTARY)[0].flip(1)
    assert moved.abs().max() > 1e-3


def test_dropout_is_for_training_alone(encoder, states):
    first, second = (encoder(states, EVERYONE, ROTARY)[0] for _ in range(2))
    assert torch.equal(first, second)
    encoder.train()
    first, second = (encoder(states, EVERYONE, ROTARY)[0] for _ in range(2))
    assert not torch.allclose(first, second)


def test_nothing_but_matrices_and_scales_is_learnt(encoder):
    assert not [name for name, _ in encoder.named_parameters() if name.endswith("bias")]
    # Per layer 4 · 16², 3 · 16 · 24 and two norms of 16; one more norm at the end.
    assert sum(p.numel() for p in encoder.parameters()) == 3 * (1024 + 1152 + 32) + 16


def test_dropout_takes_the_same_features_from_all_tokens_of_a_text():
    torch.manual_seed(0)
    dropout, ones = TextDropout(0.5), torch.ones(3, 5, 64)
    dropped = dropout(ones)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped, dropped[:, :1].expand(3, 5, 64))
    assert not torch.equal(dropped[0], dropped[1])
    assert dropout.eval()(ones) is ones
