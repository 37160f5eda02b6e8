"""What a survey's numbers mean: findings with what to do, and the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from graft.errors import GraftError

from services.trainer.preflight.batching import padding_fraction, sequences
from services.trainer.preflight.report import Finding, Report, Rows, Severity, Shown

if TYPE_CHECKING:
    from services.trainer.preflight.survey import Survey

_FEW_ROWS = 20
_NAMED = 5


def find_all(survey: Survey, eval_rows: int, shown: Sequence[Shown]) -> Report:
    """The report of a survey that has seen everything."""
    kept = len(survey.lengths) - survey.beyond.count
    train = max(0, kept - (eval_rows if survey.spec.dataset.eval_fraction else 0))
    findings = [*_errors(survey, kept, eval_rows), *_warnings(survey, kept), *_notes(survey, train)]
    hyper = survey.spec.hyperparameters
    lengths = survey.lengths.values().clip(max=survey.max_tokens)
    in_epoch = sequences(lengths, hyper, survey.max_tokens)
    processes = survey.spec.resources.processes
    per_step = hyper.micro_batch_size * hyper.gradient_accumulation_steps * processes
    steps = -(-in_epoch // per_step)
    return Report(
        findings=sorted(findings, key=lambda one: (-one.severity, -one.weight)),
        format=", ".join(sorted(survey.reading.formats)),
        rows=survey.reading.rows,
        kept_rows=train,
        eval_rows=eval_rows,
        tokens=survey.kept_tokens,
        learned_tokens=survey.kept_learned,
        max_length_tokens=survey.max_tokens,
        total_steps=hyper.max_steps or max(1, round(hyper.epochs * steps)) if train else 0,
        padding_fraction=padding_fraction(lengths, hyper, survey.max_tokens),
        lengths=survey.lengths.statistics(),
        learned_lengths=survey.learned.statistics(),
        examples=shown,
        cleaned_rows=survey.cleaned,
    )


def _errors(survey: Survey, kept: int, eval_rows: int) -> Iterator[Finding]:
    if survey.base_error is not None:
        yield _as_finding("base", survey.base_error)
    for error in survey.reading.fatal:
        yield _as_finding("unreadable", error)
    if survey.reading.first_error is not None:
        yield _rows_finding(
            Severity.ERROR,
            "bad_rows",
            survey.reading.unreadable,
            "cannot be read as the set's format",
            survey.reading.first_error.next_step,
        )
    if survey.refusal is not None:
        yield _rows_finding(
            Severity.ERROR,
            "template_refuses",
            survey.refused,
            f"are refused: {survey.refusal.message}",
            survey.refusal.next_step,
        )
    if survey.wrong_kind.count:
        yield _rows_finding(
            Severity.ERROR,
            "wrong_kind",
            survey.wrong_kind,
            f"are not what {survey.objective.title} needs: {survey.objective.needs}",
            "Use data of that kind, or another objective.",
        )
    if not kept and survey.reading.rows:
        yield Finding(
            Severity.ERROR,
            "nothing_to_learn",
            "No row is left to learn from",
            "See the other findings; raise hyperparameters.max_length_tokens where answers are cut off.",
        )
    if survey.spec.dataset.eval_fraction and not 0 < eval_rows < max(kept, 1):
        yield Finding(
            Severity.ERROR,
            "empty_evaluation",
            f"eval_fraction {survey.spec.dataset.eval_fraction:g} of {kept} rows holds out {eval_rows}",
            "Use more rows, or leave dataset.eval_fraction out.",
        )


# What is to be warned of: its code, the rows, what is the matter with them, what to do, and how much it weighs
# where all rows are so.
_Warning = tuple[str, Rows, str, str, float]


def _warnings(survey: Survey, kept: int) -> Iterator[Finding]:
    total = max(survey.reading.rows, 1)
    for code, rows, what, todo, weight in (*_of_tokens(survey), *_of_texts(survey)):
        if rows.count:
            share = min(1.0, rows.count / total)
            yield _rows_finding(
                Severity.WARNING, code, rows, what, todo, weight * (0.2 + 0.8 * share)
            )
    yield from _of_the_set(survey, kept)


def _of_tokens(survey: Survey) -> Iterator[_Warning]:
    """What is not learned of a row, or cannot be."""
    for why, noted in survey.tokens.dropped.items():
        yield (
            "nothing_to_learn",
            Rows(noted.count, [str(place) for place in noted.places[:10]]),
            f"have nothing to learn: {why}",
            "Remove them, or check dataset.loss_on and the chat template.",
            40,
        )
    yield (
        "answer_cut_off",
        survey.beyond,
        f"are left out: max_length_tokens ({survey.max_tokens}) cuts off their whole answer",
        "Raise hyperparameters.max_length_tokens, or shorten the prompts.",
        40,
    )
    yield (
        "truncated",
        survey.cut,
        f"are longer than {survey.max_tokens} tokens and are cut at the end "
        f"({survey.cut_tokens:,} tokens lost)",
        _longer(survey),
        25,
    )
    unended = survey.tokens.unended
    yield (
        "eos_not_trained",
        Rows(unended.count, [str(place) for place in unended.places[:10]]),
        "do not end with a token that ends an answer, so the model does not learn where to stop",
        "Use a chat template whose turns end with the tokenizer's end token, or add it to the completions.",
        40,
    )


def _of_texts(survey: Survey) -> Iterator[_Warning]:
    """What the rows say, whatever the tokenizer makes of them."""
    seen = survey.seen
    yield (
        "duplicates",
        seen.duplicates,
        "say the same as an earlier one",
        "Set dataset.cleaning.dedupe, or remove them.",
        20,
    )
    yield (
        "eval_overlap",
        seen.overlap,
        "of the evaluation are among the training rows too, so the evaluation will look too good",
        "Set dataset.cleaning.drop_eval_overlap, or remove them.",
        30,
    )
    yield (
        "broken_encoding",
        seen.encoding,
        "hold text in a broken encoding",
        "Write the file again as UTF-8 from its source.",
        30,
    )
    yield (
        "unfilled_placeholders",
        seen.placeholders,
        "hold a placeholder that nothing is put in for",
        'Say what stands for it in dataset.placeholders, for example {"name": "Ada"}.',
        25,
    )
    yield (
        "other_answers",
        seen.other_answers,
        "ask what an earlier row asks, and have another answer",
        "Keep the better answer, unless both are meant.",
        5,
    )


def _of_the_set(survey: Survey, kept: int) -> Iterator[Finding]:
    if survey.tokens.unsure_turns:
        yield Finding(
            Severity.WARNING,
            "turns_not_learned",
            f"{survey.tokens.unsure_turns} earlier turns of the assistant are not learned: the chat template "
            "renders them differently once the conversation goes on",
            "Set dataset.chat_template to a named template, or split the conversations.",
            weight=10,
        )
    if 0 < kept < _FEW_ROWS:
        yield Finding(
            Severity.WARNING,
            "few_rows",
            f"There are only {kept} rows: the model will know them by heart and little else",
            "Add rows; some hundreds that are good are worth more than thousands that are not.",
            weight=10,
        )


def _notes(survey: Survey, train: int) -> Iterator[Finding]:
    for step, count in sorted(survey.cleaned.items()):
        yield Finding(
            Severity.NOTE,
            "cleaned",
            f"{count} rows are left out by dataset.cleaning.{step}",
            "Nothing needs to be done.",
            rows=count,
        )
    if train and not survey.spec.dataset.eval_fraction and not survey.spec.dataset.eval_sources:
        yield Finding(
            Severity.NOTE,
            "no_evaluation",
            "No rows are held out, so nobody will see whether it learns by heart",
            "Set dataset.eval_fraction, for example to 0.05.",
        )


def _longer(survey: Survey) -> str:
    p99 = survey.lengths.statistics()
    wanted = p99.p99 if p99 is not None else survey.max_tokens
    if wanted <= survey.max_tokens:
        return "Nothing needs to be done if their beginnings are enough."
    return f"Raise hyperparameters.max_length_tokens (99 of 100 rows have at most {wanted})."


def _rows_finding(
    severity: Severity, code: str, rows: Rows, what: str, todo: str, weight: float = 0.0
) -> Finding:
    count = f"{rows.count:,} row{'s' if rows.count != 1 else ''}"
    named = rows.places[:_NAMED]
    return Finding(severity, code, f"{count} {what}", todo, rows.count, tuple(named), weight)


def _as_finding(code: str, error: GraftError) -> Finding:
    return Finding(Severity.ERROR, code, error.message, error.next_step)
