"""Measures for Prometheus, in a registry of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from herd.providers.base import Gauges, Pool

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_WAITS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_GAPS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_DURATIONS_S = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class OfModel(NamedTuple):
    """The measures of one model's answers: see `Metrics`."""

    first: Histogram
    between: Histogram
    prompt_tokens: Counter
    cached_tokens: Counter
    answer_tokens: Counter


class Metrics:
    """What the web process counts itself; what models count is asked of the pool when somebody looks."""

    def __init__(self, pool: Pool) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter("herd_requests", "Requests that were answered.", ("route", "status"), registry=registry)
        self.durations = Histogram("herd_request_seconds", "From head to last byte.", ("route",), buckets=_DURATIONS_S, registry=registry)
        self.active = Gauge("herd_requests_active", "Requests that are being answered or wait.", registry=registry)
        self.refused = Counter("herd_refusals", "Requests that were refused before a model saw them.", ("reason",), registry=registry)
        self.connections = Gauge("herd_connections", "Open connections.", registry=registry)
        Gauge("herd_tasks", "Tasks of the server's loop.", registry=registry).set_function(_num_tasks)
        self.dropped = Counter("herd_connections_dropped", "Connections that were dropped.", ("reason",), registry=registry)
        self.cancelled = Counter("herd_requests_cancelled", "Requests whose client left.", registry=registry)
        self.first = Histogram("herd_first_token_seconds", "From head to first token.", ("model",), buckets=_WAITS_S, registry=registry)
        self.between = Histogram(
            "herd_token_seconds", "Mean time between an answer's tokens.", ("model",), buckets=_GAPS_S, registry=registry
        )
        self.prompt_tokens = Counter("herd_prompt_tokens", "Tokens of prompts.", ("model",), registry=registry)
        self.cached_tokens = Counter("herd_cached_tokens", "Tokens of prompts that were found computed.", ("model",), registry=registry)
        self.answer_tokens = Counter("herd_answer_tokens", "Tokens of answers.", ("model",), registry=registry)
        registry.register(_OfModels(pool))
        self._of_models: dict[str, OfModel] = {}
        self._of_routes: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self.began = time.time()

    def seen(self, route: str, status: int, seconds: float) -> None:
        """One more request of a route that was answered."""
        found = self._of_routes.get((route, status))
        if found is None:
            found = self._of_routes[route, status] = self.requests.labels(route, str(status)), self.durations.labels(route)
        found[0].inc()
        found[1].observe(seconds)

    def of_model(self, model: str) -> OfModel:
        """What is measured of a model's answers."""
        found = self._of_models.get(model)
        if found is None:
            found = self._of_models[model] = OfModel(
                self.first.labels(model),
                self.between.labels(model),
                self.prompt_tokens.labels(model),
                self.cached_tokens.labels(model),
                self.answer_tokens.labels(model),
            )
        return found

    def text(self) -> bytes:
        """All measures in Prometheus' text format."""
        return generate_latest(self.registry)


def _num_tasks() -> int:
    """Of the loop that asks."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0


class _OfModels:
    """Asks the pool how each loaded model does."""

    _GAUGES = (
        ("waiting", "herd_model_waiting", "Requests in the queue of the model."),
        ("running", "herd_model_running", "Requests that are in its steps."),
        ("free_pages", "herd_model_pages_free", "Pages of the cache that hold nothing."),
        ("cached_pages", "herd_model_pages_cached", "Pages that are kept for another request."),
        ("used_pages", "herd_model_pages_used", "Pages of running requests."),
    )
    _COUNTERS = (
        ("prompt_tokens", "herd_model_prompt_tokens", "Tokens of prompts that were asked."),
        ("cached_tokens", "herd_model_cached_tokens", "Tokens of prompts that were found in the cache."),
        ("answer_tokens", "herd_model_answer_tokens", "Tokens that were made."),
        ("steps", "herd_model_steps", "Steps of the model."),
        ("preempted", "herd_model_preemptions", "Requests that lost their pages and were computed again."),
        ("restarts", "herd_model_restarts", "How often its process was started again."),
        ("scheduling_s", "herd_model_scheduling_seconds", "CPU time of the thread that drives the model, without the model's own."),
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterable[Metric]:
        found = self._pool.gauges()
        for field, name, text in self._GAUGES:
            yield _family(GaugeMetricFamily(name, text, labels=("model",)), field, found.items())
        for field, name, text in self._COUNTERS:
            yield _family(CounterMetricFamily(name, text, labels=("model",)), field, found.items())
        memory = GaugeMetricFamily("herd_model_memory_bytes", "Memory of the model, by use.", labels=("model", "use"))
        for model, gauges in found.items():
            for use, num_bytes in gauges.memory_bytes.items():
                memory.add_metric((model, use), num_bytes)
        yield memory


def _family(
    family: GaugeMetricFamily | CounterMetricFamily, field: str, found: Iterable[tuple[str, Gauges]]
) -> GaugeMetricFamily | CounterMetricFamily:
    for model, gauges in found:
        family.add_metric((model,), getattr(gauges, field))
    return family
