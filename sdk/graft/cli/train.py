"""`graft train`: starts a job and shows it until it ends."""

from __future__ import annotations

import typer

from graft.cli import train_options
from graft.cli.follow import follow
from graft.cli.job_options import SpecOption, complete, given_options
from graft.cli.output import Output
from graft.cli.session import JsonOption, run
from graft.client import Client
from graft.jobs import JobHandle
from graft.results import short_id


def train(
    ctx: typer.Context,
    data: train_options.Data = None,
    base: train_options.Base = None,
    adapter: train_options.Adapter = None,
    alias: train_options.Alias = None,
    spec: SpecOption = None,
    method: train_options.Method = None,
    objective: train_options.Objective = None,
    output_base: train_options.OutputBase = None,
    rank: train_options.Rank = None,
    alpha: train_options.Alpha = None,
    dropout: train_options.Dropout = None,
    target_modules: train_options.TargetModules = None,
    qlora: train_options.Qlora = None,
    quantization: train_options.Quantization = None,
    epochs: train_options.Epochs = None,
    max_steps: train_options.MaxSteps = None,
    learning_rate: train_options.LearningRate = None,
    micro_batch_size: train_options.MicroBatchSize = None,
    gradient_accumulation_steps: train_options.GradientAccumulationSteps = None,
    max_length_tokens: train_options.MaxLengthTokens = None,
    packing: train_options.Packing = None,
    schedule: train_options.Schedule = None,
    seed: train_options.Seed = None,
    format: train_options.Format = None,
    eval_fraction: train_options.EvalFraction = None,
    max_rows: train_options.MaxRows = None,
    chat_template: train_options.ChatTemplate = None,
    loss_on: train_options.LossOn = None,
    upload: train_options.Upload = False,
    slots: train_options.Slots = None,
    detach: train_options.Detach = False,
    as_json: JsonOption = False,
) -> None:
    """Train on DATA. Ctrl-C asks whether to detach or cancel.

    Exit codes: 0 done, 64 bad config, 65 bad data, 66 out of memory, 67 refused by the registry,
    70 internal, 79 cancelled.
    """
    # Parameters that a spec has too are named as in TrainOptions.
    out, chosen = Output(as_json), given_options(ctx.params)

    async def work(client: Client) -> int | None:
        complete(chosen, client, spec, upload=upload)
        handle = await client.train(spec, upload=upload, **chosen)
        return await _show(out, handle, detach)

    run(ctx, out, work)


async def _show(out: Output, handle: JobHandle, detach: bool) -> int | None:
    if out.as_json:
        out.json({"event": "created", "job": handle.name})
    out.note(f"{short_id(handle.name)} is created.")
    if detach:
        out.note(f"Watch it: graft jobs watch {short_id(handle.name)}")
        return None
    return await follow(out, handle, may_cancel=True)
