"""What is asked, and what answers it: a question in the domain's words, and the weights behind an answer.

Either door makes questions (convert.py, http/convert.py); what they may say is checked in admission.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.inference.domain import AdapterVersion, Base
from services.inference.engines.base import Sampling
from services.inference.prompts import Prompt
from services.inference.rollout.state import Part


@dataclass(frozen=True, slots=True)
class Question:
    """A request. max_tokens of 0 in sampling means what is left of the context.

    priority moves it among the requests for the same adapter; see scheduling.queue.Claim.

    Attributes:
        session_key: requests with the same key get the same part of a weighted alias; empty for none.
        n: answers to the one prompt, each with a seed of its own.
        tool_choice: "auto", "none", "required" or a function's name; empty is "auto" where calls can be
            read, with the calls as text where they cannot.
        parallel_tool_calls: whether one answer may call several tools.
    """

    model: str
    prompt: Prompt
    sampling: Sampling
    priority: int = 0
    session_key: str = ""
    n: int = 1
    tool_choice: str = ""
    parallel_tool_calls: bool = True


@dataclass(frozen=True, slots=True)
class Provenance:
    """What makes an answer.

    Attributes:
        version: None for the base alone.
        engine: name of the one that computes it.
        rollout_alias: decided between parts; empty where none did.
    """

    base: Base
    version: AdapterVersion | None
    engine: str = ""
    rollout_alias: str = ""
    rollout_part: Part = Part.NONE
