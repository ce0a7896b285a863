import pytest
import torch

from model.classifier import TextClassifier
from model.config import ModelConfig
from training.config import TrainConfig
from training.loop.optimizers import Optimizers


def small_network() -> TextClassifier:
    torch.manual_seed(0)
    shape = {"vocab_size": 20, "classes": 2, "d_model": 8, "heads": 2, "d_ff": 8}
    return TextClassifier(ModelConfig(**shape, layers=1, max_tokens=8, ngrams=0))


def moved(config: TrainConfig, *steps: float) -> dict[str, torch.Tensor]:
    """By how much each weight of a small network moves, by its name, where all slopes are 1."""
    network = small_network()
    before = {name: of.detach().clone() for name, of in network.named_parameters()}
    optimizers = Optimizers(network, config)
    for rate in steps:
        optimizers.zero_grad()
        sum(parameter.sum() for parameter in network.parameters()).backward()
        optimizers.step(rate)
    return {name: of.detach() - before[name] for name, of in network.named_parameters()}


def test_matrices_move_as_a_whole_and_tables_number_by_number():
    alone = TrainConfig(optimizer="adamw", learning_rate=0.01, weight_decay=0)
    both = alone.model_copy(update={"optimizer": "muon"})
    by_adamw, by_muon = moved(alone, 0.01), moved(both, 0.01)
    for name, change in by_muon.items():
        of_layers = change.dim() == 2 and name.startswith(("encoder", "pooling"))
        assert torch.equal(change, by_adamw[name]) != of_layers, name
        if of_layers:  # slopes of rank 1, so one direction; its length is 0.68 to 1.13 times right
            first, *others = torch.linalg.svdvals(change)
            assert 0.67 < first / (0.01 * 0.2 * 8**0.5) < 1.14, name
            assert max(others) < 1e-3 * first, name


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_weight_goes_by_the_rate_of_the_step(kind):
    config = TrainConfig(optimizer=kind, learning_rate=0.01)
    still = moved(config, 0.0)
    assert all(not change.any() for change in still.values())
    assert all(change.any() for change in moved(config, 0.0, 0.01).values())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_nothing_pulls_at_shrinks_but_for_tables_and_scales(optimizer):
    network = small_network()
    before = {name: of.detach().clone() for name, of in network.named_parameters()}
    config = TrainConfig(optimizer=optimizer, learning_rate=0.1, weight_decay=0.5)
    optimizers = Optimizers(network, config)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step(0.1)
    shrunk = {
        name: not torch.equal(of.detach(), before[name]) for name, of in network.named_parameters()
    }
    for name, did in shrunk.items():
        if name.endswith("_proj.weight") or name == "head.weight":
            assert did, name
            torch.testing.assert_close(
                network.get_parameter(name).detach(), before[name] * 0.95, atol=1e-6, rtol=1e-5
            )
        if name == "embedding.weight" or "norm" in name or name == "head.bias":
            assert not did, name
