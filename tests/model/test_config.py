import pytest
from pydantic import ValidationError

from model.config import ModelConfig


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"heads": 5}, "heads=5 must divide d_model=192"),
        ({"d_model": 18, "heads": 6}, "must be even"),
        ({"layers": -1}, "greater than or equal to 0"),
        ({"classes": 1}, "greater than or equal to 2"),
        ({"dropout": 1.0}, "less than 1"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_impossible_shapes_are_refused_with_the_reason(change, reason):
    with pytest.raises(ValidationError, match=reason):
        ModelConfig(**({"vocab_size": 100, "classes": 2} | change))


def test_is_frozen():
    config = ModelConfig(vocab_size=100, classes=2)
    with pytest.raises(ValidationError):
        config.layers = 9
    assert config.d_head == 32
