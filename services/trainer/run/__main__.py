"""python -m services.trainer.run [train|merge|evaluate] SPEC_FILE: does one job and ends with one of the contract's exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from graft.digests import canonical_json
from graft.errors import GraftError
from graft.spec_file import read_message_file, read_spec_file
from graft.trainer.v1.model_jobs_pb2 import EvaluationSpec, MergeSpec
from graft.trainer.v1.worker_service_pb2 import Finished, Hello

from services.trainer.run.background import BackgroundLoop
from services.trainer.run.exits import ExitCode, PreemptedError, exit_of
from services.trainer.run.kube.access import JobAddress, JobApi
from services.trainer.run.kube.reporter import JobReporter
from services.trainer.run.last_report import leave_report
from services.trainer.run.reporters import JsonLinesReporter, Reporter, SilentReporter
from services.trainer.run.session import SessionReporter
from services.trainer.run.settings import WorkerSettings, read_settings
from services.trainer.run.stop import StopSignal
from services.trainer.run.watchdog import watch_over
from services.trainer.run.worker import Worker
from services.trainer.sources import is_elsewhere
from services.trainer.spec import JobSpec, local_path, parse_spec


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
        version = _KINDS[kind](spec_path, settings, loop, reporter, stop)
        message = "" if version else f"The result is in {settings.result_dir}"
        return ExitCode.DONE, Finished(version=version, message=message)
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
) -> str:
    given = read_spec_file(path)
    spec = parse_spec(given)
    _quiet_libraries(_needs_hub(spec), spec.resources.cpu_threads)
    return Worker(spec, canonical_json(given).decode(), settings, loop, reporter, stop).run()


def _merge(
    path: Path,
    settings: WorkerSettings,
    loop: BackgroundLoop,
    reporter: Reporter,
    stop: StopSignal,
) -> str:
    from services.trainer.run.model_jobs.merge import MergeWorker

    given = read_message_file(path, MergeSpec())
    _quiet_libraries()
    return MergeWorker(given, canonical_json(given).decode(), settings, loop, reporter, stop).run()


def _evaluate(
    path: Path,
    settings: WorkerSettings,
    loop: BackgroundLoop,
    reporter: Reporter,
    stop: StopSignal,
) -> str:
    from services.trainer.run.model_jobs.evaluate import EvaluationWorker

    given = read_message_file(path, EvaluationSpec())
    _quiet_libraries()
    return EvaluationWorker(given, settings, loop, reporter, stop).run()


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
    return JobReporter(loop, JobApi(address), lines, settings.kubernetes_every_s)


def _quiet_libraries(hub: bool = True, cpu_threads: int = 0) -> None:
    """Environment that must be set before the libraries are imported: nothing phones home, nothing draws bars."""
    settings = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "BITSANDBYTES_NOWELCOME": "1",
        "TQDM_DISABLE": "1",
    }
    if not hub:
        settings |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if cpu_threads:
        settings["OMP_NUM_THREADS"] = str(cpu_threads)
    os.environ.update(settings)


def _needs_hub(spec: JobSpec) -> bool:
    """Whether anything that the job names is not on this machine, and may be on the Hub."""
    models = (spec.base.source, getattr(spec.objective, "teacher", ""))
    sets = (*spec.dataset.sources, *spec.dataset.eval_sources)
    return any(model and not local_path(model).is_dir() for model in models) or any(
        one.path and is_elsewhere(one) for one in sets
    )


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # All that counts is on disk: taking torch down would hold the job's slot for another second.
    os._exit(code)
