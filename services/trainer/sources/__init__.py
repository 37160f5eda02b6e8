"""Where training data comes from: this machine, the Hub, an object store, or the registry's blobs."""

from services.trainer.sources.base import Fetched, Source
from services.trainer.sources.sets import (
    OpenSet,
    OpenSets,
    SetOpener,
    is_elsewhere,
    open_sets,
    read_options,
)

__all__ = [
    "Fetched",
    "OpenSet",
    "OpenSets",
    "SetOpener",
    "Source",
    "is_elsewhere",
    "open_sets",
    "read_options",
]
