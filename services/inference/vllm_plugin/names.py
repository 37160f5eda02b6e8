"""The names that adapters have inside vLLM: each says its version, and no two loads share one."""

from __future__ import annotations

from collections import Counter

from graft.names import ModelReference, parse_name

from services.inference.domain import AdapterVersion

_COPY = "#"


class EngineNames:
    """Gives every load a name of its own, as `adapter:7`; a further load of it is `adapter:7#2`.

    vLLM tells adapters apart by name within a batch and in its prefix cache, and by number
    elsewhere: two loads with one name would be taken for one.
    """

    def __init__(self) -> None:
        self._given: Counter[str] = Counter()

    def new(self, version: AdapterVersion) -> str:
        """A name for another load of a version."""
        found = parse_name(
            version.name, "namespaces/{namespace}/adapters/{adapter}/versions/{version}"
        )
        name = str(
            ModelReference(found["namespace"], found["adapter"], version=int(found["version"]))
        )
        self._given[name] += 1
        count = self._given[name]
        return name if count == 1 else f"{name}{_COPY}{count}"


def read_reference(text: str, namespace: str) -> ModelReference:
    """What a request means by a model's name; also a name of EngineNames, as /v1/models lists it.

    Raises:
        GraftError: INVALID_REFERENCE.
    """
    return ModelReference.parse(text.partition(_COPY)[0], namespace)
