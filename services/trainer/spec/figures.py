"""The figures that a model is measured by: their names, what they look at, and which way is better. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

from services.trainer.fields import invalid_field, one_of

PREFIX = "eval_"
REGRESSION = "regression"
ALWAYS = ("loss", "perplexity")
OF_TOKENS = ("token_accuracy",)
OF_ANSWERS = ("exact_match", "bleu", "rouge_1", "rouge_2", "rouge_l")
# What trainers of preferences and rewards report of held-out rows.
OF_OBJECTIVES = {
    "dpo": ("accuracy", "margin"),
    "kto": ("margin",),
    "orpo": ("accuracy",),
    "reward": ("accuracy", "margin"),
    "grpo": ("reward",),
}


def higher_is_better(figure: str) -> bool:
    """Whether more of a figure is better: of all but losses."""
    return figure not in ALWAYS


def worse_by(figure: str, before: float, after: float) -> float:
    """How much worse a figure is than before; below 0 when it is better."""
    return before - after if higher_is_better(figure) else after - before


def figure_names(path: str, names: Sequence[str]) -> tuple[str, ...]:
    """Figures that can be asked for beside loss and perplexity, each once.

    Raises:
        GraftError: INVALID_SPEC.
    """
    allowed = (*OF_TOKENS, *OF_ANSWERS)
    for index, name in enumerate(names):
        at = f"{path}[{index}]"
        if name in ALWAYS:
            raise invalid_field(at, name, "left out, because it is always measured")
        if name not in allowed:
            raise invalid_field(at, name, one_of(allowed))
        if name in names[:index]:
            raise invalid_field(at, name, "each figure only once")
    return tuple(names)


def of_answers(names: Sequence[str]) -> tuple[str, ...]:
    """Those that look at generated answers."""
    return tuple(name for name in names if name in OF_ANSWERS)
