"""Figures of a server for Prometheus: requests, tokens, times, what waits and what runs."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from ugc_jax.generate.live import Stats

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


class Metrics:
    """The figures of one server."""

    def __init__(self, stats: Callable[[], Stats]):
        """stats: of the engine, asked at each look."""
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "ugc_jax_requests", "Requests for completions that have ended, by HTTP status.",
            ["status"], registry=registry,
        )  # fmt: skip
        self.prompt_tokens = Counter(
            "ugc_jax_prompt_tokens", "Tokens of prompts that were accepted.", registry=registry
        )
        self.generated_tokens = Counter(
            "ugc_jax_generated_tokens", "Tokens that were generated.", registry=registry
        )
        self.gone = Counter(
            "ugc_jax_clients_gone", "Clients that left before their answer.", registry=registry
        )
        self.seconds = Histogram(
            "ugc_jax_request_seconds", "From a request to the end of its answer.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "ugc_jax_first_token_seconds", "From a request to its first token.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.reading = Histogram(
            "ugc_jax_reading_seconds", "Fetching and reading the media of a request.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.under_way = Gauge(
            "ugc_jax_requests_under_way", "Requests that were accepted and have no answer yet.",
            registry=registry,
        )  # fmt: skip
        for name, about in (
            ("waiting", "Prompts that wait for a place of the engine."),
            ("running", "Prompts that the engine computes."),
            ("places", "Completions that decode at a time."),
            ("tokens_per_second", "Tokens that were generated a second, over the last minute."),
        ):
            gauge = Gauge(f"ugc_jax_engine_{name}", about, registry=registry)
            gauge.set_function(lambda name=name: getattr(stats(), name))

    def text(self) -> bytes:
        """Return all figures in Prometheus's format."""
        return generate_latest(self._registry)
