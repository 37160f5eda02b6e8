"""The job's examples: from its path, or from a blob that is fetched to the work folder first."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from graft.blobs import BlobClient
from graft.channel import open_channel
from graft.common.v1.common_pb2 import File
from graft.errors import GraftError, NotFoundError, Reason

from services.trainer.formats import Example, Examples, load_examples
from services.trainer.formats.base import bad_row
from services.trainer.objectives.base import ObjectiveInfo
from services.trainer.run.background import BackgroundLoop
from services.trainer.run.settings import WorkerSettings
from services.trainer.spec import DatasetSource, DatasetSpec, local_path


def read_examples(
    spec: DatasetSpec, settings: WorkerSettings, loop: BackgroundLoop, log: Callable[[str], None]
) -> Examples:
    """Reads all examples of the spec.

    Raises:
        GraftError: BAD_DATA; INVALID_SPEC for a blob without a registry; what fetching it raises.
    """
    source = spec.sources[0]
    path = local_path(source.path)
    if source.blob_digest:
        path = settings.work_dir / "data" / source.blob_name
        if not settings.registry_address:
            raise GraftError(
                Reason.INVALID_SPEC,
                "dataset.blob_digest needs a registry, and this worker has none",
                next_step="Use dataset.path, or set GRAFT_WORKER_REGISTRY.",
            )
        if not path.exists():
            loop.run(_fetch(settings, source, path))
    examples = load_examples(path, source.format, source.max_rows)
    log(f"Read {len(examples.rows)} rows of {path.name} ({examples.format}).")
    return examples


async def _fetch(settings: WorkerSettings, spec: DatasetSource, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = File(path=spec.blob_name, digest=spec.blob_digest)
    async with open_channel(settings.registry_address) as channel:
        try:
            await BlobClient(channel, actor=settings.job).fetch(file, path)
        except NotFoundError:
            raise GraftError(
                Reason.BAD_DATA,
                f"The registry does not hold {spec.blob_name} ({spec.blob_digest})",
                next_step="Upload it before the job is created, as train(upload=True) does.",
                file=spec.blob_name,
            ) from None


def split(
    rows: list[Example], eval_fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Training and held-out rows; the same seed holds out the same ones.

    Raises:
        GraftError: BAD_DATA, when one of the two would be empty.
    """
    if not eval_fraction:
        return rows, []
    held_out = round(len(rows) * eval_fraction)
    if not 0 < held_out < len(rows):
        raise GraftError(
            Reason.BAD_DATA,
            f"eval_fraction {eval_fraction:g} of {len(rows)} rows holds out {held_out}",
            next_step="Use more rows, or leave dataset.eval_fraction out.",
        )
    chosen = set(random.Random(seed).sample(range(len(rows)), held_out))
    training = [row for index, row in enumerate(rows) if index not in chosen]
    return training, [row for index, row in enumerate(rows) if index in chosen]


def check_contents(objective: ObjectiveInfo, examples: Examples) -> None:
    """Checks that the rows are what the objective learns from.

    Raises:
        GraftError: BAD_DATA, naming the first row that is not.
    """
    for example in examples.rows:
        if not isinstance(example.content, objective.contents):
            raise bad_row(
                example.place,
                f"it is {examples.format} data, and {objective.title} needs {objective.needs}",
                "Use data of that kind, or another objective.",
            )
