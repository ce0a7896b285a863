"""What moves the weights: Muon the matrices, AdamW the rest."""

from typing import Any

import torch
from torch import nn

from training.config import TrainConfig


class Optimizers:
    """Muon for the matrices of layers and pooling (Jordan et al. 2024), its steps as long as those
    of AdamW (Liu et al. 2025, section 2.2); AdamW (Loshchilov and Hutter 2019) for the rest.

    Matrices decay; norms, biases and tables do not.
    """

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        hidden: list[nn.Parameter] = []
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in network.named_parameters():
            if parameter.dim() != 2 or name.startswith("embedding"):
                plain.append(parameter)
            elif config.optimizer == "muon" and not name.startswith("head"):
                hidden.append(parameter)
            else:
                decayed.append(parameter)
        rate, decay = config.learning_rate, config.weight_decay
        groups = [
            {"params": decayed, "weight_decay": decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.each: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
        ]
        if hidden:
            self.each.append(
                torch.optim.Muon(
                    hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
                )
            )

    def step(self, rate: float) -> None:
        """Move the weights, at this learning rate."""
        for one in self.each:
            for group in one.param_groups:
                group["lr"] = rate
            one.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for one in self.each:
            one.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        """What a run needs to go on."""
        return [one.state_dict() for one in self.each]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on from what `state_dict` gave."""
        for one, state in zip(self.each, states, strict=True):
            one.load_state_dict(state)
