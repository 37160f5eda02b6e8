"""A version's report: figures of before and after, what is forgotten, the evaluations on the way, and answers to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from services.trainer.spec.figures import REGRESSION

if TYPE_CHECKING:
    from services.trainer.run.evaluating.answers import Question
    from services.trainer.run.evaluating.evaluator import Evaluator

_MOST_CHARACTERS = 2000
_MOST_EVALUATIONS = 200


def describe_evaluations(evaluator: Evaluator) -> str:
    """The report as Markdown; "" where nothing was measured. The same job says the same, whenever it runs."""
    record = evaluator.record
    if not record.after:
        return ""
    parts = ["# Evaluation", *_table(record.before, record.after)]
    if evaluator.fall is not None:
        limit = evaluator.evaluation.regression.limit
        held = "" if limit is None else f"; the limit is {limit:g}"
        parts += ["", f"Worse on the regression set by {evaluator.fall:.6g}{held}."]
    parts += _history(evaluator)
    parts += _samples(evaluator)
    return "\n".join(parts) + "\n"


def _table(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[str]:
    yield from ("", "| figure | before | after |", "|---|---:|---:|")
    for name in dict.fromkeys((*after, *before)):
        figures = (f"{one[name]:.6g}" if name in one else "" for one in (before, after))
        title = name.replace(f"{REGRESSION}_", f"{REGRESSION} set: ").replace("_", " ")
        yield f"| {title} | {' | '.join(figures)} |"


def _history(evaluator: Evaluator) -> Iterator[str]:
    history = list(evaluator.record.history.items())
    if not history:
        return
    names = list(history[-1][1])
    yield from ("", "## While training", "", f"| step | {' | '.join(names)} |")
    yield f"|---:|{'---:|' * len(names)}"
    # All of a long training would be more than anybody reads; the curve stays.
    every = -(-len(history) // _MOST_EVALUATIONS)
    for index, (step, figures) in enumerate(history):
        if index % every == 0 or step == history[-1][0]:
            shown = (f"{figures[name]:.6g}" if name in figures else "" for name in names)
            yield f"| {step} | {' | '.join(shown)} |"
    best = evaluator.best
    if best.step is not None and best.value is not None:
        yield from ("", f"Best by {best.figure}: step {best.step} with {best.value:.6g}.")
    if evaluator.stopped_at is not None:
        yield f"Stopped early after step {evaluator.stopped_at}."


def _samples(evaluator: Evaluator) -> Iterator[str]:
    record, questions = evaluator.record, evaluator.held_out.questions
    wanted = min(evaluator.evaluation.answers.samples, len(questions))
    if not wanted or not record.answers_after:
        return
    yield from ("", "## Answers", "")
    yield f"The first {wanted} of {len(questions)} held-out questions, answered greedily."
    before = record.answers_before or [""] * len(questions)
    for number, question in enumerate(questions[:wanted]):
        yield from _sample(question, before[number], record.answers_after[number])


def _sample(question: Question, before: str, after: str) -> Iterator[str]:
    yield from ("", f"### {question.place}")
    texts = {
        "Prompt": question.prompt,
        "Right answer": question.reference,
        "Before": before,
        "After": after,
    }
    for title, text in texts.items():
        yield from ("", f"{title}:", "", *_quoted(text))


def _quoted(text: str) -> list[str]:
    """A text as a block of code, whatever it holds."""
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]} [and {len(text) - _MOST_CHARACTERS} characters more]"
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence, text, fence]
