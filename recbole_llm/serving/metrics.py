"""What a server counts, as text for Prometheus."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counts of one server.

    Args:
        waiting: tells how many requests wait for a batch.

    Attributes:
        requests: finished requests for recommendations, by "status" of HTTP.
        seconds: from a request to its answer.
        batches: how many questions each batch had.
        work: seconds of the model's work on a batch.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "recbole_llm_requests", "Requests for recommendations that were answered.", ["status"],
            registry=self._registry,
        )  # fmt: skip
        self.seconds = self._histogram("request_seconds", "From a request to its answer.", _SECONDS)
        self.batches = self._histogram("batch_size", "Questions that the model answered together.", _SIZES)
        self.work = self._histogram("batch_seconds", "The model's work on a batch.", _SECONDS)
        gauge = Gauge("recbole_llm_waiting", "Requests that wait for a batch.", registry=self._registry)
        gauge.set_function(waiting)

    def _histogram(self, name: str, sentence: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"recbole_llm_{name}", sentence, buckets=buckets, registry=self._registry)

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self._registry)
