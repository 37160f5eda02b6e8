"""Every order of what people ask for and what happens to workers: the table of states holds, nothing is lost.

The decisions of lifecycle.py are driven as the service drives them, against a plain model of what must be.
"""

from __future__ import annotations

from contextlib import suppress

from graft.errors import GraftError
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.trainer.jobs import Attempt, CheckpointSaved, Finalizing, Finished, Job, StateChanged
from services.trainer.lifecycle import Decision, begin, ended, moved, now, reported
from services.trainer.requests import cancel, pause, resume, retry
from services.trainer.states import ACTIVE, FINAL, TRANSITIONS, FailureCause, JobState
from services.trainer.verdict import judge

_S = JobState


class Races(RuleBasedStateMachine):
    """One job, its worker, and everybody who wants something of it."""

    def __init__(self) -> None:
        super().__init__()
        self.job = Job("namespaces/default/jobs/j", "default", "{}", 1, 0, 2, now())
        self.attempt: Attempt | None = None
        self.checkpoint = self.reports = 0
        self.wanted = "run"

    def change(self, decide: Decision) -> bool:
        """Applies a decision as a store does; whether it was allowed."""
        before = self.job
        made = None
        with suppress(GraftError):
            made = decide(self.job, self.attempt)
        if made is None:
            assert self.job.ended or self.job.cancel_requested
            return False
        self.job, self.attempt = made.job, made.attempt or self.attempt
        for event in made.events:
            if isinstance(event, StateChanged):
                assert event.after in TRANSITIONS[event.before]
        assert self.job.checkpoint_step >= before.checkpoint_step
        return True

    def end(self, finished: Finished | None, code: int | None, **how: bool) -> None:
        verdict = judge(self.job, finished, code, **how)  # type: ignore[arg-type]
        self.change(ended(code, verdict))

    @rule()
    def pause(self) -> None:
        if self.change(pause("why")):
            assert self.change(pause("again"))
            assert self.job.pause_requested or self.job.state is _S.PAUSED
            self.wanted = "pause"

    @rule()
    def resume(self) -> None:
        if self.change(resume()):
            once = self.job
            assert self.change(resume())
            assert self.job == once
            assert self.job.state is not _S.PAUSED
            assert not self.job.pause_requested
            self.wanted = "run"

    @rule()
    def retry(self) -> None:
        taken_up = self.job.state in (_S.PAUSED, _S.FAILED)
        if self.change(retry()):
            assert self.job.state not in FINAL
            if taken_up:
                self.wanted = "run"

    @rule()
    def cancel(self) -> None:
        if self.change(cancel("no")):
            self.wanted = "cancel"

    @precondition(lambda self: self.job.state is _S.PENDING)
    @rule(good=st.booleans())
    def check(self, good: bool) -> None:
        self.change(moved(_S.PREFLIGHT))
        self.change(moved(_S.QUEUED if good else _S.FAILED))

    @precondition(lambda self: self.job.state is _S.QUEUED)
    @rule()
    def launch(self) -> None:
        self.change(begin("t", (0,), "here"))
        self.reports = 0

    @precondition(lambda self: self.job.state is _S.RUNNING)
    @rule()
    def save(self) -> None:
        self.checkpoint, self.reports = self.checkpoint + 1, self.reports + 1
        report = (self.reports, CheckpointSaved(self.checkpoint))
        self.change(reported(self.job.attempt, [report]))

    @precondition(lambda self: self.job.state is _S.RUNNING)
    @rule()
    def finalize(self) -> None:
        self.reports += 1
        self.change(reported(self.job.attempt, [(self.reports, Finalizing())]))

    @precondition(lambda self: self.job.state in ACTIVE)
    @rule(
        how=st.sampled_from(["version", "preempted", "lost", "unknown", "paused", "bad", "drained"])
    )
    def worker_ends(self, how: str) -> None:
        wanted = self.wanted
        match how:
            case "version":
                self.end(Finished(version="v/1"), 0)
                assert self.job.state is _S.SUCCEEDED
                return
            case "bad":
                self.end(Finished(cause=FailureCause.BAD_DATA, message="row 3"), 65)
                assert self.job.state is _S.FAILED
                return
            case "preempted":
                self.end(Finished(preempted=True), 75, preempted=True)
            case "lost":
                self.end(None, -9)
            case "unknown":
                self.end(None, None, preempted=True)
            case "paused":
                self.end(None, 74)
            case _:
                self.end(None, -9, draining=True)
        allowed = {
            "cancel": {_S.CANCELLED},
            "pause": {_S.PAUSED},
            "run": {_S.PAUSED} if how == "paused" else {_S.QUEUED, _S.FAILED},
        }
        assert self.job.state in allowed[wanted], (how, wanted)

    @invariant()
    def a_request_is_open_only_while_there_is_a_worker(self) -> None:
        if self.job.pause_requested:
            assert self.job.state in ACTIVE
        assert (self.job.end_time is not None) == self.job.ended
        assert self.job.checkpoint_step == self.checkpoint


Races.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestRaces = Races.TestCase
