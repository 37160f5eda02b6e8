"""The options of `graft train`, by the panel of its help that they stand in.

Named as in TrainOptions; those that other commands have in the same words are in job_options.py.
"""

from __future__ import annotations

from typing import Annotated

import typer

_LORA, _LOOP, _DATA = "Adapter", "Optimization", "Data"

Data = Annotated[
    str | None,
    typer.Argument(
        help="A .json, .jsonl, .csv, .parquet or .arrow file, a folder, hf://owner/name or s3://bucket/key."
    ),
]
Base = Annotated[
    str | None,
    typer.Option(help="Folder of the base model, or a hub id; what `graft up` serves."),
]
Adapter = Annotated[
    str | None, typer.Option("--adapter", "-a", help="The adapter that gets a new version.")
]
Alias = Annotated[
    str | None, typer.Option(help="Points at the new version, for example production.")
]
Method = Annotated[
    str | None,
    typer.Option(
        help="lora, qlora, dora, full and so on: see `graft methods`.", rich_help_panel=_LORA
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(
        help="sft, cpt, dpo, kto, orpo, grpo, reward or distillation.", rich_help_panel=_LOOP
    ),
]
OutputBase = Annotated[
    str | None,
    typer.Option(
        help="With --method full: the base that gets a new version.", rich_help_panel=_LORA
    ),
]
Rank = Annotated[int | None, typer.Option(rich_help_panel=_LORA)]
Alpha = Annotated[float | None, typer.Option(rich_help_panel=_LORA)]
Dropout = Annotated[float | None, typer.Option(rich_help_panel=_LORA)]
TargetModules = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="Module to adapt, for example q_proj; repeat it.",
        rich_help_panel=_LORA,
    ),
]
Qlora = Annotated[
    bool | None,
    typer.Option("--qlora/--no-qlora", help="Hold the base in 4-bit NF4.", rich_help_panel=_LORA),
]
Quantization = Annotated[
    str | None,
    typer.Option(help="Hold the base in none, nf4, fp4 or int8.", rich_help_panel=_LORA),
]
Epochs = Annotated[float | None, typer.Option(rich_help_panel=_LOOP)]
MaxSteps = Annotated[int | None, typer.Option(rich_help_panel=_LOOP)]
LearningRate = Annotated[
    float | None, typer.Option("--lr", help="Peak learning rate.", rich_help_panel=_LOOP)
]
MicroBatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Sequences per forward pass.", rich_help_panel=_LOOP),
]
GradientAccumulationSteps = Annotated[
    int | None, typer.Option("--gradient-accumulation", rich_help_panel=_LOOP)
]
MaxLengthTokens = Annotated[
    int | None,
    typer.Option("--max-length", help="Longest sequence in tokens.", rich_help_panel=_LOOP),
]
Packing = Annotated[
    bool | None,
    typer.Option(
        "--packing/--no-packing", help="Several rows in one sequence.", rich_help_panel=_LOOP
    ),
]
Schedule = Annotated[
    str | None, typer.Option(help="linear, cosine or constant.", rich_help_panel=_LOOP)
]
Seed = Annotated[int | None, typer.Option(rich_help_panel=_LOOP)]
Format = Annotated[
    str | None,
    typer.Option(
        help="alpaca, sharegpt, messages, prompt_completion, text, preference, kto or prompt; "
        "found out if not given.",
        rich_help_panel=_DATA,
    ),
]
EvalFraction = Annotated[
    float | None, typer.Option(help="Rows held out, 0 to 0.5.", rich_help_panel=_DATA)
]
MaxRows = Annotated[int | None, typer.Option(help="Only the first rows.", rich_help_panel=_DATA)]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        "--template",
        help="A named chat template instead of the base's own.",
        rich_help_panel=_DATA,
    ),
]
LossOn = Annotated[
    str | None,
    typer.Option(help="assistant, last_turn or everything.", rich_help_panel=_DATA),
]
Upload = Annotated[
    bool,
    typer.Option(help="Send the data along, for a trainer elsewhere.", rich_help_panel=_DATA),
]
Slots = Annotated[int | None, typer.Option(help="Accelerators to use.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Start the job and come back.")]
