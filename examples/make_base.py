"""Makes the demo's base model: a 2.6M parameter Llama, pre-trained on `corpus` on a CPU in minutes.

python -m examples.make_base --out examples/base
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.corpus import CorpusMaker, Document
from examples.induction import start_with_induction
from examples.tokenizer import BOS, EOS, TURN, VOCABULARY_SIZE, train_tokenizer

TOKENIZER_DOCUMENTS = 4000


@dataclass(frozen=True)
class Recipe:
    """How the base is trained; a step is `rows` packed rows of `row_tokens` tokens."""

    steps: int = 1000
    rows: int = 8
    row_tokens: int = 256
    learning_rate: float = 1.5e-3
    warmup_steps: int = 40
    weight_decay: float = 0.05
    question_weight: float = 0.15  # of the loss: what a customer will say cannot be known
    seed: int = 11

    def learning_rate_at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def render(document: Document, tokenizer: PreTrainedTokenizerFast) -> str:
    """The very text that training and serving see: the chat template's, or the raw text."""
    if document.text:
        return f"{BOS}{document.text}"
    text = tokenizer.apply_chat_template(
        list(document.messages), tools=list(document.tools) or None, tokenize=False
    )
    assert isinstance(text, str)
    return text


@dataclass(frozen=True)
class Batch:
    """Packed documents, kept apart in attention by `positions` that start again at 0."""

    ids: torch.Tensor  # [rows, row_tokens]
    positions: torch.Tensor  # [rows, row_tokens]
    weights: torch.Tensor  # [rows, row_tokens]; of the loss at predicting this very token


def batches(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[Batch]:
    rows = packed_rows(tokenizer, recipe)
    while True:
        columns = zip(*itertools.islice(rows, recipe.rows), strict=True)
        yield Batch(*(torch.tensor(column) for column in columns))


def packed_rows(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> Iterator[tuple[list[int], list[int], list[float]]]:
    """Endless rows of (ids, positions, weights), filled with whole documents and then padding.

    A document is never cut: an answer without its question can only teach guessing.
    """
    ids: list[int] = []
    positions: list[int] = []
    weights: list[float] = []
    for document in encoded_documents(tokenizer, recipe):
        if len(document) > recipe.row_tokens:
            continue
        left = recipe.row_tokens - len(ids)
        if len(document) > left:
            yield (
                ids + [tokenizer.pad_token_id] * left,
                [*positions, *range(left)],
                weights + [0.0] * left,
            )
            ids, positions, weights = [], [], []
        ids = ids + document
        positions = [*positions, *range(len(document))]
        weights = weights + loss_weights(document, tokenizer, recipe.question_weight)


def encoded_documents(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[list[int]]:
    maker = iter(CorpusMaker(recipe.seed))
    while True:
        texts = [render(document, tokenizer) for document in itertools.islice(maker, 64)]
        yield from tokenizer(texts, add_special_tokens=False)["input_ids"]


def loss_weights(
    ids: list[int], tokenizer: PreTrainedTokenizerFast, question_weight: float
) -> list[float]:
    """1 where the context tells the token (answers, repeated lines), else `question_weight`.

    The first token of a document has no context: 0.
    """
    turn, end = tokenizer.convert_tokens_to_ids([TURN, EOS])
    assistant, newline = (tokenizer.encode(text, add_special_tokens=False)
                          for text in ("assistant\n", "\n"))  # fmt: skip
    weights = [0.0] + [question_weight] * (len(ids) - 1)
    if turn not in ids:
        told = ids.index(newline[0]) + 1
        return weights[:told] + [1.0] * (len(ids) - told)
    answering = False
    for at, token in enumerate(ids):
        if answering:
            weights[at] = 1.0
        if token == turn:
            answering = ids[at + 1 : at + 1 + len(assistant)] == assistant
        elif token == end:
            answering = False
    return weights


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    start_with_induction(model)
    return model


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
    """AdamW, bf16 autocast over fp32 weights, linear warm-up and a cosine to 2 percent."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, redirect_stdout=False) as bar:
        task = bar.add_task("loss", total=recipe.steps)
        for step, batch in enumerate(itertools.islice(batches(tokenizer, recipe), recipe.steps)):
            loss = weighted_loss(model, batch)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step)
            optimizer.step()
            optimizer.zero_grad()
            bar.update(task, advance=1, description=f"loss {loss.item():.3f}")
            if step % 50 == 49 and not bar.console.is_terminal:
                print(f"step {step + 1}/{recipe.steps} loss {loss.item():.4f}", flush=True)


def weighted_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).logits[
            :, :-1
        ]
    targets, weights = batch.ids[:, 1:].flatten(), batch.weights[:, 1:].flatten()
    each = cross_entropy(logits.flatten(0, 1).float(), targets, reduction="none")
    return (each * weights).sum() / weights.sum()


def make_base(out: Path, recipe: Recipe) -> None:
    """Writes config, bf16 safetensors and tokenizer into `out`."""
    torch.manual_seed(recipe.seed)
    tokenizer = train_tokenizer(tokenizer_texts(recipe.seed + 1))
    model = new_model(tokenizer)
    began = time.monotonic()
    train(model, tokenizer, recipe)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    size = (out / "model.safetensors").stat().st_size
    print(f"{out}: {model.num_parameters():,} parameters, {size:,} bytes, "
          f"trained in {time.monotonic() - began:.0f} s")  # fmt: skip


def tokenizer_texts(seed: int) -> Iterator[str]:
    """What everybody in the corpus says, without the template's own words."""
    for document in itertools.islice(CorpusMaker(seed), TOKENIZER_DOCUMENTS):
        yield document.text
        yield from (message["role"] + "\n" + message["content"] for message in document.messages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("examples/base"))
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    make_base(arguments.out, Recipe(steps=arguments.steps))


if __name__ == "__main__":
    main()
