import pytest
import torch

from model.bigrams import AFTER, BEFORE, PRIME, BigramEmbedding, pair_rows
from model.classifier import TextClassifier
from model.config import ModelConfig
from tests.networks import random_network


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


def test_what_it_adds():
    embedding = BigramEmbedding(rows=8, width=2, d_model=3)
    with torch.no_grad():
        embedding.table.weight.copy_(torch.arange(16.0).view(8, 2))
        embedding.widen.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    row = pair_rows(torch.tensor([[4, 6]]), 8)[0, 1].item()
    expected = torch.tensor([2.0 * row, 2.0 * row + 1, 4.0 * row + 1])
    assert torch.equal(embedding(torch.tensor([[4, 6]]))[0, 1], expected)


def test_a_network_begins_as_if_there_were_none():
    config = ModelConfig(vocab_size=60, classes=2, layers=1, bigrams=64)
    network = TextClassifier(config).eval()
    input_ids = torch.tensor([[5, 7, 9]])
    assert (network.bigrams(input_ids) == 0).all()


@pytest.mark.parametrize("layers", [0, 2])
def test_padding_and_company_change_no_bit_of_the_embedding(layers):
    network = random_network(
        classes=2, d_model=24, layers=layers, heads=4, d_ff=32, max_tokens=16, bigrams=64
    )
    alone = torch.tensor([[5, 7, 9]])
    company = torch.tensor([[8, 4, 6, 3, 11], [5, 7, 9, 0, 0]])
    assert torch.equal(network._embed(alone)[0], network._embed(company)[1, :3])
