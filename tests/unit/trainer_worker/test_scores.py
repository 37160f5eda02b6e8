"""Figures of answers are those of the libraries that everybody compares with, and early stopping counts as it says."""

from __future__ import annotations

import math

import pytest

from services.trainer.run.evaluating.best import BestSoFar
from services.trainer.run.evaluating.scores import WordTokenizer, score_answers
from services.trainer.spec.evaluation import EarlyStopping, Evaluation

ANSWERS = [
    "The cat sat on the mat, and was happy.",
    "Berlin is the capital of Germany",
    "42",
    "I_do not know (really)!",
]
RIGHT = [
    "The cat is sitting on the mat and is happy.",
    "Berlin is the capital of Germany.",
    "42",
    "Nobody knows.",
]


def test_the_figures_are_those_of_sacrebleu_and_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu

    found = score_answers(["exact_match", "bleu", "rouge_1", "rouge_2", "rouge_l"], ANSWERS, RIGHT)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    rows = [scorer.score(right, one) for one, right in zip(ANSWERS, RIGHT, strict=True)]
    means = {
        ours: sum(row[theirs].fmeasure for row in rows) / len(rows)
        for ours, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL"))
    }
    assert found == {
        "exact_match": 0.25,
        "bleu": corpus_bleu(ANSWERS, [RIGHT]).score,
        **means,
    }
    assert 0 < found["bleu"] < 100


def test_short_copies_are_right_copies() -> None:
    assert score_answers(["bleu"], ["I like red"], ["I like red"])["bleu"] == pytest.approx(100)


@pytest.mark.parametrize("text", ["Москва столица", "東京は日本の首都です", "naïve Größe"])
def test_words_of_every_script_count(text: str) -> None:
    assert score_answers(["rouge_1"], [text], [text]) == {"rouge_1": 1.0}
    assert len(WordTokenizer().tokenize(text)) > 1


def judged(evaluation: Evaluation, *values: float) -> list[bool]:
    best = BestSoFar(evaluation)
    return [best.judge(step, value) for step, value in enumerate(values, 1)]


def test_patience_counts_evaluations_without_a_gain() -> None:
    loss = Evaluation(best_metric="loss", early_stopping=EarlyStopping(2, 0.1))
    # 0.95 and 0.92 are better than 1.0, but by less than 0.1; 0.85 then is by more.
    assert judged(loss, 1.0, 0.95, 0.85, 0.84, 0.83) == [False, False, False, False, True]
    assert judged(loss, 1.0, 0.95, 0.92) == [False, False, True]
    assert judged(loss, math.nan, math.inf) == [False, True]
    higher = Evaluation(best_metric="rouge_l", early_stopping=EarlyStopping(2, 0.0))
    assert judged(higher, 0.1, 0.2, 0.2, 0.1) == [False, False, False, True]
    assert judged(higher, 0.1, 0.2, 0.3, 0.4) == [False] * 4


def test_a_run_that_goes_on_counts_on() -> None:
    evaluation = Evaluation(best_metric="loss", early_stopping=EarlyStopping(2, 0.0))
    first, then = BestSoFar(evaluation), BestSoFar(evaluation)
    assert not first.judge(1, 1.0)
    assert not first.judge(2, 2.0)
    then.restore(first.state())
    assert then.judge(3, 3.0)
    assert (then.step, then.value, then.without_gain) == (1, 1.0, 2)
