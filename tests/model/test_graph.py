import numpy as np
import onnxruntime
import pytest

from model.bundle import OUTPUTS
from model.graph import extract

FEEDS = {
    "input_ids": np.array([[5, 9, 7], [8, 0, 0]]),
    "attention_mask": np.array([[1, 1, 1], [1, 0, 0]]),
}


def run(graph) -> list[np.ndarray]:
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=providers)
    return session.run(None, FEEDS)


@pytest.mark.parametrize("names", [("probabilities",), ("contributions", "logits"), OUTPUTS])
def test_a_part_says_what_the_whole_says_in_the_order_asked_for(bundle, names):
    whole = dict(zip(OUTPUTS, run(bundle.graph), strict=True))
    got = run(extract(bundle.graph, names))
    assert len(got) == len(names)
    for name, value in zip(names, got, strict=True):
        np.testing.assert_allclose(value, whole[name], atol=1e-6)


def test_what_is_not_asked_for_is_not_computed(bundle):
    plain, account, all_ = (
        len(extract(bundle.graph, names).graph.node)
        for names in (("probabilities",), ("probabilities", "contributions"), OUTPUTS)
    )
    assert plain < account < all_ <= len(bundle.graph.graph.node)
