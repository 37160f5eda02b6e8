"""The tokens that a result is proven on: given texts, else the version's own data, else tokens from all over. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from graft.errors import GraftError
from graft.trainer.v1 import job_spec_pb2

from services.trainer.objectives import OBJECTIVES
from services.trainer.run.background import BackgroundLoop
from services.trainer.run.data import read_data, set_opener
from services.trainer.run.model_jobs.pulled import Pulled
from services.trainer.run.reporters import Reporter
from services.trainer.run.settings import WorkerSettings
from services.trainer.spec import parse_spec
from services.trainer.spec.recipe import ProofSettings
from services.trainer.tokens import ExampleTokenizer, TokenReport, end_token_ids, load_tokenizer

_LONGEST_ROW = 128
_TEMPLATE = "chat_template.jinja"
# A prime above any vocabulary's stride of structure: tokens from all over it.
_STRIDE, _FIRST = 7919, 3


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows of token ids, and where they are from, in words."""

    rows: list[list[int]]
    origin: str

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(map(len, self.rows))


def held_out_rows(
    pulled: Pulled,
    proof: ProofSettings,
    settings: WorkerSettings,
    loop: BackgroundLoop,
    reporter: Reporter,
) -> HeldOut:
    """Finds rows; what keeps the version's own data from being read is said in the log."""
    tokenizer = load_tokenizer(pulled.base.folder, "")
    template = pulled.folder / _TEMPLATE
    if template.is_file():
        tokenizer.chat_template = template.read_text("utf-8")
    if proof.texts:
        encoded = (tokenizer(text)["input_ids"] for text in proof.texts)
        return HeldOut(_cut(encoded, proof.max_tokens), "the given texts")
    try:
        found = _own(pulled, tokenizer, settings, loop, reporter)
    except (GraftError, json_format.ParseError, OSError) as error:
        reporter.log(f"The version's own data cannot be read for the proof: {error}")
        found = None
    if found is not None:
        rows, origin = found
        return HeldOut(_cut(rows, proof.max_tokens), origin)
    return HeldOut([_scattered(pulled, proof.max_tokens)], "tokens from all over the vocabulary")


def _own(
    pulled: Pulled,
    tokenizer: Any,
    settings: WorkerSettings,
    loop: BackgroundLoop,
    reporter: Reporter,
) -> tuple[Iterable[Sequence[int]], str] | None:
    """Rows of the data that the version's lineage names, rendered as it was trained."""
    given = json_format.ParseDict(
        dict(pulled.version.lineage.spec), job_spec_pb2.JobSpec(), ignore_unknown_fields=True
    )
    if not given.HasField("dataset"):
        return None
    spec = parse_spec(given)
    opener = set_opener(settings, loop, lambda _: None)
    data = read_data(
        spec.dataset, OBJECTIVES[spec.objective.kind].info, spec.seed, opener, lambda _: None
    )
    if spec.objective.kind not in ("sft", "cpt"):
        return None
    examples = data.held_out or data.training
    if not examples:
        return None
    maker = ExampleTokenizer(
        tokenizer, _LONGEST_ROW, end_token_ids(tokenizer, pulled.base.folder), loss_on="everything"
    )
    origin = "rows that its training held out" if data.held_out else "rows that it was trained on"
    return ([int(one) for one in row.ids] for row in maker.iterate(examples, TokenReport())), origin


def _cut(rows: Iterable[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """The first rows, cut, with max_tokens tokens at most."""
    kept: list[list[int]] = []
    left = max_tokens
    for row in rows:
        ids = list(row)[: min(left, _LONGEST_ROW)]
        if len(ids) > 1:
            kept.append(ids)
            left -= len(ids)
        if left < 2:
            break
    return kept


def _scattered(pulled: Pulled, max_tokens: int) -> list[int]:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(pulled.base.folder).get_text_config()
    count = min(max_tokens, _LONGEST_ROW)
    return [(number * _STRIDE + _FIRST) % config.vocab_size for number in range(count)]
