"""Who scales a base's Deployment: a HorizontalPodAutoscaler or KEDA, by queue time and tokens in flight."""

from __future__ import annotations

from typing import Any

from graft.kubernetes.base_plan import BasePlan, Scaling

QUEUE_AGE, TOKENS, REQUESTS = (
    "graft_inference_queue_age_seconds",
    "graft_inference_in_flight_tokens",
    "graft_inference_requests_total",
)
# Many at once when it is needed, one after the other when not: what drains takes its time.
_BEHAVIOR = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "policies": [
            {"type": "Percent", "value": 100, "periodSeconds": 60},
            {"type": "Pods", "value": 2, "periodSeconds": 60},
        ],
        "selectPolicy": "Max",
    },
    "scaleDown": {
        "stabilizationWindowSeconds": 300,
        "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
    },
}


def scaler(plan: BasePlan, metadata: dict[str, Any]) -> dict[str, Any] | None:
    """The object that scales; None where nothing does."""
    if plan.replicas.scaling is Scaling.HPA:
        return _autoscaler(plan, metadata)
    return _scaled_object(plan, metadata) if plan.replicas.scaling is Scaling.KEDA else None


def _autoscaler(plan: BasePlan, metadata: dict[str, Any]) -> dict[str, Any]:
    replicas = plan.replicas
    targets = {
        QUEUE_AGE: f"{round(1000 * replicas.queue_age_s)}m",
        TOKENS: str(replicas.in_flight_tokens),
    }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": plan.name},
            "minReplicas": replicas.least,
            "maxReplicas": replicas.most,
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": name},
                        "target": {"type": "AverageValue", "averageValue": value},
                    },
                }
                for name, value in targets.items()
            ],
            "behavior": _BEHAVIOR,
        },
    }


def _scaled_object(plan: BasePlan, metadata: dict[str, Any]) -> dict[str, Any]:
    replicas = plan.replicas
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": plan.name},
            "pollingInterval": 15,
            "cooldownPeriod": replicas.idle_after_s,
            "minReplicaCount": replicas.least,
            "maxReplicaCount": replicas.most,
            # While Prometheus is away it stays as it is.
            "fallback": {
                "failureThreshold": 3,
                "replicas": max(1, replicas.least),
                "behavior": "currentReplicasIfHigher",
            },
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _BEHAVIOR}},
            "triggers": _triggers(plan),
        },
    }


def _triggers(plan: BasePlan) -> list[dict[str, Any]]:
    replicas, series = plan.replicas, _series(plan)
    tokens = f"sum(avg_over_time({TOKENS}{series}[1m]))"
    found = [
        _trigger(
            plan,
            "queue-age",
            f"sum(avg_over_time({QUEUE_AGE}{series}[1m]))",
            f"{replicas.queue_age_s:g}",
        ),
        _trigger(plan, "in-flight-tokens", tokens, str(replicas.in_flight_tokens)),
    ]
    if replicas.least == 0:
        # Short requests are between two looks at the gauges. None of these two asks for more than one.
        asked = f"sum(increase({REQUESTS}{series}[5m]))"
        found.append(_trigger(plan, "asked-lately", f"clamp_max({asked}, 1)", "1"))
        found.append(_trigger(plan, "wake", f"clamp_max({replicas.wake_query}, 1)", "1"))
    return found


def _trigger(plan: BasePlan, name: str, query: str, threshold: str) -> dict[str, Any]:
    return {
        "type": "prometheus",
        "name": name,
        # What the query answers is divided by the threshold: a sum over all replicas.
        "metricType": "AverageValue",
        "metadata": {
            "serverAddress": plan.replicas.prometheus,
            "query": query,
            "threshold": threshold,
            "activationThreshold": "0",
        },
    }


def _series(plan: BasePlan) -> str:
    """By namespace and pod, which every way of scraping pods adds; no other base's pods fit."""
    pods = f"{plan.name}-[a-z0-9]+-[a-z0-9]+"
    return f'{{namespace="{plan.kube_namespace}",pod=~"{pods}"}}'
