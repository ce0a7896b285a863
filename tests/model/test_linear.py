import math

import pytest
import torch

from model.linear import (
    AGAIN,
    BEFORE,
    EARLIER,
    LAST,
    NEAR,
    PRIME,
    LinearPart,
    ngram_hashes,
    position_weight,
)
from model.tokenizer import PAD_ID
from tests.networks import own_pairs, random_network

SHAPE = {"classes": 2, "d_model": 24, "heads": 4, "d_ff": 32, "max_tokens": 16, "ngrams": 4096}
SHAPE |= {"ends": 2.0}


def test_a_hash_is_of_a_token_and_those_before_it():
    input_ids = torch.tensor([[5, 7, 5, 7], [7, 5, 0, 0]])
    (pairs, triples), (others, _) = ngram_hashes(input_ids).tolist()
    assert pairs[0] == 5 * LAST % PRIME
    assert pairs[1] == (5 * BEFORE + 7 * LAST) % PRIME
    assert pairs[3] == pairs[1]
    assert others[1] == pairs[2]
    assert others[1] != pairs[1], "order counts"
    assert triples[2] == ((7 * BEFORE + 5 * LAST) % PRIME * EARLIER + 5) % PRIME
    assert triples[3] != triples[1], "that one begins before the text"


@pytest.mark.parametrize("kind", [0, 1])
def test_common_ngrams_seldom_share_a_row(kind):
    common = torch.arange(3, 103)
    ngrams = torch.cartesian_prod(common, common)  # 10,000, as ids of two tokens
    if kind == 1:
        ngrams = torch.cat([ngrams[:, :1], ngrams], dim=1)
    found = (ngram_hashes(ngrams)[:, kind, -1] % 65_536).unique()
    assert len(found) > 9_000  # by chance 9,274


def test_the_largest_ids_stay_within_63_bits():
    largest = 2**31 - 2
    pair = largest * (BEFORE + LAST) % PRIME
    found = ngram_hashes(torch.full((1, 3), largest))[0, :, 2].tolist()
    assert found == [pair, (pair * EARLIER + largest) % PRIME]


def test_an_ngram_has_the_first_of_its_two_rows_that_is_free():
    part = LinearPart(vocab_size=8, ngrams=3, classes=2)
    ids = torch.tensor([[4, 5, 6, 7, 3, 6, 4, 7]])
    assert (part.features(ids)[:, 1:] == PAD_ID).all(), "nobody has one yet"
    hashes = ngram_hashes(ids)[0, 0]
    rows = [(one % 3, one * AGAIN % PRIME % 3) for one in hashes.tolist()]
    first = 0
    moved = next(at for at, (row, other) in enumerate(rows) if at and row == rows[0][0] != other)
    left_out = next(
        at for at, pair in enumerate(rows) if {*pair} <= {rows[0][0], rows[moved][1]} and at > moved
    )
    part.own(hashes[[first, moved, left_out]])
    found = part.features(ids)[0, 1]
    assert found[first] == 8 + rows[first][0]
    assert found[moved] == 8 + rows[moved][1]
    assert found[left_out] == PAD_ID
    part.own(hashes[[moved]])
    assert torch.equal(part.features(ids)[0, 1], found), "and keeps it"


@pytest.fixture
def part() -> LinearPart:
    """Tokens 3 and 4 weigh in for one class; every feature of the texts has the same scale."""
    part = LinearPart(vocab_size=8, ngrams=1000, classes=2)
    for text in ([3, 4, 5], [5, 6, 7]):
        part.own(ngram_hashes(torch.tensor([text])).flatten())
    with torch.no_grad():
        part.scale.weight.fill_(1.0)
        part.scale.weight[PAD_ID] = 0.0
        part.weight.weight.zero_()
        part.weight.weight[3], part.weight.weight[4] = 6.0, -12.0
    return part


def test_literal_shares(part):
    shares = part(torch.tensor([[3, 4, 5, 0]]), torch.tensor([[1, 1, 1, 0]]))
    # Three tokens, pairs and triples, each once: the norm is 3.
    assert shares[..., 0].tolist() == [[2.0, -4.0, 0.0, 0.0]]
    assert (shares[..., 1] == -shares[..., 0]).all()


def test_a_token_said_often_counts_once(part):
    with torch.no_grad():
        part.scale.weight[8:].zero_()  # no n-grams
    often = part(torch.tensor([[3, 3, 3, 4]]), torch.ones(1, 4))[0, :, 0]
    assert torch.allclose(often * 2**0.5, torch.tensor([2.0, 2.0, 2.0, -12.0]))


def test_of_what_is_said_at_the_ends_more_is_heard():
    before, after = torch.tensor([0.0, NEAR, 1e4, 1e4]), torch.tensor([1e4, 1e4, 1e4, 0.0])
    expected = [2.0, 1 + 1 / math.e, 1.0, 3.0]
    assert position_weight(before, after, ends=2.0).tolist() == pytest.approx(expected)
    assert position_weight(before, after, ends=0.0).tolist() == [1.0] * 4


def test_an_occurrence_has_as_much_of_its_feature_as_is_heard_of_it(part):
    part.ends = 2.0
    with torch.no_grad():
        part.scale.weight[8:].zero_()  # no n-grams
    text = torch.tensor([[3, 5, 3, 0, 0]])
    first, between, last = position_weight(torch.arange(3), torch.arange(3).flip(0), 2.0).tolist()
    shares = part(text, (text > 0).long())[0, :, 0]
    norm = math.hypot((first + last) / 2, between)
    expected = [6 * first / 2 / norm, 0.0, 6 * last / 2 / norm, 0.0, 0.0]
    assert shares.tolist() == pytest.approx(expected)


def test_each_token_of_an_ngram_has_an_equal_part_of_what_it_says(part):
    ids = torch.tensor([[5, 6, 7]])
    pairs, triples = part.features(ids)[0, 1:].tolist()
    assert len({*pairs, *triples}) == 6
    with torch.no_grad():
        part.scale.weight[:8].zero_()  # no tokens
        for row, weight in zip((*pairs, *triples), (5.0, 2.0, 0.0, 7.0, 4.0, 9.0), strict=True):
            part.weight.weight[row] = weight
    shares = part(ids, torch.ones_like(ids))[0, :, 0] * 6**0.5
    # The first has no one before it, the second one.
    expected = [5 + 2 / 2 + 7 + 4 / 2 + 9 / 3, 2 / 2 + 4 / 2 + 9 / 3, 9 / 3]
    assert torch.allclose(shares, torch.tensor(expected))


def test_in_each_domain_a_feature_says_its_own_by_how_likely_the_text_is_of_it():
    part = LinearPart(vocab_size=8, ngrams=1000, classes=2, domains=2)
    with torch.no_grad():
        part.scale.weight[1:] = 1.0  # no n-gram has a row
        part.weight.weight[3] = torch.tensor([8.0, -4.0])
        part.prior[:] = torch.tensor([3.0, 1.0]).log()  # of four texts three
        part.domain.weight[5] = torch.tensor([-60.0, 60.0])
        part.domain.weight[6] = torch.tensor([60.0, -60.0])
    texts = torch.tensor([[3, 4, 0, 0], [3, 5, 0, 0], [3, 6, 0, 0], [3, 4, 5, 6]])
    shares = part(texts, (texts > 0).long())[..., 0]
    expected = [(0.75 * 8 - 0.25 * 4) / 2**0.5, -4 / 2**0.5, 8 / 2**0.5, (0.75 * 8 - 1) / 2]
    assert torch.allclose(shares[:, 0], torch.tensor(expected))
    assert (shares[:, 1:] == 0).all(), "which domain it is says nothing by itself"


@pytest.mark.parametrize(("domains", "ends"), [(1, 0.0), (3, 0.0), (3, 2.0)])
@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_shares_are_what_a_sum_over_features_says(length, domains, ends):
    """Slow: every feature of the text by itself."""
    part = LinearPart(vocab_size=8, ngrams=20, classes=3, domains=domains, ends=ends)
    own_pairs(part)
    with torch.no_grad():
        part.scale.weight.uniform_(generator=torch.Generator().manual_seed(1))
        part.scale.weight[PAD_ID] = 0.0
        part.weight.weight.normal_(generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([[3, 4, 3, 4, 5, 3, 4]])[:, :length]
    of_token = part.features(ids)[0]  # [N, S]
    rows = of_token.unique()
    here = torch.arange(length)
    near = position_weight(here, length - 1 - here, ends)
    means = [near[(of_token == row).any(dim=0)].mean() for row in rows]
    values = part.scale.weight[rows, 0] * torch.stack(means)
    expected = (values / values.norm()) @ part.weight.weight[rows]
    if domains > 1:
        with torch.no_grad():
            part.domain.weight.normal_(generator=torch.Generator().manual_seed(3))
            part.prior.normal_(generator=torch.Generator().manual_seed(4))
        said = part.domain.weight[ids.unique()].sum(dim=0) / len(ids.unique()) ** 0.5
        expected = (said + part.prior).softmax(0) @ expected.reshape(domains, 2)
    found = part(ids, torch.ones_like(ids))
    assert found.shape == (1, length, 3)
    assert torch.allclose(found.sum(dim=1)[0, :2], expected, atol=1e-6)
    assert torch.allclose(found.sum(dim=2), torch.zeros(1), atol=1e-6), "one class is what is left"


@pytest.mark.parametrize(("layers", "domains"), [(0, 1), (2, 1), (2, 2)])
def test_padding_and_company_change_nothing(layers, domains):
    network = random_network(layers=layers, domains=domains, **SHAPE).eval()
    alone = network.explain(torch.tensor([[5, 7, 9]]), torch.ones(1, 3))
    ids = torch.tensor([[8, 4, 6, 3, 11], [5, 7, 9, 0, 0]])
    company = network.explain(ids, (ids > 0).long())
    assert torch.allclose(alone.logits[0], company.logits[1], atol=1e-6)
    assert torch.allclose(alone.evidence[0], company.evidence[1, :3], atol=1e-6)
    assert (company.evidence[1, 3:] == 0).all()
    assert (company.contributions[1, 3:] == 0).all()


@pytest.mark.parametrize("domains", [1, 2])
def test_the_account_with_a_linear_part_is_complete(domains):
    network = random_network(layers=2, domains=domains, **SHAPE).eval()
    ids = torch.tensor([[8, 4, 6, 4, 11], [5, 7, 9, 0, 0]])
    mask = (ids > 0).long()
    explanation = network.explain(ids, mask)
    assert torch.allclose(network(ids, mask), explanation.logits, atol=1e-5)
    for shares in (explanation.evidence, explanation.contributions):
        total = shares.sum(dim=1) + network.head.bias
        assert torch.allclose(total, explanation.logits, atol=1e-5)
    without = random_network(layers=2, **SHAPE | {"ngrams": 0}).eval()
    assert (without(ids, mask) - explanation.logits).abs().max() > 0.05, "it does say something"
