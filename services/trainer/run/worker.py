"""One attempt of one job, from the spec to the version; reads top to bottom.

What it needs of torch is in training.py, so that a spec, a base or data that cannot work are refused
before torch is loaded, and a result that only waits for the registry is committed without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from graft.bases import read_base
from graft.channel import REQUEST_ID, open_channel
from graft.errors import GraftError, Reason
from graft.keys import PrivateKey, load_key
from graft.names import adapter_name, alias_name, base_name
from graft.registry.v1.registry_service_pb2 import Version
from graft.trainer.v1 import stages_pb2 as stages

from services.trainer.objectives import OBJECTIVES
from services.trainer.run.background import BackgroundLoop
from services.trainer.run.bases import BaseFolder, open_base
from services.trainer.run.data import read_data, set_opener
from services.trainer.run.exits import PreemptedError, exit_of
from services.trainer.run.holding import held_data
from services.trainer.run.lean import read_libraries
from services.trainer.run.publish import Publisher
from services.trainer.run.reporters import Reporter
from services.trainer.run.result import Result, add_parent, describe, find_result
from services.trainer.run.settings import WorkerSettings
from services.trainer.run.stop import StopSignal
from services.trainer.run.team import Team
from services.trainer.spec import JobSpec


class Worker:
    """Does one attempt.

    Args:
        spec: the job.
        spec_json: the spec as it was given, for the lineage.
        settings: what the launcher said.
        loop: for everything over the network.
        reporter: gets what happens.
        stop: asked whether to go on.
    """

    def __init__(
        self,
        spec: JobSpec,
        spec_json: str,
        settings: WorkerSettings,
        loop: BackgroundLoop,
        reporter: Reporter,
        stop: StopSignal,
    ) -> None:
        self._spec = spec
        self._spec_json = spec_json
        self._settings = settings
        self._loop = loop
        self._reporter = reporter
        self._stop = stop
        output, namespace = spec.output, settings.namespace
        self._adapter = adapter_name(namespace, output.adapter) if output.adapter else ""
        self._output = self._adapter or base_name(namespace, output.base)
        self._all_trained = False
        # What to know of a job that succeeded: why the alias stays where it is, for example.
        self.note = ""
        self._team = Team()

    def run(self) -> str:
        """Trains, or goes on training, and commits; returns the version's name, "" without a registry.

        Raises:
            GraftError: what is wrong with spec, base or data.
            PreemptedError: the attempt was told to stop; a checkpoint holds what was done.
            RegistryRefusedError: the registry does not take the result.
        """
        self._settings.work_dir.mkdir(parents=True, exist_ok=True)
        with _calls_named(f"{self._settings.job}/{self._settings.attempt}"):
            dataset = self._spec.dataset
            every = (
                one.blob_digest
                for one in (*dataset.sources, *dataset.eval_sources, *dataset.regression_sources)
            )
            digests = [digest for digest in every if digest]
            with held_data(digests, self._settings, self._loop, self._reporter):
                return self._together()

    def _together(self) -> str:
        """The attempt. Why one of several processes fails is heard by all of them."""
        try:
            return self._run()
        except PreemptedError as error:
            raise self._team.cause_of(error) from error
        except Exception as error:
            code, finished = exit_of(error, self._settings.work_dir)
            self._team.fail(code, finished.message)
            raise

    def _run(self) -> str:
        # A key that cannot be used is refused before any time is spent.
        key = load_key(self._settings.signing_key) if self._settings.signing_key else None
        base = open_base(self._spec.base, self._settings.namespace)
        if self._settings.rank:
            return self._help(base)
        parent, made = "", None
        if self._settings.registry_address:
            parent, made = self._loop.run(self._check_registry(base))
        fingerprint = base.record.fingerprint.digest
        result = find_result(self._settings.result_dir, self._spec_json, fingerprint)
        team = self._gather(base, result is None and made is None)
        if result is None and made is not None:
            # Its files are gone with an earlier pod's disk.
            self._loop.run(self._point(made))
            team.end()
            return made.name
        if result is None:
            result = self._train(base, team)
            assert result is not None, "this is the first process"
            if parent and not self._adapter:
                # An adapter's base is found by its fingerprint; a base's version has its own.
                add_parent(result, parent)
        self._reporter.finalizing()
        self._reporter.log(describe(result))
        version = ""
        if self._settings.registry_address:
            version = self._loop.run(self._publish(base, result, key)).name
        team.end()
        return version

    def _help(self, base: BaseFolder) -> str:
        """What every process but the first does: its part of the training, and to be there until the end."""
        team = self._gather(base, False)
        if not self._all_trained:
            self._train(base, team)
        team.wait_for_end()
        return ""

    async def _check_registry(self, base: BaseFolder) -> tuple[str, Version | None]:
        """The base's version that is trained on, and the version that this job has made already."""
        async with open_channel(self._settings.registry_address) as channel:
            publisher = self._publisher(channel)
            parent = await publisher.check(base.record, self._adapter)
            made = await publisher.find(self._output, self._settings.job, self._spec_json)
            return parent, made

    async def _point(self, made: Version) -> None:
        self._reporter.log(f"This job has made {made.name} already; nothing is trained again.")
        if not self._spec.output.alias:
            return
        async with open_channel(self._settings.registry_address) as channel:
            alias = alias_name(self._adapter, self._spec.output.alias)
            publisher = self._publisher(channel)
            if not await publisher.pointed(alias, made.name):
                await self._promote(publisher, made)

    async def _promote(self, publisher: Publisher, version: Version) -> None:
        """Moves the alias, if what the spec asks for holds."""
        alias = alias_name(self._adapter, self._spec.output.alias)
        conditions = self._spec.evaluation.alias_conditions
        self.note = await publisher.point(alias, version, conditions)
        if self.note:
            self._reporter.log(self.note)

    def _gather(self, base: BaseFolder, to_train: bool) -> Team:
        """The processes of this job, once they are all there and have the same base."""
        if self._settings.processes == 1:
            return Team()
        from services.trainer.run.joined_team import JoinedTeam

        self._team = team = JoinedTeam.join(self._settings.rank, self._settings.processes)
        said = team.ask_all([base.record.fingerprint.digest, to_train])
        self._all_trained = not said[0][1]
        for rank, (fingerprint, _) in enumerate(said):
            if fingerprint != said[0][0]:
                raise GraftError(
                    Reason.WRONG_BASE,
                    f"Process {rank} of {team.size} finds another model at {self._spec.base.source} "
                    f"({fingerprint}) than process 0 ({said[0][0]})",
                    next_step="Put the same base on every machine, or name a Hub id with its revision.",
                )
        return team

    def _train(self, base: BaseFolder, team: Team) -> Result | None:
        spec, log = self._spec, self._reporter.log
        self._reporter.stage(stages.JOB_STAGE_PREPARING)
        opener = set_opener(self._settings, self._loop, log, self._reporter.waiting)
        objective = OBJECTIVES[spec.objective.kind].info
        data = read_data(spec.dataset, objective, spec.seed, opener, log)
        read_libraries()
        from services.trainer.run.training import Training

        training = Training(spec, self._spec_json, self._settings, self._reporter, self._stop, team)
        return training.run(base, data, self._output)

    async def _publish(self, base: BaseFolder, result: Result, key: PrivateKey | None) -> Version:
        self._reporter.stage(stages.JOB_STAGE_UPLOADING)
        async with open_channel(self._settings.registry_address) as channel:
            publisher = self._publisher(channel)
            if self._adapter:
                await publisher.prepare(base.record, self._adapter)
            else:
                made = read_base(result.folder, self._output)
                await publisher.prepare_bases(base.record, made)
            async with publisher.holding(result):
                await publisher.upload(result)
                self._reporter.stage(stages.JOB_STAGE_COMMITTING)
                version = await publisher.commit(result, self._stop.committing)
            if key is not None:
                # Before the alias moves: whoever serves it may load only what is signed.
                await publisher.sign(version, result, key)
            if self._spec.output.alias:
                await self._promote(publisher, version)
            return version

    def _publisher(self, channel: grpc.aio.Channel) -> Publisher:
        return Publisher(
            channel,
            self._settings.job,
            self._settings.registry_patience_s,
            self._reporter.log,
            self._stop.check,
            self._reporter.waiting,
        )


@contextmanager
def _calls_named(request_id: str) -> Iterator[None]:
    """Calls made inside carry this id, so that the registry's log lines are found by the job's name."""
    before = REQUEST_ID.set(request_id)
    try:
        yield
    finally:
        REQUEST_ID.reset(before)
