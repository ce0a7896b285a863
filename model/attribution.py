"""The exact account of an answer: which token brought how much of each logit.

Two pure functions of the forward pass. `evidence` splits the logits over the tokens in context,
where the head is linear and nothing is approximated. `propagate` hands it down one layer, from each
token in context to those that it was made of. What it hands on sums to what it was given, so
through all layers evidence moves between tokens and none is lost.
"""

from torch import Tensor

from model.attention import MultiHeadAttention
from model.encoder import LayerTrace

# Avoids division by zero: a token whose vector is 0 keeps its own evidence.
TINY = 1e-9


def evidence(weights: Tensor, value: Tensor, direction: Tensor) -> Tensor:
    """Signed share of each token in each logit, [B, S, C].

    weights [B, H, 1, S] and value [B, H, S, D] of the pooling attention; direction [C, H, D], the
    linear head seen through the output projection. evidence[j, c] = Σ_h α_hj ⟨v_hj, w_ch⟩, so the
    sum over j plus the bias is the logit, exactly.
    """
    shares = value @ direction.permute(1, 2, 0)  # [B, H, S, C]
    return (weights.transpose(-2, -1) * shares).sum(dim=1)  # [B, S, C]


def propagate(evidence: Tensor, attention: MultiHeadAttention, trace: LayerTrace) -> Tensor:
    """Evidence of the tokens after a layer's attention, handed to those before it, [B, S, C].

    The token after is a sum, y_i = Σ_j T_ij with T_ij = Σ_h A_hij f_hj + δ_ij x_i. Of its evidence
    token j gets ⟨T_ij, y_i⟩ / ‖y_i‖²: how much of y_i it makes up along y_i (Mickus, Paperno and
    Constant 2022). Such shares may be negative, and over j they sum to 1 whatever the vectors are.

    The vectors T_ij are never formed: with f_hj = W_h v_hj, ⟨f_hj, y_i⟩ = ⟨v_hj, W_hᵀ y_i⟩, which
    costs what attention scores do.
    """
    weights, residual, normed, mixed = trace
    v = attention.split(attention.v_proj(normed))  # [B, H, S, D]
    toward = attention.split(mixed @ attention.out_proj.weight)  # [B, H, S, D], W_hᵀ y_i
    through = (weights * (toward @ v.mT)).sum(dim=1)  # [B, i, j], ⟨Σ_h A_hij f_hj, y_i⟩
    past = (residual * mixed).sum(dim=-1, keepdim=True) + TINY  # [B, i, 1], ⟨x_i, y_i⟩
    density = evidence / (mixed.square().sum(dim=-1, keepdim=True) + TINY)  # [B, i, C]
    return through.mT @ density + past * density
