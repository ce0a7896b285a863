"""The exact account of an answer: which token brought how much of each logit.

Two pure functions of the forward pass. `evidence` splits the logits over the tokens in context,
where the head is linear and nothing is approximated. `mixing` says, layer by layer, how much of
each token in context comes from which token below; its rows sum to 1, so carrying the evidence
down through the layers (`contributions`) moves shares between tokens and loses none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.attention import MultiHeadAttention
from model.encoder import LayerTrace


def evidence(weights: Tensor, value: Tensor, direction: Tensor) -> Tensor:
    """Signed share of each token in each logit, [B, S, C].

    weights [B, H, 1, S] and value [B, H, S, D] of the pooling attention; direction [C, H, D], the
    linear head seen through the output projection. evidence[j, c] = Σ_h α_hj ⟨v_hj, w_ch⟩, so the
    sum over j plus the bias is the logit, exactly.
    """
    shares = value @ direction.permute(1, 2, 0)  # [B, H, S, C]
    return (weights.transpose(-2, -1) * shares).sum(dim=1)  # [B, S, C]


def mixing(attention: MultiHeadAttention, trace: LayerTrace) -> Tensor:
    """How much of each token after a layer's attention comes from each token before it, [B, S, S].

    ALTI (Ferrando, Gállego and Costa-jussà 2022, equations 6 to 8) with the Euclidean distance: the
    token after, y_i = Σ_j T_ij with T_ij = Σ_h A_hij f_hj + δ_ij x_i, takes from token j the more
    the nearer T_ij alone comes to it, max(0, ‖y_i‖ - ‖y_i - T_ij‖). Rows are scaled to sum to 1.

    The vectors T_ij are never formed. With f_hj = W_h v_hj, ⟨T_ij, y_i⟩ is
    Σ_h A_hij ⟨v_hj, W_hᵀ y_i⟩ + δ_ij ⟨x_i, y_i⟩, which costs what attention scores do. With the
    Gram matrix G_j = ⟨f_hj, f_h'j⟩ of Kobayashi et al. 2021, ‖T_ij‖² is
    Σ_hh' A_hij A_h'ij G_j + δ_ij (2 Σ_h A_hii ⟨f_hi, x_i⟩ + ‖x_i‖²): S·S·H² numbers in place of
    S·S·d.
    """
    weights, residual, normed, mixed = trace
    out = attention.out_proj.weight  # [d, d], d = H·D on the side of the values
    v = attention.split(attention.v_proj(normed))  # [B, H, S, D]

    through = out.unflatten(1, (attention.heads, attention.d_head)).permute(1, 2, 0)  # [H, D, d]
    f = (v @ through).transpose(1, 2)  # [B, S, H, d], the transformed values
    gram = f @ f.transpose(-2, -1)  # [B, S, H, H]
    toward = attention.split(mixed @ out) @ v.transpose(-2, -1)  # [B, H, i, j], ⟨f_hj, y_i⟩
    # ‖T_ij‖² - 2 ⟨T_ij, y_i⟩ = Σ_h A_hij (Σ_h' G_j A_h'ij - 2 ⟨f_hj, y_i⟩), but for the diagonal.
    a = weights.permute(0, 3, 1, 2)  # [B, j, H, i]
    beside = (a * (gram @ a - 2 * toward.permute(0, 3, 1, 2))).sum(dim=2)  # [B, j, i]

    own_weight = weights.diagonal(dim1=-2, dim2=-1)  # [B, H, S]
    own_inner = (attention.split(residual @ out) * v).sum(dim=-1)  # [B, H, S], ⟨f_hi, x_i⟩
    own = 2 * (own_weight * own_inner).sum(dim=1)  # [B, S]
    own = own + (residual * (residual - 2 * mixed)).sum(dim=-1)
    on_diagonal = torch.eye(weights.size(-1), dtype=weights.dtype, device=weights.device)
    beside = beside.transpose(1, 2) + on_diagonal * own[:, :, None]  # [B, i, j]

    length = mixed.square().sum(dim=-1)[:, :, None]  # [B, i, 1], ‖y_i‖²
    distance = (length + beside).clamp(min=0).sqrt()
    # What is nowhere near keeps a trace, so that no row is empty; a masked token's weight is 0
    # and so are its T_ij and its share.
    seen = (weights.sum(dim=1) > 0).to(weights.dtype)  # [B, i, j]
    share = (length.sqrt() - distance).clamp(min=0) + 1e-9 * seen
    return share / share.sum(dim=-1, keepdim=True)


def contributions(evidence: Tensor, mixings: Sequence[Tensor]) -> Tensor:
    """Evidence carried back to the words, [B, S, C]: evidence · C^L ⋯ C^1 over the token axis.

    evidence [B, S, C]; mixings from first layer to last, each [B, S, S] with rows that sum to 1,
    so the sum over tokens is what it was: completeness survives.
    """
    for mix in reversed(mixings):
        evidence = mix.transpose(1, 2) @ evidence
    return evidence
