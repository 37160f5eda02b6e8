"""The process that computes one blend: reads a request from standard input, writes an adapter's folder, says how it went.

Run as `python -m services.inference.blends.run`. The only part of the service beside its engines that uses torch.
"""

from __future__ import annotations

import json
import os
import sys
from math import ceil
from pathlib import Path
from typing import Any

from graft.blends import Combining
from graft.legacy.sandbox import die_with_parent, limit

from services.combining.plain import NotCombinableError, Source

_FILE_BYTES = 16 * 1024**3
_NICE = 10


def main() -> None:
    """Reads, computes, answers."""
    request = json.loads(sys.stdin.read())
    die_with_parent(request["parent"])
    # Whoever is being answered by the engine comes first.
    os.nice(_NICE)
    answer = _compute(request)
    sys.stdout.write(json.dumps(answer))


def _compute(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    from services.combining.folders import combine_folders

    torch.set_num_threads(1)
    # After the imports: only what is computed counts.
    limit(ceil(request["timeout_s"]) + 1, _FILE_BYTES, request["memory_bytes"])
    sources = [Source(name, Path(folder), weight) for name, folder, weight in request["sources"]]
    try:
        rank = combine_folders(sources, Combining(**request["how"]), Path(request["folder"]))
    except NotCombinableError as error:
        return {"error": str(error), "next_step": error.next_step}
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        return {
            "error": f"computing it takes more than {request['memory_bytes']} bytes of memory",
            "next_step": "Blend by cat or linear, or raise GRAFT_INFERENCE_BLEND_MEMORY_BYTES.",
        }
    return {"rank": rank}


if __name__ == "__main__":
    main()
