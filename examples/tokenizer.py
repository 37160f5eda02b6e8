"""The base's tokenizer: a byte-level BPE that takes any text, with digits one by one and a chat template."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 1024
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
PAD, BOS, EOS, TURN = "<|pad|>", "<|bos|>", "<|im_end|>", "<|im_start|>"
TOOL_MARKS = ("<tool_call>", "</tool_call>")


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learns the merges from `texts`; the ids of the special tokens are 0 to 5, always."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[
            PAD,
            BOS,
            EOS,
            TURN,
            *(AddedToken(mark, special=False, normalized=False) for mark in TOOL_MARKS),
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[TURN],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE.read_text("utf-8"),
    )
