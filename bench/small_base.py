"""Makes a base for bench.overhead: `python -m bench.small_base FOLDER ROWS`, a small Llama with a tokenizer of the rows.

In a process of its own: whoever measures start-up shall not have loaded torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SPECIAL = ["<pad>", "<s>", "</s>"]
_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def main(folder: Path, rows: Path) -> None:
    """Writes it."""
    texts = [json.loads(line)["completion"] for line in rows.read_text("utf-8").splitlines()]
    tokenizer = Tokenizer(models.WordLevel(unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=_SPECIAL))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
