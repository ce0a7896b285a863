"""What is wrong with values that were checked, in one line."""

from typing import Self

import pytest
from pydantic import BaseModel, Field, ValidationError, model_validator

from model.faults import faults


class Inner(BaseModel):
    size: int = Field(gt=0)


class Outer(BaseModel):
    inner: Inner
    names: list[str] = []
    low: int = 0
    high: int = 9

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low={self.low} exceeds high={self.high}")
        return self


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"inner": {"size": 0}}, "inner.size=0: Input should be greater than 0"),
        ({"inner": {}}, "inner.size: Field required"),
        (
            {"inner": {"size": 1}, "names": ["a", 7]},
            "names.1=7: Input should be a valid string",
        ),
        ({"inner": {"size": 1}, "low": 10}, "low=10 exceeds high=9"),
        (
            {"inner": {"size": -1}, "low": "x"},
            "inner.size=-1: Input should be greater than 0; low='x': Input should be a valid "
            "integer, unable to parse string as an integer",
        ),
    ],
)
def test_names_key_value_and_reason(values: dict[str, object], said: str):
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)
    assert faults(caught.value) == said
