import numpy as np
import pytest

from service.errors import InvalidRequest
from service.types import NO_VIEWS, ModelDescription, View, ViewRequest
from service.views import answer_bytes, check_answer_bytes, cut

MODEL = ModelDescription(
    name="m",
    version="1",
    labels=("a", "b"),
    languages=(),
    max_tokens=8,
    layers=2,
    heads=3,
    bias=(0.0, 0.0),
    temperature=1.0,
    abstention_threshold=None,
    license="",
    provider="",
    fingerprint="",
)
ALL = ViewRequest(frozenset(View), (0, 1), (0, 1, 2))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (NO_VIEWS, 0),
        (ViewRequest(frozenset({View.EVIDENCE})), (3 + 5) * 2 * 4),
        (ViewRequest(frozenset({View.POOLING_ATTENTION})), (3 + 5) * 3 * 4),
        (ViewRequest(frozenset({View.ATTENTIONS}), (1,), (0, 2)), (9 + 25) * 2 * 4),
        (ViewRequest(frozenset({View.ATTENTIONS}), (1,), (0,), np.float16), (9 + 25) * 2),
        (ALL, (3 + 5) * 7 * 4 + (9 + 25) * 6 * 4),
    ],
)
def test_size_is_known_before_anything_is_computed(request_, expected):
    assert answer_bytes([3, 5], request_, MODEL) == expected
    outputs = {
        "evidence": np.zeros((2, 5, 2), np.float32),
        "contributions": np.zeros((2, 5, 2), np.float32),
        "pooling_attention": np.zeros((2, 3, 5), np.float32),
        "attentions": np.zeros((2, 2, 3, 5, 5), np.float32),
    }
    arrays = [cut(outputs, row, length, request_) for row, length in ((0, 3), (1, 5))]
    assert sum(a.nbytes for views in arrays for a in views.values()) == expected


def test_too_large_is_refused_with_size_and_limit():
    check_answer_bytes([3, 5], ALL, MODEL, limit=1040)
    with pytest.raises(InvalidRequest, match="would take 1040 bytes, the limit is 1039"):
        check_answer_bytes([3, 5], ALL, MODEL, limit=1039)
