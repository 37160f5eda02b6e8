"""Where a job's figures go beside the trainer. Credentials come from the worker's environment, never from the spec."""

from __future__ import annotations

import re
from dataclasses import dataclass

from graft.errors import GraftError, Reason
from graft.trainer.v1 import reporting_pb2 as pb

from services.trainer.fields import choice, invalid_field

_PATH = "reporting"
_CREDENTIALS = re.compile(r"//[^/?#]*@")
_MLFLOW_SCHEMES = ("http://", "https://", "sqlite:", "postgresql://", "databricks")
_LONGEST_NAME = 128


@dataclass(frozen=True, slots=True)
class TensorBoard:
    """Event files; folder "" is the job's own."""

    folder: str


@dataclass(frozen=True, slots=True)
class MlFlow:
    """A run in MLflow; tracking_uri "" is what the environment names, run_name "" the job's."""

    tracking_uri: str
    experiment: str
    run_name: str


@dataclass(frozen=True, slots=True)
class WeightsAndBiases:
    """A run in Weights & Biases; entity "" is the key's own, run_name "" the job's."""

    project: str
    entity: str
    run_name: str
    mode: str


@dataclass(frozen=True, slots=True)
class Reporting:
    """The trackers that a job reports to."""

    tensorboard: TensorBoard | None = None
    mlflow: MlFlow | None = None
    wandb: WeightsAndBiases | None = None


def parse_reporting(given: pb.Reporting) -> Reporting:
    """Checks the trackers' settings.

    Raises:
        GraftError: INVALID_SPEC, naming the field.
    """
    tensorboard, mlflow, wandb = None, None, None
    if given.HasField("tensorboard"):
        tensorboard = TensorBoard(given.tensorboard.folder)
    if given.HasField("mlflow"):
        mlflow = _mlflow(given.mlflow)
    if given.HasField("wandb"):
        one, path = given.wandb, f"{_PATH}.wandb"
        wandb = WeightsAndBiases(
            project=_name(f"{path}.project", one.project or "graft"),
            entity=_name(f"{path}.entity", one.entity),
            run_name=_name(f"{path}.run_name", one.run_name),
            mode=choice(f"{path}.mode", one.mode, ("online", "offline")),
        )
    return Reporting(tensorboard, mlflow, wandb)


def _mlflow(given: pb.MlFlow) -> MlFlow:
    path, uri = f"{_PATH}.mlflow", given.tracking_uri
    if _CREDENTIALS.search(uri):
        # Without the value: messages are logged.
        raise GraftError(
            Reason.INVALID_SPEC,
            f"{path}.tracking_uri holds a user name or password, which a spec must not",
            next_step="Leave it out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN, in the worker's environment.",
            field=f"{path}.tracking_uri",
        )
    if uri and not uri.startswith(_MLFLOW_SCHEMES):
        raise invalid_field(
            f"{path}.tracking_uri",
            uri,
            "an address such as http://host:5000 or sqlite:////folder/mlflow.db",
        )
    return MlFlow(
        uri,
        _name(f"{path}.experiment", given.experiment or "graft"),
        _name(f"{path}.run_name", given.run_name),
    )


def _name(path: str, text: str) -> str:
    if len(text) > _LONGEST_NAME or not text.isprintable():
        raise invalid_field(
            path, text[:40], f"a name of at most {_LONGEST_NAME} printable characters"
        )
    return text
