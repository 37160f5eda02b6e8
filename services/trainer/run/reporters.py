"""Where a worker's reports go. The trainer gets them by a session (session.py); without one, standard output does."""

from __future__ import annotations

import json
import sys
import threading
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TextIO

from google.protobuf.json_format import MessageToDict
from graft.common.v1.common_pb2 import TrainingMetrics
from graft.trainer.v1.worker_service_pb2 import Finalizing, Finished, SessionRequest, Started

from services.trainer.run.pulse import Pulse


class Reporter(ABC):
    """Takes reports without making the training wait."""

    @cached_property
    def pulse(self) -> Pulse:
        """Hears of each step's beginning and end; what the signs of life tell."""
        return Pulse()

    @abstractmethod
    def send(self, report: SessionRequest) -> None:
        """Takes a report; its number is set here."""

    @abstractmethod
    def finish(self, report: Finished) -> None:
        """Takes the last report and waits, within reason, until it has arrived."""

    def started(self, started: Started) -> None:
        """Reports that training begins."""
        self.send(SessionRequest(started=started))

    def metrics(self, metrics: TrainingMetrics) -> None:
        """Reports figures."""
        self.send(SessionRequest(metrics=metrics))

    def log(self, line: str) -> None:
        """Reports a line for people."""
        self.send(SessionRequest(log=line))

    def checkpoint(self, step: int) -> None:
        """Reports a checkpoint that is safe on disk."""
        self.send(SessionRequest(checkpoint_step=step))

    def finalizing(self) -> None:
        """Reports that the result is on its way."""
        self.send(SessionRequest(finalizing=Finalizing()))


class SilentReporter(Reporter):
    """Of a process that another one speaks for."""

    def send(self, report: SessionRequest) -> None:
        pass

    def finish(self, report: Finished) -> None:
        pass


class JsonLinesReporter(Reporter):
    """Writes each report as one line of JSON, the SessionRequest's JSON form."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._number = 0
        self._lock = threading.Lock()

    def send(self, report: SessionRequest) -> None:
        with self._lock:
            self._number += 1
            report.report_number = self._number
            as_dict = MessageToDict(report, preserving_proto_field_name=True)
            print(json.dumps(as_dict, ensure_ascii=False), file=self._out, flush=True)

    def finish(self, report: Finished) -> None:
        self.send(SessionRequest(finished=report))
