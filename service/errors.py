"""What can go wrong with a request, one class a cause.

    RealceError
    ├── InvalidRequest       the call is at fault: field violations, each with value and limit
    ├── ModelNotFound        no such model is in service
    ├── Overloaded           queue or room for answers is full: come back after `retry_after_s`
    ├── DeadlineExceeded     it cannot be, or was not, answered in time
    ├── Unavailable          draining, not warm yet, or the backend is gone
    └── BackendFailed        the backend failed on this very row; its neighbours were answered

The converters' table turns each into one gRPC status; anything else is a fault of ours, answered
with a generic text and the request id that is also in the log.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a call that cannot be served: its path, as in `texts[3]`, and why.

    The reason names value and limit, and never holds the user's text.
    """

    field: str
    description: str


class RealceError(Exception):
    """Base of all that the service raises on purpose. The message may be shown to the caller."""


class InvalidRequest(RealceError):
    """The call itself is at fault and would fail again."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = tuple(violations)


class ModelNotFound(RealceError):
    """No model of that name is in service."""


class Overloaded(RealceError):
    """The queue is full. `retry_after_s` is when there will likely be room."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RealceError):
    """The answer cannot be ready within the caller's deadline, or was not."""


class Unavailable(RealceError):
    """Not serving now: draining, warming up, or the backend is gone."""


class BackendFailed(RealceError):
    """The backend failed on this row alone."""
