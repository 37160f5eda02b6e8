"""Scores of generated answers against the right ones: exact match, BLEU (sacrebleu) and ROUGE (rouge-score). No torch here."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

# Letters of scripts that put no spaces between words are words by themselves.
_WORDS = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿]|[^\W_぀-ヿ㐀-䶿一-鿿豈-﫿]+")
_ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
Texts = Sequence[str]


def score_answers(names: Sequence[str], answers: Texts, references: Texts) -> dict[str, float]:
    """The figures of these names: exact_match and ROUGE from 0 to 1, BLEU from 0 to 100 as sacrebleu gives it.

    Args:
        answers: what the model wrote.
        references: the right answers, in the same order, one for each.
    """
    assert len(answers) == len(references) > 0, "an answer for each reference"
    found = {name: _SCORES[name](answers, references) for name in names if name in _SCORES}
    return found | _rouge([name for name in names if name in _ROUGE], answers, references)


def exact_match(answers: Texts, references: Texts) -> float:
    """The share of answers that are the right ones, but for white space around them."""
    same = sum(one.strip() == right.strip() for one, right in zip(answers, references, strict=True))
    return same / len(answers)


def bleu(answers: Texts, references: Texts) -> float:
    """BLEU of the whole set, 0 to 100 (Papineni et al. 2002; Post 2018: sacrebleu with tokenizer 13a).

    Of texts shorter than four words, which sacrebleu by itself gives 0, the n-grams that they have count.
    """
    from sacrebleu import corpus_bleu

    return float(corpus_bleu(list(answers), [list(references)], use_effective_order=True).score)


def _rouge(names: Sequence[str], answers: Texts, references: Texts) -> dict[str, float]:
    """Means of the rows' F-measures (Lin 2004)."""
    if not names:
        return {}
    from rouge_score.rouge_scorer import RougeScorer

    scorer: Any = RougeScorer([_ROUGE[name] for name in names], tokenizer=WordTokenizer())
    rows = [scorer.score(right, one) for one, right in zip(answers, references, strict=True)]
    return {name: sum(row[_ROUGE[name]].fmeasure for row in rows) / len(rows) for name in names}


class WordTokenizer:
    """Words in lower case. For ASCII as rouge-score's own, which drops every other letter and gives 0 for Russian or Chinese."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return _WORDS.findall(text.lower())


_SCORES: dict[str, Callable[[Texts, Texts], float]] = {"exact_match": exact_match, "bleu": bleu}
