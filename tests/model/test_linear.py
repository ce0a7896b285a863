import pytest
import torch

from model.linear import AFTER, BEFORE, PRIME, LinearPart, pair_rows
from tests.networks import random_network

SHAPE = {"classes": 2, "d_model": 24, "heads": 4, "d_ff": 32, "max_tokens": 16, "pairs": 64}


def test_a_row_is_chosen_by_a_token_and_the_one_before_it():
    input_ids = torch.tensor([[5, 7, 5, 7], [7, 5, 0, 0]])
    first, second = pair_rows(input_ids, 1000).tolist()
    assert first[0] == 5 * AFTER % PRIME % 1000
    assert first[1] == (5 * BEFORE + 7 * AFTER) % PRIME % 1000
    assert first[3] == first[1]
    assert second[1] == first[2]
    assert second[1] != first[1], "order counts"


def test_pairs_of_common_tokens_seldom_share_a_row():
    common = torch.arange(3, 103)
    pairs = torch.cartesian_prod(common, common)  # 10,000, as ids of two tokens
    found = pair_rows(pairs, 65_536)[:, 1].unique()
    assert len(found) > 9_000  # by chance 9,274


def test_the_largest_ids_stay_within_63_bits():
    largest = torch.tensor([[2**31 - 2, 2**31 - 2]])
    expected = ((2**31 - 2) * (BEFORE + AFTER)) % PRIME % 99
    assert pair_rows(largest, 99).tolist()[0][1] == expected


@pytest.fixture
def part() -> LinearPart:
    """Tokens 3 and 4 and any pair weigh in for one class; everything is as rare as the next."""
    part = LinearPart(vocab_size=8, pairs=16, classes=1)
    with torch.no_grad():
        part.idf.weight.fill_(1.0)
        part.weight.weight.zero_()
        part.weight.weight[3], part.weight.weight[4] = 2.0, -4.0
    return part


def test_literal_shares(part):
    shares = part(torch.tensor([[3, 4, 0]]), torch.tensor([[1, 1, 0]]))
    # Two tokens and two pairs, each once: the length is √4.
    assert shares[..., 0].tolist() == [[1.0, -2.0, 0.0]]


def test_a_token_said_often_counts_less_each_time(part):
    often = torch.tensor([[3, 3, 3, 3]])
    with torch.no_grad():
        part.idf.weight[8:].zero_()  # no pairs
    shares = part(often, torch.ones_like(often))
    assert torch.allclose(shares[..., 0], torch.full((1, 4), 0.5)), (
        "a text of one word has length 1"
    )


def test_each_token_of_a_pair_has_half_of_what_it_says(part):
    ids = torch.tensor([[5, 6, 7]])
    first, second, third = (8 + pair_rows(ids, 16)[0]).tolist()
    assert len({first, second, third}) == 3
    with torch.no_grad():
        part.idf.weight[:8].zero_()  # no tokens
        part.weight.weight[first], part.weight.weight[second] = 6.0, 2.0
    shares = part(ids, torch.ones_like(ids))[0, :, 0] * 3**0.5
    assert torch.allclose(shares, torch.tensor([7.0, 1.0, 0.0])), "the first has no one before it"


@pytest.mark.parametrize("layers", [0, 2])
def test_padding_and_company_change_nothing(layers):
    network = random_network(layers=layers, **SHAPE).eval()
    alone = network.explain(torch.tensor([[5, 7, 9]]), torch.ones(1, 3))
    ids = torch.tensor([[8, 4, 6, 3, 11], [5, 7, 9, 0, 0]])
    company = network.explain(ids, (ids > 0).long())
    assert torch.allclose(alone.logits[0], company.logits[1], atol=1e-6)
    assert torch.allclose(alone.evidence[0], company.evidence[1, :3], atol=1e-6)
    assert (company.evidence[1, 3:] == 0).all()
    assert (company.contributions[1, 3:] == 0).all()


def test_the_account_with_a_linear_part_is_complete():
    network = random_network(layers=2, **SHAPE).eval()
    ids = torch.tensor([[8, 4, 6, 4, 11], [5, 7, 9, 0, 0]])
    mask = (ids > 0).long()
    explanation = network.explain(ids, mask)
    assert torch.allclose(network(ids, mask), explanation.logits, atol=1e-5)
    for shares in (explanation.evidence, explanation.contributions):
        total = shares.sum(dim=1) + network.head.bias
        assert torch.allclose(total, explanation.logits, atol=1e-5)
    without = random_network(layers=2, **SHAPE | {"pairs": 0}).eval()
    assert (without(ids, mask) - explanation.logits).abs().min() > 1e-3, "it does say something"
