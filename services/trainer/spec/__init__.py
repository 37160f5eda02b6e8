"""The job spec as the trainer and the worker use it: every default filled in, every range checked."""

from services.trainer.quantization import Quantization
from services.trainer.spec.base import BaseSpec
from services.trainer.spec.combinations import alone_only
from services.trainer.spec.dataset import Cleaning, DatasetSource, DatasetSpec
from services.trainer.spec.evaluation import Evaluation
from services.trainer.spec.hyperparameters import Hyperparameters
from services.trainer.spec.job import Checkpointing, JobSpec, Output, Resources, parse_spec
from services.trainer.spec.paths import local_path
from services.trainer.spec.reporting import Reporting

__all__ = [
    "BaseSpec",
    "Checkpointing",
    "Cleaning",
    "DatasetSource",
    "DatasetSpec",
    "Evaluation",
    "Hyperparameters",
    "JobSpec",
    "Output",
    "Quantization",
    "Reporting",
    "Resources",
    "alone_only",
    "local_path",
    "parse_spec",
]
