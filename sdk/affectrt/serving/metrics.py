"""Counts for Prometheus. Nothing in them is about a person."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from affectrt.affect import Affect

CONTENT_TYPE = CONTENT_TYPE_LATEST

_LATENCY_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Of one server. May be counted by any thread."""

    def __init__(self, session_limit: int) -> None:
        registry = self._registry = CollectorRegistry()
        self.sessions = Gauge("affectrt_sessions", "Streams that are open.", registry=registry)
        Gauge("affectrt_session_limit", "Streams that may be open.", registry=registry).set(session_limit)
        self.closed = Counter(
            "affectrt_connections_closed", "Connections that ended, by code.", ["code"], registry=registry
        )
        self.messages = Counter(
            "affectrt_messages_received", "Messages of clients, by kind.", ["kind"], registry=registry
        )
        self.bytes = Counter("affectrt_received_bytes", "Bytes in messages of clients.", registry=registry)
        self.errors = Counter(
            "affectrt_errors", "Errors that clients were told, by code.", ["code"], registry=registry
        )
        self.events = Counter("affectrt_events", "Events of streams, by code.", ["code"], registry=registry)
        self.unread = Counter(
            "affectrt_messages_unread", "Messages dropped because a client didn't read.", registry=registry
        )
        self._results = Counter("affectrt_results", "Results that were computed.", registry=registry)
        self._latency = Histogram(
            "affectrt_latency_seconds",
            "From the arrival of the newest input to the result.",
            buckets=_LATENCY_S,
            registry=registry,
        )

    def result(self, affect: Affect) -> None:
        """One more."""
        self._results.inc()
        self._latency.observe(affect.latency_ms / 1e3)
        for event in affect.events:
            self.events.labels(event.code).inc()

    def page(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self._registry)
