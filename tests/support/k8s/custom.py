"""What we use of other projects' kinds, as JSON schemas: a field that is not here is a slip of the pen.

From their published definitions: Kueue v1beta2, KEDA v1alpha1, Prometheus operator v1, Gateway API v1, its
inference extension v1, JobSet v1alpha2, cert-manager v1. Only fields that deploy/ uses; the whole schemas are megabytes.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
# Go's, as cert-manager reads it.
_DURATION: Schema = {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(h|m|s))+$"}
_NUMBER: Schema = {"type": "integer"}
_QUANTITY: Schema = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
_LABELS: Schema = {"type": "object", "additionalProperties": _TEXT}
_SELECTOR: Schema = {}


def _object(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": fields,
    }


def _list(of: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": of}


_SELECTOR = _object(matchLabels=_LABELS, matchExpressions={"type": "array"})
_POLICY = _object(
    ("type", "value", "periodSeconds"), type=_TEXT, value=_NUMBER, periodSeconds=_NUMBER
)
_RULES = _object(stabilizationWindowSeconds=_NUMBER, selectPolicy=_TEXT, policies=_list(_POLICY))
_FLAVOR = _object(
    ("name", "resources"),
    name=_TEXT,
    resources=_list(
        _object(
            ("name", "nominalQuota"),
            name=_TEXT,
            nominalQuota=_QUANTITY,
            borrowingLimit=_QUANTITY,
            lendingLimit=_QUANTITY,
        )
    ),
)
_SPECS: dict[tuple[str, str], Schema | None] = {
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): _object(
        nodeLabels=_LABELS, nodeTaints={"type": "array"}, tolerations={"type": "array"}
    ),
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): _object(
        ("resourceGroups",),
        namespaceSelector=_SELECTOR,
        queueingStrategy={"enum": ["StrictFIFO", "BestEffortFIFO"]},
        preemption=_object(
            withinClusterQueue={"enum": ["Never", "LowerPriority", "LowerOrNewerEqualPriority"]},
            reclaimWithinCohort={"enum": ["Never", "LowerPriority", "Any"]},
        ),
        resourceGroups=_list(
            _object(
                ("coveredResources", "flavors"),
                coveredResources=_list(_TEXT),
                flavors=_list(_FLAVOR),
            )
        ),
    ),
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): _object(("clusterQueue",), clusterQueue=_TEXT),
    ("keda.sh/v1alpha1", "ScaledObject"): _object(
        ("scaleTargetRef", "triggers"),
        scaleTargetRef=_object(("name",), apiVersion=_TEXT, kind=_TEXT, name=_TEXT),
        pollingInterval=_NUMBER,
        cooldownPeriod=_NUMBER,
        minReplicaCount=_NUMBER,
        maxReplicaCount=_NUMBER,
        fallback=_object(
            ("failureThreshold", "replicas"),
            failureThreshold=_NUMBER,
            replicas=_NUMBER,
            behavior={
                "enum": [
                    "static",
                    "currentReplicas",
                    "currentReplicasIfHigher",
                    "currentReplicasIfLower",
                ]
            },
        ),
        advanced=_object(
            horizontalPodAutoscalerConfig=_object(
                behavior=_object(scaleUp=_RULES, scaleDown=_RULES)
            )
        ),
        triggers=_list(
            _object(
                ("type", "metadata"),
                type=_TEXT,
                name=_TEXT,
                metricType={"enum": ["AverageValue", "Value", "Utilization"]},
                # Every value is a text.
                metadata=_LABELS,
            )
        ),
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): _object(
        ("selector", "endpoints"),
        jobLabel=_TEXT,
        selector=_SELECTOR,
        namespaceSelector=_object(matchNames=_list(_TEXT)),
        endpoints=_list(_object(port=_TEXT, path=_TEXT, interval=_TEXT, scrapeTimeout=_TEXT)),
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _object(
        ("groups",),
        groups=_list(
            _object(
                ("name", "rules"),
                name=_TEXT,
                interval=_TEXT,
                rules=_list(
                    _object(
                        ("expr",),
                        alert=_TEXT,
                        record=_TEXT,
                        expr=_TEXT,
                        labels=_LABELS,
                        annotations=_LABELS,
                        **{"for": _TEXT},
                    )
                ),
            )
        ),
    ),
    ("inference.networking.k8s.io/v1", "InferencePool"): _object(
        ("selector", "targetPorts", "endpointPickerRef"),
        selector=_object(("matchLabels",), matchLabels=_LABELS),
        targetPorts=_list(_object(("number",), number=_NUMBER)),
        appProtocol={"enum": ["http", "kubernetes.io/h2c"]},
        endpointPickerRef=_object(
            ("name", "port"),
            group=_TEXT,
            kind=_TEXT,
            name=_TEXT,
            port=_object(("number",), number=_NUMBER),
            failureMode={"enum": ["FailOpen", "FailClose"]},
        ),
    ),
    ("cert-manager.io/v1", "Issuer"): {
        **_object(selfSigned=_object(), ca=_object(("secretName",), secretName=_TEXT)),
        "minProperties": 1,
        "maxProperties": 1,
    },
    ("cert-manager.io/v1", "Certificate"): _object(
        ("secretName", "issuerRef"),
        secretName=_TEXT,
        commonName={"type": "string", "maxLength": 64},
        isCA={"type": "boolean"},
        dnsNames=_list(_TEXT),
        ipAddresses=_list(_TEXT),
        duration=_DURATION,
        renewBefore=_DURATION,
        usages=_list({"enum": ["digital signature", "cert sign", "server auth", "client auth"]}),
        privateKey=_object(
            algorithm={"enum": ["RSA", "ECDSA", "Ed25519"]},
            size=_NUMBER,
            encoding={"enum": ["PKCS1", "PKCS8"]},
            rotationPolicy={"enum": ["Never", "Always"]},
        ),
        issuerRef=_object(("name",), group=_TEXT, kind=_TEXT, name=_TEXT),
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _object(
        parentRefs=_list(_object(("name",), name=_TEXT, namespace=_TEXT, sectionName=_TEXT)),
        hostnames=_list(_TEXT),
        rules=_list(
            _object(
                matches=_list(
                    _object(
                        path=_object(
                            type={"enum": ["Exact", "PathPrefix", "RegularExpression"]}, value=_TEXT
                        )
                    )
                ),
                backendRefs=_list(
                    _object(
                        ("name",), group=_TEXT, kind=_TEXT, name=_TEXT, port=_NUMBER, weight=_NUMBER
                    )
                ),
                timeouts=_object(request=_TEXT, backendRequest=_TEXT),
            )
        ),
    ),
}


def custom_schema(api_version: str, kind: str) -> Schema | None:
    """The schema of another project's kind; None for one that we do not use."""
    spec = _SPECS.get((api_version, kind))
    if spec is None:
        return None
    required = ["apiVersion", "kind", "metadata"]
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required if kind == "ResourceFlavor" else [*required, "spec"],
        "properties": {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}, "spec": spec},
    }
