"""Preflight: what is wrong with a job, and what its data looks like to the model, before anything is trained."""

from services.trainer.preflight.base import NoPreflight, Preflight
from services.trainer.preflight.check import check_spec
from services.trainer.preflight.process import ProcessPreflight

__all__ = ["NoPreflight", "Preflight", "ProcessPreflight", "check_spec"]
