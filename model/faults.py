"""What is wrong with values that were checked, in one line: key, value, reason."""

from pydantic import ValidationError


def faults(error: ValidationError) -> str:
    """Every fault as `key=value: reason`; a fault of several keys together says which itself."""
    return "; ".join(map(_fault, error.errors(include_url=False)))


def _fault(fault: object) -> str:
    assert isinstance(fault, dict)
    key = ".".join(map(str, fault["loc"]))
    reason = str(fault["msg"]).removeprefix("Value error, ")
    together = isinstance(fault["input"], dict) and fault["type"] == "value_error"
    if together or not key:
        return reason
    if fault["type"] == "missing":
        return f"{key}: {reason}"
    return f"{key}={fault['input']!r}: {reason}"
