"""The registry's Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.registry.domain import Action, Adapter, Alias, Base, Event, Version


class RegistryMetrics:
    """What there is, what was committed or refused and why, and who watches."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.adapters = Gauge("graft_registry_adapters", "Adapters", registry=registry)
        self.bases = Gauge("graft_registry_bases", "Bases", registry=registry)
        self.versions = Gauge("graft_registry_versions", "Versions", registry=registry)
        self.blob_bytes = Gauge("graft_registry_blob_bytes", "Stored bytes", registry=registry)
        self.commits = Counter(
            "graft_registry_commits",
            "Commits by outcome (committed, refused, failed) and, for a refusal, the check",
            ["outcome", "check"],
            registry=registry,
        )
        self.alias_moves = Counter("graft_registry_alias_moves", "Alias moves", registry=registry)
        self.watchers = Gauge("graft_registry_watchers", "Open watches", registry=registry)
        self.watch_lag = Gauge(
            "graft_registry_watch_lag_events",
            "Events that the slowest watcher has not been sent",
            registry=registry,
        )

    def count(self, event: Event) -> None:
        """Counts a change that was stored; what is deleted is there until it is purged."""
        more = {Action.CREATED: 1, Action.PURGED: -1}.get(event.action, 0)
        match event.resource:
            case Adapter():
                self.adapters.inc(more)
            case Base():
                self.bases.inc(more)
            case Version():
                self.versions.inc(more)
            case Alias() if event.action is not Action.DELETED:
                self.alias_moves.inc()
