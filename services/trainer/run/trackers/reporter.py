"""Feeds trackers with what a worker reports, each from a queue and a thread of its own: none of them is ever waited for."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from graft.common.v1.common_pb2 import TrainingMetrics
from graft.trainer.v1.worker_service_pb2 import Finished, SessionRequest

from services.trainer.run.reporters import Reporter
from services.trainer.run.settings import WorkerSettings
from services.trainer.run.trackers.base import About, Tracker
from services.trainer.run.trackers.build import build_trackers
from services.trainer.spec import Reporting

_MOST_WAITING = 1000
_CLOSING_S = 10.0
_FIGURES = ("loss", "learning_rate", "grad_norm", "epoch", "tokens", "tokens_per_second")
_Log = Callable[[str], None]


def figures_of(metrics: TrainingMetrics) -> dict[str, float]:
    """The figures of a report, under the names that trackers show."""
    found = {name: float(getattr(metrics, name)) for name in _FIGURES}
    if metrics.HasField("eval_loss"):
        found["eval_loss"] = metrics.eval_loss
    return found | dict(metrics.figures)


class Feeder:
    """One tracker with its queue. What it raises costs its figures and a line in the log, and nothing else.

    Args:
        tracker: to be fed.
        about: what its run is of.
        log: takes a line for people.
        capacity: reports that wait at most; of more the newest are dropped, and counted.
    """

    def __init__(
        self, tracker: Tracker, about: About, log: _Log, capacity: int = _MOST_WAITING
    ) -> None:
        self._tracker, self._about, self._log = tracker, about, log
        self._waiting: queue.Queue[TrainingMetrics | None] = queue.Queue(capacity)
        self._first_step = 0
        self._succeeded = False
        self._dropped = 0
        self._failure = ""
        # A daemon: a tracker that hangs does not hold the worker.
        self._thread = threading.Thread(target=self._feed, daemon=True, name=tracker.name)
        self._ended = threading.Event()

    def begin(self, first_step: int) -> None:
        """Opens the run; from now on figures are taken."""
        self._first_step = first_step
        self._thread.start()

    def put(self, metrics: TrainingMetrics) -> None:
        """Takes figures without waiting."""
        copy = TrainingMetrics()
        copy.CopyFrom(metrics)
        try:
            self._waiting.put_nowait(copy)
        except queue.Full:
            self._dropped += 1

    def close(self, succeeded: bool, until_s: float) -> None:
        """Lets it write what waits, until a moment of time.monotonic(); says what it did not get."""
        self._succeeded = succeeded
        if self._thread.ident is not None:
            with suppress(queue.Full):
                self._waiting.put(None, timeout=max(0.0, until_s - time.monotonic()))
            self._ended.wait(max(0.0, until_s - time.monotonic()))
            if not self._ended.is_set():
                self._dropped += self._waiting.qsize()
                self._failure = self._failure or "it did not answer in time"
        if self._dropped:
            why = f" ({self._failure})" if self._failure else ", which was too slow"
            self._log(f"{self._dropped} reports did not reach {self._tracker.name}{why}.")

    def _feed(self) -> None:
        try:
            self._tracker.start(self._about, self._first_step)
        except Exception as error:  # Whatever a tracker's library raises.
            self._fail("cannot be reached", error)
        while (metrics := self._waiting.get()) is not None:
            if self._failure:
                self._dropped += 1
                continue
            try:
                self._tracker.log(metrics.step, figures_of(metrics))
            except Exception as error:
                self._dropped += 1
                self._fail("takes no figures any more", error)
        try:
            self._tracker.close(self._succeeded)
        except Exception as error:
            self._fail("was not closed", error)
        self._ended.set()

    def _fail(self, what: str, error: Exception) -> None:
        if not self._failure:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            self._failure = reason
            self._log(f"{self._tracker.name} {what}: {reason}. The training goes on without it.")


class TrackingReporter(Reporter):
    """Passes every report on, and figures to trackers, too.

    Args:
        inner: where reports go.
        trackers: to be fed.
        about: what their runs are of.
    """

    def __init__(self, inner: Reporter, trackers: Sequence[Tracker], about: About) -> None:
        self._inner = inner
        self._feeders = [Feeder(tracker, about, inner.log) for tracker in trackers]
        self._begun = False

    def send(self, report: SessionRequest) -> None:
        kind = report.WhichOneof("report")
        if kind == "started" and not self._begun:
            self._begun = True
            for feeder in self._feeders:
                feeder.begin(report.started.step)
        if kind == "metrics":
            for feeder in self._feeders:
                feeder.put(report.metrics)
        self._inner.send(report)

    def finish(self, report: Finished) -> None:
        self._inner.finish(report)

    def close(self, succeeded: bool) -> None:
        """Gives the trackers a few seconds, all together, to take what waits."""
        until_s = time.monotonic() + _CLOSING_S
        for feeder in self._feeders:
            feeder.close(succeeded, until_s)


@contextmanager
def tracked(
    reporter: Reporter, reporting: Reporting, settings: WorkerSettings, spec_json: str
) -> Iterator[Reporter]:
    """A reporter that feeds the trackers that a spec names, too; the same one where it names none.

    Raises:
        GraftError: INVALID_SPEC, without a tracker's package.
    """
    if reporting == Reporting():
        yield reporter
        return
    job = settings.job.rpartition("/")[2]
    trackers = build_trackers(reporting, job, settings.work_dir)
    tracking = TrackingReporter(reporter, trackers, About(job, settings.attempt, spec_json))
    try:
        yield tracking
    except BaseException:
        tracking.close(succeeded=False)
        raise
    tracking.close(succeeded=True)
