"""What a server counts, for Prometheus."""

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16)


class Metrics:
    """Counters of one server.

    Attributes:
        answered: Requests to /predict that were answered with 200.
        examples: Those in them.
    """

    def __init__(self, n_waiting: Callable[[], int]) -> None:
        """Make them.

        Args:
            n_waiting: Counts the examples that wait.
        """
        self._registry = CollectorRegistry()
        self.answered = self.examples = 0
        self._requests = Counter("mblm_requests", "Requests to /predict", ["status"], registry=self._registry)
        self._seconds = Histogram(
            "mblm_request_seconds",
            "Seconds to the answer",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._examples = Counter("mblm_examples", "Examples answered", ["branch"], registry=self._registry)
        self._batches = Histogram(
            "mblm_batch_examples", "Examples of a batch", buckets=_SIZES, registry=self._registry
        )
        waiting = Gauge("mblm_waiting_examples", "Examples in the queue", registry=self._registry)
        waiting.set_function(n_waiting)

    def count_batch(self, size: int) -> None:
        """Count a batch; the batcher's thread does."""
        self._batches.observe(size)

    def count_examples(self, branches: list[str]) -> None:
        """Count examples of a request, by the branch that each went through."""
        self.examples += len(branches)
        for branch in set(branches):
            self._examples.labels(branch).inc(branches.count(branch))

    def text(self) -> bytes:
        """Give all as Prometheus reads it."""
        return generate_latest(self._registry)

    def around(self, app: Any) -> Any:
        """Wrap an ASGI application, so that each answer of /predict is counted and timed."""

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http" or scope["path"] != "/predict":
                await app(scope, receive, send)
                return
            start = time.perf_counter()

            def count(status: int) -> None:
                self.answered += status == 200
                self._requests.labels(str(status)).inc()
                self._seconds.observe(time.perf_counter() - start)

            async def send_and_count(message: Any) -> None:
                if message["type"] == "http.response.start":
                    count(message["status"])
                await send(message)

            try:
                await app(scope, receive, send_and_count)
            except Exception:
                count(500)  # which the server says, outside of what is wrapped here
                raise

        return counted
