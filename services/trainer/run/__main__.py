"""python -m services.trainer.run [train|merge|evaluate] SPEC_FILE: does one job and ends with one of the contract's exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from graft.digests import canonical_json
from graft.errors import GraftError
from graft.spec_file import read_message_file, read_spec_file
from graft.trainer.v1.model_jobs_pb2 import EvaluationSpec, MergeSpec
from graft.trainer.v1.worker_service_pb2 import Finished, Hello

from services.trainer.run.background import BackgroundLoop
from services.trainer.run.exits import ExitCode, PreemptedError, exit_of
from services.trainer.run.kube.access import JobAddress, JobApi
from services.trainer.run.last_report import leave_report
from services.trainer.run.lean import leave_out_unused, needs_hub, quiet_libraries
from services.trainer.run.reporters import JsonLinesReporter, Reporter, SilentReporter
from services.trainer.run.session import SessionReporter
from services.trainer.run.settings import WorkerSettings, read_settings
from services.trainer.run.stop import StopSignal
from services.trainer.run.trackers.reporter import tracked
from services.trainer.run.watchdog import watch_over
from services.trainer.run.worker import Worker
from services.trainer.spec import Reporting, parse_spec


def main(arguments: list[str]) -> int:
    """Runs one attempt; returns its exit code."""
    *kinds, path = arguments or [""]
    kind = kinds[0] if kinds else "train"
    if not path or len(kinds) > 1 or kind not in _KINDS:
        usage = f"Usage: python -m services.trainer.run [{'|'.join(_KINDS)}] SPEC_FILE"
        print(usage, file=sys.stderr)
        return ExitCode.BAD_CONFIG
    spec_path = Path(path)
    try:
        settings = read_settings(os.environ, spec_path)
    except GraftError as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_CONFIG
    if kind == "train":
        with suppress(GraftError):  # It is said by the attempt.
            leave_out_unused(parse_spec(read_spec_file(spec_path)))
    stop = StopSignal()
    stop.listen()
    loop = BackgroundLoop()
    reporter = _reporter(settings, loop, stop)
    if not settings.trainer_address:
        watch_over(reporter.pulse, settings.stall)
    code, finished = attempt(spec_path, settings, loop, reporter, stop, kind)
    leave_report(settings.end_file, code, finished)
    with suppress(PreemptedError):  # Told to stop while it only waits to be heard.
        reporter.finish(finished)
        loop.close()
    return code


def attempt(
    spec_path: Path,
    settings: WorkerSettings,
    loop: BackgroundLoop,
    reporter: Reporter,
    stop: StopSignal,
    kind: str = "train",
) -> tuple[ExitCode, Finished]:
    """Does the attempt; returns how it ended, whatever happens."""
    try:
        finished = _KINDS[kind](spec_path, settings, loop, reporter, stop)
        if not finished.version:
            finished.message = f"The result is in {settings.result_dir}"
        return ExitCode.DONE, finished
    except BaseException as error:
        if isinstance(error, PreemptedError):
            print(error, file=sys.stderr)
        else:
            traceback.print_exc()
        return exit_of(error, settings.work_dir)


def _train(
    path: Path,
    settings: WorkerSettings,
    loop: BackgroundLoop,
    reporter: Reporter,
    stop: StopSignal,
) -> Finished:
    given = read_spec_file(path)
    spec = parse_spec(given)
    quiet_libraries(needs_hub(spec), spec.resources.cpu_threads)
    text = canonical_json(given).decode()
    # Processes that another one speaks for are silent here, too.
    reporting = Reporting() if settings.rank else spec.reporting
    with tracked(reporter, reporting, settings, text) as tracking:
        worker = Worker(spec, text, settings, loop, tracking, stop)
        return Finished(version=worker.run(), message=worker.note)


def _merge(
    path: Path,
    settings: WorkerSettings,
    loop: BackgroundLoop,
    reporter: Reporter,
    stop: StopSignal,
) -> Finished:
    from services.trainer.run.model_jobs.merge import MergeWorker

    given = read_message_file(path, MergeSpec())
    quiet_libraries()
    text = canonical_json(given).decode()
    return Finished(version=MergeWorker(given, text, settings, loop, reporter, stop).run())


def _evaluate(
    path: Path,
    settings: WorkerSettings,
    loop: BackgroundLoop,
    reporter: Reporter,
    stop: StopSignal,
) -> Finished:
    from services.trainer.run.model_jobs.evaluate import EvaluationWorker

    given = read_message_file(path, EvaluationSpec())
    quiet_libraries()
    return Finished(version=EvaluationWorker(given, settings, loop, reporter, stop).run())


_KINDS = {"train": _train, "merge": _merge, "evaluate": _evaluate}


def _reporter(settings: WorkerSettings, loop: BackgroundLoop, stop: StopSignal) -> Reporter:
    if settings.rank:
        return SilentReporter()
    if not settings.trainer_address:
        return _unheard(settings, loop)
    return SessionReporter(
        loop,
        settings.trainer_address,
        Hello(job=settings.job, attempt=settings.attempt, token=settings.token),
        settings.trainer_patience_s,
        stop.forbid_commit,
    )


def _unheard(settings: WorkerSettings, loop: BackgroundLoop) -> Reporter:
    """The reporter of a worker without a trainer: standard output, and in a pod of a Job the Job too."""
    lines = JsonLinesReporter()
    address = JobAddress.read(os.environ)
    if address is None:
        return lines
    from services.trainer.run.kube.reporter import JobReporter

    return JobReporter(loop, JobApi(address), lines, settings.kubernetes_every_s)


def run_to_end(arguments: list[str]) -> NoReturn:
    """Runs one attempt and ends the process."""
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    # All that counts is on disk: taking torch down would hold the job's slot for another second.
    os._exit(code)


if __name__ == "__main__":
    run_to_end(sys.argv[1:])
