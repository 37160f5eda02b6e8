"""Fields of OpenAI's and vLLM's requests that this service does not do: refused by name.

An answer that quietly lacks what was asked for is worse than none. Values that ask for nothing are taken.
Fields that change no answer (metadata, store, service_tier, prompt_cache_key ...) are taken and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.inference.http.errors import not_supported

_TEXT_ONLY = "The models here read and write text; leave it out."
_TEMPLATE = "The adapter's or the base's own chat template is used; leave it out."
_LEAVE = "Leave it out."
# Field: what it means to ask for nothing, beside null, and what to do instead.
_CHAT: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), _TEXT_ONLY),
    "modalities": ((["text"], []), _TEXT_ONLY),
    "prediction": ((), _LEAVE),
    "web_search_options": ((), "Give the model a tool that searches, and call it yourself."),
    "functions": (([],), "Use tools; functions is its old name."),
    "function_call": (("none",), "Use tool_choice; function_call is its old name."),
    "chat_template": ((), _TEMPLATE),
    "chat_template_kwargs": (({},), _TEMPLATE),
    "documents": (([],), "Put them into a message."),
    "add_generation_prompt": ((True,), "Use /v1/completions with a prompt of your own."),
    "continue_final_message": ((False,), "Use /v1/completions with a prompt of your own."),
    "mm_processor_kwargs": (({},), _TEXT_ONLY),
    "media_io_kwargs": (({},), _TEXT_ONLY),
    "thinking_token_budget": ((), _LEAVE),
}
_COMPLETION: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "suffix": (("",), "Write a prompt that says what comes after."),
    "prompt_embeds": (([],), "Send the text."),
}
_DRAWN: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "best_of": ((1,), "Ask for n answers with logprobs, and take the likeliest."),
    "use_beam_search": ((False,), _LEAVE),
    "length_penalty": ((1, 1.0), _LEAVE),
    "logit_bias": (({},), "Use structured_outputs to say what the answer may be."),
    "allowed_token_ids": (([],), "Use structured_outputs to say what the answer may be."),
    "bad_words": (([],), "Use structured_outputs to say what the answer may be."),
    "echo": ((False,), "Put the prompt before the answer yourself."),
    "prompt_logprobs": ((), _LEAVE),
    "logprob_token_ids": (([],), "Use top_logprobs."),
    "truncate_prompt_tokens": (
        (),
        "Shorten the prompt yourself: POST /tokenize counts its tokens.",
    ),
    "skip_special_tokens": ((True,), _LEAVE),
    "spaces_between_special_tokens": ((True,), _LEAVE),
    "return_tokens_as_token_ids": ((False,), "Use return_token_ids."),
    "logits_processors": (([],), _LEAVE),
    "kv_transfer_params": (({},), _LEAVE),
    "vllm_xargs": (({},), _LEAVE),
    "guided_decoding_backend": ((), "The service's engine chooses; leave it out."),
    "guided_whitespace_pattern": ((), "Use a regex or a grammar."),
}
_EMBEDDING: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "dimensions": ((), "Take the vector as long as the base makes it."),
    "messages": ((), "Send input: texts or token ids."),
    "truncate_prompt_tokens": ((), "Shorten the input yourself."),
}
CHAT = {**_DRAWN, **_CHAT}
COMPLETION = {**_DRAWN, **_COMPLETION}
EMBEDDING = _EMBEDDING


def check_refused(
    given: Mapping[str, Any], refused: Mapping[str, tuple[tuple[Any, ...], str]]
) -> None:
    """Refuses what asks for something that is not done.

    Raises:
        GraftError: NOT_SUPPORTED, naming the field.
    """
    for field in given.keys() & refused.keys():
        neutral, next_step = refused[field]
        value = given[field]
        if value is not None and not any(value == each for each in neutral):
            raise not_supported(field, "is not supported", next_step)
