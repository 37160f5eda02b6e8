"""Trains: examples -> tokens -> method -> objective -> loop -> a result on disk."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import torch
from graft.digests import digest_bytes
from graft.errors import GraftError, Reason
from graft.registry.v1.registry_service_pb2 import CommitVersionRequest, Lineage
from graft.trainer.v1 import stages_pb2 as stages
from transformers import set_seed

from services.trainer.methods import METHODS, Method, Setting
from services.trainer.objectives import OBJECTIVES, Objective, Prepared, Reading, Run
from services.trainer.run.bases import BaseFolder, find_folder
from services.trainer.run.checkpoint_writer import CheckpointWriter
from services.trainer.run.checkpoints import Checkpoint, CheckpointStore, Keep
from services.trainer.run.data import Data
from services.trainer.run.evaluating.evaluator import make_evaluator
from services.trainer.run.exits import PreemptedError
from services.trainer.run.memory import Pieces
from services.trainer.run.models import load_model, longest_input_tokens
from services.trainer.run.precision import check_machine, quicken
from services.trainer.run.progress import Progress, batches_of_step
from services.trainer.run.reporters import Reporter
from services.trainer.run.result import Result, commit_id, library_versions, store_result
from services.trainer.run.settings import WorkerSettings
from services.trainer.run.sharding.choose import choose_sharding
from services.trainer.run.stop import StopSignal
from services.trainer.run.team import Team
from services.trainer.run.trainers.common import steps_per_epoch, total_steps
from services.trainer.spec import BaseSpec, JobSpec, alone_only
from services.trainer.tokens import end_token_ids, load_tokenizer

_CHAT_TEMPLATE = "chat_template.jinja"
_REPORT = "evaluation.md"
_UNBOUNDED = 2**31 - 1


class Training:
    """One run of the training, from its beginning or from its last good checkpoint.

    Args:
        spec: the job.
        spec_json: the spec as it was given; checkpoints of another are not used.
        settings: where the files go.
        reporter: gets what happens.
        stop: asked at each step's end.
        team: the processes that train it together; this one alone when left out.
    """

    def __init__(
        self,
        spec: JobSpec,
        spec_json: str,
        settings: WorkerSettings,
        reporter: Reporter,
        stop: StopSignal,
        team: Team | None = None,
    ) -> None:
        self._spec = spec
        self._spec_json = spec_json
        self._settings = settings
        self._reporter = reporter
        self._stop = stop
        self._team = team or Team()
        self._checkpoint: Checkpoint | None = None
        if spec.resources.cpu_threads:
            torch.set_num_threads(spec.resources.cpu_threads)

    def run(self, base: BaseFolder, data: Data, output: str) -> Result | None:
        """Trains and stores the result for the adapter, or base, of that resource name.

        Returns:
            The result; None in a process that is not the first of its team.

        Raises:
            GraftError: what is wrong with spec, base or data, or the training has diverged.
            PreemptedError: it was told to stop; a checkpoint holds what was done.
        """
        team = self._team
        check_together(self._spec, team)
        check_machine(self._spec.hyperparameters, torch.cuda.is_available())
        store = self._checkpoints(data, base)
        self._checkpoint = self._shared_checkpoint(store)
        spec = self._spec = self._as_before(self._spec)
        objective = OBJECTIVES[spec.objective.kind].make(spec.objective)
        tokenizer = load_tokenizer(base.folder, spec.dataset.chat_template)
        set_seed(spec.seed)
        model = objective.load_model(base.folder, self._held(spec))
        reading = self._reading(base, model, tokenizer, data)
        prepared = objective.prepare(data.training, data.held_out, reading)
        epoch_steps = (
            steps_per_epoch(spec, prepared.sequences or 0, team.size)
            or spec.hyperparameters.max_steps
        )
        steps = total_steps(spec, epoch_steps)
        method = self._method(objective, base, tokenizer, steps)
        size = spec.hyperparameters.micro_batch_size
        pieces = Pieces(size, self._reporter.log, self._settings.work_dir)
        progress = Progress(self._reporter, self._stop, team, pieces)
        taken = spec.method.input_tokens
        # Where all must make the same passes, each measures everything.
        alike = choose_sharding(spec, team).evaluates_together
        evaluator = make_evaluator(
            reading,
            data,
            longest_input_tokens(model, _UNBOUNDED, taken),
            Team() if alike else team,
            self._stop.check,
        )
        progress.keep("evaluation", evaluator)
        progress.step_batches = spec.hyperparameters.gradient_accumulation_steps * team.size
        model = method.apply(model)
        quicken(model, spec.hyperparameters)
        trainer = objective.make_trainer(
            Run(
                spec=spec,
                model=model,
                tokenizer=tokenizer,
                prepared=prepared,
                total_steps=steps,
                steps_per_epoch=epoch_steps,
                max_tokens=reading.max_tokens,
                method=method,
                store=store,
                writer=CheckpointWriter(store, progress.checkpoint),
                progress=progress,
                load_base=load_other_base,
                team=team,
                evaluations=evaluator,
            )
        )
        self._fit(trainer, store)
        if spec.checkpointing.use_best:
            self._take_best(trainer, store)
        self._reporter.stage(stages.JOB_STAGE_EVALUATING)
        trainer.measure_after()
        progress.report_end(evaluator.figures())
        with trainer.sharding.gathered(trainer.model, None, method.info.makes_base):
            if not team.first:
                return None
            lineage = self._lineage(data, prepared, progress)
            request = self._commit_request(base, output, lineage)
            return self._save(method, trainer.model, tokenizer, request, evaluator.report())

    def _held(self, spec: JobSpec) -> BaseSpec:
        """The base as it is loaded: what is cut into parts need not fit a device."""
        cut = not self._team.alone and spec.resources.sharding.shares_parameters
        return replace(spec.base, on_host=cut)

    def _as_before(self, spec: JobSpec) -> JobSpec:
        """The spec with the rows per step of the checkpoint that is gone on from, whose processes may have been more or fewer.

        Raises:
            GraftError: INVALID_SPEC, when this many processes cannot share them.
        """
        wanted = batches_of_step(self._checkpoint.path) if self._checkpoint else 0
        hyper, processes = spec.hyperparameters, self._team.size
        if wanted in (0, hyper.gradient_accumulation_steps * processes):
            return spec
        if wanted % processes:
            raise GraftError(
                Reason.INVALID_SPEC,
                f"The checkpoint's steps have {wanted} batches, which {processes} processes cannot share",
                next_step=f"Train with a number of processes that divides {wanted}.",
                field="resources.processes_per_node",
            )
        steps = wanted // processes
        self._reporter.log(
            f"The checkpoint's steps have {wanted} batches: each of {processes} processes takes {steps}, instead of "
            f"{hyper.gradient_accumulation_steps}, and a step's rows stay the same."
        )
        return replace(spec, hyperparameters=replace(hyper, gradient_accumulation_steps=steps))

    def _reading(self, base: BaseFolder, model: Any, tokenizer: Any, data: Data) -> Reading:
        return Reading(
            spec=self._spec,
            tokenizer=tokenizer,
            end_ids=end_token_ids(tokenizer, base.folder),
            max_tokens=self._max_tokens(model),
            log=self._reporter.log,
            stream=data.stream,
            processes=self._team.size,
        )

    def _method(
        self, objective: Objective[Any], base: BaseFolder, tokenizer: Any, steps: int
    ) -> Method[Any]:
        setting = Setting(
            base_name=self._spec.base.name,
            task_type=objective.info.task_type,
            total_steps=steps,
            gradient_checkpointing=self._spec.hyperparameters.gradient_checkpointing,
            tokenizer=tokenizer,
            seed=self._spec.seed,
            base_folder=base.folder,
        )
        return METHODS[self._spec.method.kind].make(self._spec.method, setting)

    def _commit_request(
        self, base: BaseFolder, output: str, lineage: Lineage
    ) -> CommitVersionRequest:
        method, origin = METHODS[self._spec.method.kind].info, base.record.fingerprint.digest
        request = CommitVersionRequest(
            parent=output,
            lineage=lineage,
            request_id=commit_id(self._settings.job, self._spec_json),
            method=method.kind,
        )
        if method.makes_base:
            request.lineage.sources.append(f"{base.record.name} {origin}")
        else:
            request.base_fingerprint = origin
        return request

    def _max_tokens(self, model: Any) -> int:
        wanted = self._spec.hyperparameters.max_length_tokens
        taken = self._spec.method.input_tokens
        longest = longest_input_tokens(model, wanted, taken)
        if longest < wanted:
            beside = f" beside the {taken} learned ones" if taken else ""
            self._reporter.log(
                f"The base reads at most {longest} tokens{beside}, so rows are cut there."
            )
        return longest

    def _checkpoints(self, data: Data, base: BaseFolder) -> CheckpointStore:
        kept = self._spec.checkpointing
        belongs_to = (self._spec_json, data.digest, base.record.fingerprint.digest)
        return CheckpointStore(
            self._settings.checkpoints_dir,
            Keep(kept.keep, kept.keep_best, kept.keep_every_steps),
            digest_bytes("\n".join(belongs_to).encode()),
            self._reporter.log,
        )

    def _fit(self, trainer: Any, store: CheckpointStore) -> None:
        checkpoint = self._checkpoint
        if checkpoint and checkpoint.step >= trainer.args.max_steps:
            self._reporter.log(
                f"All {checkpoint.step} steps are trained; the result is saved again."
            )
            trainer.restore(checkpoint.path)
            return
        if checkpoint:
            self._reporter.log(f"Going on from the checkpoint of step {checkpoint.step}.")
            if _had_stopped(trainer, checkpoint):
                return
        with self._stop.checked_by_stage(), trainer.graft_run.writer:
            trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        stopped_early = trainer.graft_run.evaluations.stopped_at is not None
        if trainer.state.global_step < trainer.state.max_steps and not stopped_early:
            raise PreemptedError(f"Stopped after step {trainer.state.global_step}")

    def _shared_checkpoint(self, store: CheckpointStore) -> Checkpoint | None:
        """The first process' last good checkpoint, in every process: their disks need not be one."""
        return self._share(store.last_good() if self._team.first else None, store)

    def _share(self, own: Checkpoint | None, store: CheckpointStore) -> Checkpoint | None:
        """The first process' checkpoint, in every process."""
        step = self._team.tell(own.step if own else 0)
        if not step:
            return None
        checkpoint = own or store.place(step)
        self._team.share_folder(checkpoint.path)
        return checkpoint

    def _take_best(self, trainer: Any, store: CheckpointStore) -> None:
        """Puts the best checkpoint's state into the model, where it is better than the last step's."""
        run, last = trainer.graft_run, trainer.score
        best = store.best() if self._team.first else None
        if best is not None and (
            best.score is None
            or best.step >= trainer.state.global_step
            or not best.score.beats(last)
        ):
            best = None
        checkpoint = self._share(best, store)
        if checkpoint is None:
            return
        with trainer.sharding.loading(trainer.model):
            run.method.load_checkpoint(trainer.model, checkpoint.path)
        run.progress.use_result(checkpoint)
        if best is None or best.score is None:
            return
        after = f", and the last step's {last.value:.6g}" if last else ""
        self._reporter.log(
            f"The result is the checkpoint of step {best.step}: its {best.score.metric} is "
            f"{best.score.value:.6g}{after}."
        )

    def _lineage(self, data: Data, prepared: Prepared, progress: Progress) -> Lineage:
        return Lineage(
            job=self._settings.job,
            attempt=self._settings.attempt,
            spec_json=self._spec_json,
            data_digest=data.digest,
            data_rows=prepared.rows,
            seed=self._spec.seed,
            library_versions=library_versions(self._spec.base.quantization != "none"),
            metrics=data.cleaning.figures()
            | progress.final_figures()
            | dict(prepared.figures)
            | ({} if self._team.alone else {"processes": float(self._team.size)}),
            sources=data.origins,
        )

    def _save(
        self,
        method: Method[Any],
        model: Any,
        tokenizer: Any,
        request: CommitVersionRequest,
        report: str,
    ) -> Result:
        self._reporter.stage(stages.JOB_STAGE_SAVING)
        partial = self._settings.work_dir / "result.partial"
        shutil.rmtree(partial, ignore_errors=True)
        method.save(model, partial)
        files = {*method.result_files(partial)}
        if report:
            (partial / _REPORT).write_text(report, "utf-8")
            files.add(_REPORT)
        if self._spec.dataset.chat_template:
            # Whoever serves it must render as it was trained, which the base's own template does not.
            (partial / _CHAT_TEMPLATE).write_text(tokenizer.chat_template, "utf-8")
            files.add(_CHAT_TEMPLATE)
            self._reporter.log(
                f"Trained with the chat template {self._spec.dataset.chat_template}, which is saved with the result: "
                "serve it with that template where the base's own differs."
            )
        return store_result(self._settings.result_dir, partial, request, sorted(files))


def _had_stopped(trainer: Any, checkpoint: Checkpoint) -> bool:
    """Whether the training had ended early at a checkpoint; its state then is the model's."""
    run = trainer.graft_run
    run.progress.load(checkpoint.path)
    if run.evaluations.stopped_at is None:
        return False
    run.method.load_checkpoint(trainer.model, checkpoint.path)
    trainer.state.global_step = checkpoint.step
    return True


def check_together(spec: JobSpec, team: Team) -> None:
    """Refuses an objective that one process trains, where there are several.

    Raises:
        GraftError: INVALID_SPEC.
    """
    info = OBJECTIVES[spec.objective.kind].info
    if not team.alone and not info.several_processes:
        raise alone_only(info.title, team.size)


def load_other_base(spec: BaseSpec) -> Any:
    """A base beside the job's own, for example a teacher.

    Raises:
        GraftError: NOT_A_MODEL.
    """
    return load_model(find_folder(spec.source), spec)
