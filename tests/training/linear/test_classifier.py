import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from model.config import ModelConfig
from model.linear import AGAIN, MARKS, NOBODY, PRIME, LinearPart, ngram_hashes, position_weight
from model.tokenizer import Encoding
from training.data.batches import Dataset
from training.evaluation.metrics import predict
from training.linear.classifier import (
    OWN,
    LinearClassifier,
    choose_ngrams,
    family_features,
    feature_scale,
    features,
)

VOCABULARY = 30


def rows(targets: np.ndarray, seed: int = 0) -> Dataset:
    """Texts whose class shows in some of their tokens."""
    generator = np.random.default_rng(seed)
    encodings = []
    for target in targets:
        drawn = generator.integers(3, VOCABULARY, generator.integers(2, 20))
        own = 3 + int(target.argmax())
        encodings.append(Encoding(np.append(drawn, [own, own]), None, False))
    return Dataset.encode(encodings, targets.astype(np.float32))


def config(classes: int, ngrams: int = 50_000, domains: int = 1, ends: float = 0.0) -> ModelConfig:
    shape = {"classes": classes, "ngrams": ngrams, "domains": domains, "ends": ends}
    return ModelConfig(vocab_size=VOCABULARY, max_tokens=64, **shape)


@pytest.mark.parametrize(("classes", "ends"), [(2, 0.0), (3, 0.0), (2, 1.5)])
def test_it_answers_as_the_library_does_over_the_same_features(classes, ends):
    dataset = rows(np.eye(classes)[np.arange(60) % classes])
    linear = LinearClassifier.fit(dataset, config(classes, ends=ends), 1.0)
    present, near = features(dataset, linear.part)
    values = normalize(near.multiply(feature_scale(present, dataset.targets)).tocsr())
    library = LogisticRegression(solver="newton-cg", tol=1e-6)
    library.fit(values, dataset.labels)
    logits = predict(linear, dataset, torch.device("cpu"))
    probabilities = torch.from_numpy(logits).softmax(dim=1).numpy()
    expected = library.predict_proba(values)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert (logits.argmax(1) == dataset.labels).mean() > 0.9


def test_features_are_tokens_and_ngrams_of_up_to_three():
    dataset = rows(np.eye(2)[np.arange(20) % 2])
    present, _ = features(dataset, LinearClassifier.fit(dataset, config(2), 1.0).part)
    texts = [" ".join(f"w{i}" for i in dataset.ids[a:b]) for a, b in _spans(dataset)]
    words = CountVectorizer(ngram_range=(1, 3), binary=True).fit_transform(texts)
    # The library has no n-grams with the beginning of a text: a pair and two triples.
    assert (present.sum(axis=1) == words.sum(axis=1).A1 + 3).all()
    assert set(present.data) == {1}


def test_what_is_heard_of_a_feature_is_the_mean_over_where_it_is():
    dataset = rows(np.eye(2)[np.arange(20) % 2])
    _, near = features(dataset, LinearPart(VOCABULARY, 50, 2, ends=1.5))
    for row, (start, end) in enumerate(_spans(dataset)):
        here = torch.arange(end - start)
        of_token = position_weight(here, here.flip(0), 1.5).numpy()
        for token in np.unique(dataset.ids[start:end]):
            mean = of_token[dataset.ids[start:end] == token].mean()
            assert near[row, token] == pytest.approx(mean, rel=1e-6)


def test_a_few_tokens_at_once_are_found_as_all_together(monkeypatch):
    dataset = rows(np.eye(2)[np.arange(20) % 2])
    part = LinearPart(VOCABULARY, 50, 2)
    hashes = choose_ngrams(dataset)
    part.own(hashes)
    whole = features(dataset, part)
    monkeypatch.setattr("training.linear.classifier.AT_ONCE", 7)
    assert choose_ngrams(dataset).tolist() == hashes.tolist()
    for found, expected in zip(features(dataset, part), whole, strict=True):
        assert (found != expected).nnz == 0


def test_rows_go_to_the_ngrams_that_tell_most():
    """Slow: each n-gram by itself, and those that have its two rows beside it."""
    dataset = rows(np.eye(2)[np.arange(40) % 2])
    seen: dict[int, np.ndarray] = {}
    for (start, end), target in zip(_spans(dataset), dataset.targets, strict=True):
        ids = torch.from_numpy(dataset.ids[start:end].astype(np.int64))[None]
        for ngram in set(ngram_hashes(ids).flatten().tolist()):
            seen[ngram] = seen.get(ngram, 0) + target
    surprise = {ngram: np.ptp(count) ** 2 / (count.sum() + 2) for ngram, count in seen.items()}
    part = LinearPart(VOCABULARY, 50, 2)
    part.own(choose_ngrams(dataset))
    has: dict[int, int] = {}
    for ngram in seen:
        again = ngram * AGAIN % PRIME
        if part.owner[ngram % 50, 0] == ngram // 50 % MARKS:
            has[ngram % 50] = ngram
        elif part.owner[again % 50, 0] == NOBODY - 1 - again // 50 % MARKS:
            has[again % 50] = ngram
    assert sorted(has) == list(range(50)), "of so many n-grams none is left free"
    assert len(set(has.values())) == 50
    assert any(row != ngram % 50 for row, ngram in has.items())
    for ngram in seen:
        for row in (ngram % 50, ngram * AGAIN % PRIME % 50):
            if has[row] == ngram:
                break
            assert surprise[ngram] <= surprise[has[row]] + 1e-9


def test_what_tells_nothing_of_the_class_has_no_scale():
    present = csr_array(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]], "f4"))
    targets = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]], "f4")  # none of a third class
    # Seen once more in each: 3, 3, 1 of 8 and 3, 1, 2 of 7; the last of no row.
    expected = np.sqrt(np.abs(np.log([7 / 8, 3 * 7 / 8, 7 / 16, 1])) / 2)
    np.testing.assert_allclose(feature_scale(present, targets), expected, rtol=1e-6)


def test_a_graded_row_counts_in_each_class():
    graded = rows(np.array([[0.75, 0.25]] * 4))
    linear = LinearClassifier.fit(graded, config(2), 100.0)
    share = torch.from_numpy(predict(linear, graded, torch.device("cpu"))).softmax(dim=1)
    assert torch.allclose(share, torch.tensor([0.75, 0.25]), atol=0.01)


def test_a_class_without_rows_is_never_the_answer():
    dataset = rows(np.eye(3)[np.arange(20) % 2])
    linear = LinearClassifier.fit(dataset, config(3), 1.0)
    assert (linear.part.weight.weight.sum(dim=1) == 0).all(), "nothing is left for the third"
    logits = torch.from_numpy(predict(linear, dataset, torch.device("cpu")))
    assert (logits.softmax(dim=1)[:, 2] < 1e-9).all()


def of_two_domains(seed: int = 0) -> tuple[Dataset, np.ndarray]:
    """Rows of two domains, told by a token of each, in which one word means the opposite; a few
    rows of none, in which it means what it does in the second."""
    generator = np.random.default_rng(seed)
    domain = np.repeat([0, 1, 2], [150, 150, 10])  # 2: none
    good = np.arange(len(domain)) % 2
    word = np.where(domain == 0, good, 1 - good)
    drawn = generator.integers(10, VOCABULARY, (len(domain), 4))
    drawn[:, 0], drawn[:, 3] = 5 + domain, 3 + word  # too far apart for an n-gram
    encodings = [Encoding(ids, None, False) for ids in drawn]
    dataset = Dataset.encode(encodings, np.eye(2, dtype=np.float32)[good])
    return dataset, np.eye(3, 2, dtype=np.float32)[domain]


def test_a_word_may_mean_something_else_in_each_domain():
    dataset, domains = of_two_domains()
    linear = LinearClassifier.fit(dataset, config(2, domains=2), 10.0, domains)
    plain = LinearClassifier.fit(dataset, config(2), 10.0)
    others, _ = of_two_domains(seed=1)
    right = [
        (predict(one, others, torch.device("cpu")).argmax(1) == others.labels)[:300].mean()
        for one in (linear, plain)
    ]
    assert right[0] > 0.8
    assert right[1] < 0.6
    said = linear.part.weight.weight[3:5]
    assert (said.sign() == torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).all()


def test_what_it_learns_of_domains_is_what_the_library_does_over_features_twice():
    dataset, domains = of_two_domains()
    linear = LinearClassifier.fit(dataset, config(2, domains=2), 1.0, domains)
    present, _ = features(dataset, linear.part)
    values = normalize(present.multiply(feature_scale(present, dataset.targets)).tocsr()).toarray()
    twice = np.concatenate([values, *(OWN * one[:, None] * values for one in domains.T)], axis=1)
    library = LogisticRegression(solver="newton-cg", tol=1e-9)
    library.fit(twice.astype(np.float64), dataset.labels)
    shared, *own = np.split(library.coef_[0], 3)
    for column, one in enumerate(own):
        found = -2 * linear.part.weight.weight[:, column].numpy()  # of the first of two classes
        np.testing.assert_allclose(found, shared + OWN * one, atol=1e-5)


def test_of_a_large_domain_and_a_small_one_each_counts_alike():
    dataset, domains = of_two_domains()
    few = np.flatnonzero(domains[:, 1])[4:]
    domains[few] = 0
    part = LinearClassifier.fit(dataset, config(2, domains=2), 10.0, domains).part
    for token, domain in ((5, 0), (6, 1)):
        text = torch.tensor([[token, 12, 13]])
        likely = part._likely(text, torch.ones(1, 3))
        assert likely[0, domain] > 0.7


def test_what_it_says_comes_apart_by_domain_and_language():
    dataset, domains = of_two_domains()
    languages = np.where(np.arange(len(dataset)) % 3, "en", "pt")
    linear = LinearClassifier.fit(dataset, config(2, domains=2), 10.0, domains, languages)
    assert linear.spoken.shape == (VOCABULARY + linear.part.ngrams, 2)
    assert torch.allclose(linear.spoken.sum(dim=1), torch.ones(1))
    assert linear.spoken[4].numpy() == pytest.approx([2 / 3, 1 / 3], abs=0.05)
    cpu = torch.device("cpu")
    whole = predict(linear, dataset, cpu)
    pieces = [linear.shared(one) for one in torch.eye(4).unflatten(1, (2, 2))]
    found = [predict(piece, dataset, cpu) for piece in pieces]
    np.testing.assert_allclose(sum(found), whole, atol=1e-5)
    shares = torch.tensor([[0.5, 2.0], [0.0, 1.5]])
    counted = [share * one for share, one in zip(shares.flatten().numpy(), found, strict=True)]
    np.testing.assert_allclose(
        predict(linear.shared(shares), dataset, cpu), sum(counted), atol=1e-5
    )


def test_of_one_family_are_features_whose_tokens_are_one_by_one():
    texts = [[3, 10], [4, 10], [3, 11], [5, 10], [3, 10]]  # 3 and 4 are kin, 10 and 11 are
    dataset = Dataset.encode(
        [Encoding(np.array(ids), None, False) for ids in texts],
        np.eye(2, dtype="f4")[[0, 1] * 2 + [0]],
    )
    families = np.arange(VOCABULARY, dtype=np.int32)
    families[[4, 11]] = 3, 10
    part = LinearPart(VOCABULARY, 5_000, 2)
    part.own(choose_ngrams(dataset))
    rows_of = part.features(torch.tensor(texts)).numpy()  # [B, N, S]
    together = family_features(dataset, part, families).toarray()
    assert set(together.ravel()) == {0, 1}
    found = {tuple(np.flatnonzero(column)) for column in together.T}
    first, second = ([rows_of[text, n, -1] for text in (0, 1, 2)] for n in (1, 2))
    begin = [[rows_of[text, n, 0] for text in (0, 1)] for n in (1, 2)]
    expected = [[3, 4], [10, 11], first, second, *begin]
    assert found == {tuple(sorted(map(int, one))) for one in expected}


def test_what_it_learns_of_families_is_what_the_library_does_over_their_sums():
    dataset = rows(np.eye(2)[np.arange(60) % 2])
    families = np.arange(VOCABULARY, dtype=np.int32)
    families[20:] = families[20:] // 2 * 2
    linear = LinearClassifier.fit(dataset, config(2), 1.0, families=families)
    present, _ = features(dataset, linear.part)
    values = normalize(present.multiply(feature_scale(present, dataset.targets)).tocsr())
    kin = family_features(dataset, linear.part, families).toarray()
    assert kin[20, :].any()
    assert not kin[19, :].any()
    library = LogisticRegression(solver="newton-cg", tol=1e-9)
    library.fit(np.hstack([values.toarray(), values @ kin]).astype(np.float64), dataset.labels)
    own, together = np.split(library.coef_[0], [len(kin)])
    expected = -(own + kin @ together) / 2  # of the first of two classes
    np.testing.assert_allclose(linear.part.weight.weight[:, 0].numpy(), expected, atol=1e-5)


def test_a_word_seen_once_says_what_its_family_does():
    texts = [[3, 10], [4, 11]] * 20 + [[4, 12]]  # the last under the other's label
    labels = [0, 1] * 20 + [0]
    encodings = [Encoding(np.array(ids), None, False) for ids in texts]
    dataset = Dataset.encode(encodings, np.eye(2, dtype="f4")[labels])
    families = np.arange(VOCABULARY, dtype=np.int32)
    families[12] = 11
    alone, kin = (
        LinearClassifier.fit(dataset, config(2), 1.0, families=given).part.weight.weight[12, 0]
        for given in (None, families)
    )
    assert kin < alone / 2, "it leans to the second class with its family"


def _spans(dataset: Dataset) -> list[tuple[int, int]]:
    return list(zip(dataset.starts[:-1], dataset.starts[1:], strict=True))


def test_a_text_that_tells_nothing_is_of_each_domain_alike():
    """However many rows each has."""
    dataset, domains = of_two_domains()
    few = np.flatnonzero(domains[:, 1])[4:]
    domains[few] = 0
    part = LinearClassifier.fit(dataset, config(2, domains=2), 10.0, domains).part
    likely = part._likely(torch.tensor([[2, 2, 2]]), torch.ones(1, 3))
    assert likely[0].numpy() == pytest.approx([0.5, 0.5], abs=0.15)
