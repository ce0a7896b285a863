"""What Prometheus is told of a server: calls, what they wait for, batches, and who serves.

Names and units follow https://prometheus.io/docs/practices/naming/; all times are in seconds.
Nothing here holds a text or the name of a caller.
"""

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from service.types import ModelDescription

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

# A series more for each, which several workers do not have.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one server, whatever bundles come and go in it.

    Counted in and read on any thread. Of several workers, each a process with metrics of its own,
    the library adds them up; hence no gauge asks for its value when it is read.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"realce_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(
                f"realce_{name}", text, labels, registry=registry, multiprocess_mode="livesum"
            )

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"realce_{name}", text, labels, registry=registry, buckets=SECONDS)

        self._calls = counter("calls", "Calls that have ended", "method", "code")
        self._call_s = seconds("call_seconds", "From a call's coming to its end", "method")
        self._messages = counter("stream_messages", "Messages of streams answered", "code")
        phases = seconds(
            "phase_seconds",
            "Of a call: tokenize; queue, until the last of its rows begin; serialize. "
            "Of a batch: compute",
            "phase",
        )
        self.tokenize_s = phases.labels("tokenize")
        self.queue_s = phases.labels("queue")
        self.compute_s = phases.labels("compute")
        self.serialize_s = phases.labels("serialize")
        self._batch_rows = Histogram(
            "realce_batch_rows", "Rows computed together", registry=registry, buckets=ROWS
        )
        self._tokens = counter("tokens", "Tokens computed, without padding")
        self._padding = counter("padding_tokens", "Padding computed beside them")
        self.answered_rows = counter("answered_rows", "Rows whose caller was still there")
        self.failed_rows = counter("failed_rows", "Rows that the model failed on")
        self._reloads = counter("reloads", "Reloads of the bundle", "outcome")
        for outcome in ("succeeded", "failed"):  # an increase from nothing shows in no rate
            self._reloads.labels(outcome)
        self.queued_tokens = gauge("queued_tokens", "Tokens that wait to be computed")
        self.held_bytes = gauge("held_bytes", "Tensors of answers that are not sent yet")
        self.calls_under_way = gauge("calls_under_way", "Calls under way")
        about = ("bundle", "version", "fingerprint", "provider")
        self._serving = gauge("serving", "Processes that serve this bundle", *about)
        self._in_service: Gauge | None = None

    def call(self, method: str, code: str, seconds: float) -> None:
        """A call has ended after so long."""
        self._calls.labels(method, code).inc()
        self._call_s.labels(method).observe(seconds)

    def unseen(self, method: str, code: str) -> None:
        """A call has ended before anything was done for it."""
        self._calls.labels(method, code).inc()

    def message(self, code: str) -> None:
        """A message of a stream has been answered."""
        self._messages.labels(code).inc()

    def batch(self, lengths: Sequence[int]) -> None:
        """Rows of these lengths were computed together, each padded to the longest."""
        rows, tokens = len(lengths), sum(lengths)
        self._batch_rows.observe(rows)
        self._tokens.inc(tokens)
        self._padding.inc(rows * max(lengths) - tokens)

    def reload(self, outcome: str) -> None:
        """A reload has come to this."""
        self._reloads.labels(outcome).inc()

    def serve(self, model: ModelDescription | None) -> None:
        """This is in service from now on, in place of what was."""
        if self._in_service is not None:
            self._in_service.set(0)
            self._in_service = None
        if model is not None:
            about = (model.name, model.version, model.fingerprint[:12], model.provider)
            self._in_service = self._serving.labels(*about)
            self._in_service.set(1)
