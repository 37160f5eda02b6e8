"""What the transformers engine computes, held against PEFT's own generation: every architecture that the trainer trains,
requests of several adapters in one batch, joining and leaving at any step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from graft.errors import GraftError, Reason
from peft import PeftModel
from transformers import AutoTokenizer

from services.inference.engines.base import Delta, Finish, Sampling
from services.inference.engines.transformers_batch import Prefill
from services.inference.engines.transformers_core import Core
from services.inference.engines.transformers_model import Base, _has_plain_cache
from services.inference.engines.transformers_text import Text
from services.trainer.run.bottleneck import load_bottleneck
from tests.support.peft_folders import make
from tests.unit.trainer_worker.test_methods_inputs import ARCHITECTURES, REFUSED, method_of
from tests.unit.trainer_worker.test_targets import IDS, learn

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
KINDS = ("prefix_tuning", "p_tuning_v2", "prompt_tuning", "p_tuning", "bottleneck", "ia3", "dora")
GREEDY = Sampling(max_tokens=10, temperature=0.0, ignore_eos=True)
PROMPTS = ([5, 9, 17, 60, 33, 21, 8], [7, 100], [9, 9, 70, 71, 72])
PROMPT_METHODS = KINDS[:4]


def make_model(name: str) -> Any:
    torch.manual_seed(0)
    kind, settings = ARCHITECTURES[name]
    # Logits that are far apart, so that the last bits decide nothing.
    config = getattr(transformers, kind)(**{"initializer_range": 0.2, **settings})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def train(name: str, kind: str, folder: Path, seed: int = 0) -> Path:
    """An adapter as our trainer's method makes and saves it, moved far enough to change answers."""
    settings: dict[str, Any] = {"virtual_tokens": 5 + seed} if kind in PROMPT_METHODS else {}
    settings = {"rank": 4} if kind == "dora" else settings
    method = method_of(kind, **settings)
    model = method.apply(make_model(name))
    learn(method, model, {"input_ids": IDS, "labels": IDS, "attention_mask": torch.ones_like(IDS)})
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.eval()
    method.save(model, folder)
    return folder


def peft_greedy(name: str, kind: str, folder: Path, prompt: list[int], count: int) -> list[int]:
    """What PEFT's own generate() answers; for our bottleneck, that of transformers with it attached."""
    base = make_model(name)
    model = (
        load_bottleneck(base, folder)
        if kind == "bottleneck"
        else PeftModel.from_pretrained(base, str(folder)).eval()
    )
    written = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=[],
        pad_token_id=0,
    )
    found: list[int] = written[0, len(prompt) :].tolist()
    return found


def core_of(model: Any, base: Path, rows: int = 8, cells: int = 4096) -> Core:
    tokenizer = AutoTokenizer.from_pretrained(base)
    return Core(Base(model, tokenizer, 64, cells, frozenset({2}), str), rows, cells)


def run(core: Core, steps: int = 400) -> dict[str, list[Delta]]:
    """All deltas of each request, until nothing is left."""
    found: dict[str, list[Delta]] = {}
    for _ in range(steps):
        if not core.busy:
            return found
        for name, what in core.step():
            assert isinstance(what, Delta), what
            found.setdefault(name, []).append(what)
    raise AssertionError(f"not done after {steps} steps")


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


# Grouped and wide heads, sliding windows, matrices that lie the other way round, positions that are learned; the
# others with `make soak`.
USUAL = ("Llama", "Gemma3 with wide heads", "GPT2", "OPT")


@pytest.mark.parametrize(
    "name",
    [
        name if name in USUAL else pytest.param(name, marks=pytest.mark.soak)
        for name in sorted({*ARCHITECTURES} - {"Mamba"})
    ],
)
def test_every_architecture_answers_as_by_peft(name: str, tmp_path: Path, tiny_base: Path) -> None:
    """All kinds of adapters in one batch, with prompts of unequal lengths."""
    kinds = [kind for kind in KINDS if (name, kind) not in REFUSED]
    core = core_of(make_model(name), tiny_base, rows=32)
    folders = {}
    for number, kind in enumerate(kinds, 1):
        folders[kind] = train(name, kind, tmp_path / kind)
        core.load(number, kind, folders[kind])
        for index, prompt in enumerate(PROMPTS):
            core.add(f"{kind}/{index}", number, prompt, GREEDY)
    found = run(core)
    for kind in kinds:
        for index, prompt in enumerate(PROMPTS):
            expected = peft_greedy(name, kind, folders[kind], prompt, GREEDY.max_tokens)
            assert tokens_of(found[f"{kind}/{index}"]) == expected, (kind, index)


def logits_of(model: Any, prompt: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([prompt])).logits[0, -1].float()
    return found


@pytest.mark.parametrize("kind", ["prefix_tuning", "prompt_tuning", "bottleneck", "dora", "ia3"])
def test_in_bfloat16_it_is_as_near_to_float32_as_peft_is(
    kind: str, tmp_path: Path, tiny_base: Path
) -> None:
    """At most twice as far, at any token of any prompt."""
    folder = train("Llama", kind, tmp_path / kind)

    def reference(dtype: torch.dtype) -> Any:
        base = make_model("Llama").to(dtype)
        if kind == "bottleneck":
            return load_bottleneck(base, folder)
        return PeftModel.from_pretrained(base, str(folder)).eval()

    exact, rounded = reference(torch.float32), reference(torch.bfloat16)
    core = core_of(make_model("Llama").bfloat16(), tiny_base)
    core.load(1, kind, folder)
    forward, adapter = core._forward, core._adapters[1]
    for prompt in PROMPTS:
        with torch.inference_mode():
            found = Prefill(forward, adapter, prompt).step(64)
        assert found is not None
        wanted = logits_of(exact, prompt)
        theirs = (logits_of(rounded, prompt) - wanted).abs().max()
        ours = (found[0].float() - wanted).abs().max()
        assert 0 < theirs < 0.1 * wanted.abs().max()
        assert ours <= 2 * theirs


@pytest.mark.parametrize("kind", ["lora", "rslora", "adalora"])
def test_low_rank_kinds_as_peft_saves_them(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    """AdaLoRA with ranks taken away: no engine beside this one computes it."""
    make(kind, tiny_base, tmp_path / kind)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    core = core_of(model, tiny_base)
    core.load(1, kind, tmp_path / kind)
    plain = logits_of(model, PROMPTS[0])
    with torch.inference_mode():
        found = Prefill(core._forward, core._adapters[1], PROMPTS[0]).step(64)
    core.unload(1)
    theirs = PeftModel.from_pretrained(model, str(tmp_path / kind)).eval()
    expected = logits_of(theirs, PROMPTS[0])
    assert found is not None
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of one base: a prefix, and a bottleneck."""
    folder = tmp_path_factory.mktemp("two")
    return [
        train("Llama", kind, folder / kind, seed)
        for seed, kind in enumerate(("prefix_tuning", "bottleneck"))
    ]


def loaded(two: list[Path], base: Path, rows: int = 8, cells: int = 4096) -> Core:
    core = core_of(make_model("Llama"), base, rows, cells)
    for number, folder in enumerate(two, 1):
        core.load(number, folder.name, folder)
    return core


def ask_all(core: Core, count: int, sampling: Sampling) -> None:
    for index in range(count):
        core.add(f"r{index}", index % 3, PROMPTS[index % 3][: 1 + index], sampling)


def test_who_comes_and_goes_changes_nobodys_answer(two: list[Path], tiny_base: Path) -> None:
    alone: dict[str, list[int]] = {}
    for index in range(6):
        core = loaded(two, tiny_base)
        core.add(f"r{index}", index % 3, PROMPTS[index % 3][: 1 + index], GREEDY)
        alone |= {name: tokens_of(deltas) for name, deltas in run(core).items()}
    core = loaded(two, tiny_base)
    found: dict[str, list[Delta]] = {}
    for index in range(6):
        # One more at every second step, and one that goes in the middle.
        core.add(f"r{index}", index % 3, PROMPTS[index % 3][: 1 + index], GREEDY)
        core.add(f"gone{index}", index % 3, [9, 8], GREEDY)
        for _ in range(2):
            for name, what in core.step():
                assert isinstance(what, Delta)
                found.setdefault(name, []).append(what)
        core.abort(f"gone{index}")
    for name, deltas in run(core).items():
        found.setdefault(name, []).extend(deltas)
    assert {name: tokens_of(each) for name, each in found.items() if name in alone} == alone


@pytest.mark.parametrize("sampling", [GREEDY, replace(GREEDY, temperature=1.5, seed=5, top_p=0.9)])
def test_with_little_room_some_wait_and_answer_the_same(
    sampling: Sampling, two: list[Path], tiny_base: Path
) -> None:
    wide, narrow = loaded(two, tiny_base), loaded(two, tiny_base, cells=50)
    ask_all(wide, 6, sampling)
    ask_all(narrow, 6, sampling)
    waited = 0
    expected, found = run(wide), dict[str, list[Delta]]()
    while narrow.busy:
        for name, what in narrow.step():
            assert isinstance(what, Delta)
            found.setdefault(name, []).append(what)
        waited = max(waited, len(narrow._waiting))
        assert len(narrow._rows) * narrow._batch.width <= 50
    assert waited > 1
    assert {name: tokens_of(each) for name, each in found.items()} == {
        name: tokens_of(each) for name, each in expected.items()
    }


def test_a_flood_of_one_adapter_starves_no_other(two: list[Path], tiny_base: Path) -> None:
    core = loaded(two, tiny_base, rows=2)
    for index in range(20):
        core.add(f"flood{index}", 1, [5, 6, 7], GREEDY)
    core.step()
    core.add("other", 2, [5, 6, 7], GREEDY)
    ended: list[str] = []
    while core.busy:
        ended += [name for name, what in core.step() if isinstance(what, Delta) and what.finish]
    assert ended.index("other") < 5


def test_an_adapter_that_leaves_takes_its_hooks_along(two: list[Path], tiny_base: Path) -> None:
    core = loaded(two, tiny_base)
    core.unload(1)
    core.unload(2)
    assert not any(each._forward_hooks for each in core._base.model.modules())
    with pytest.raises(KeyError):
        core.add("r", 2, [5], GREEDY)
    core.load(3, "again", two[1])
    core.add("r", 3, [5], GREEDY)
    assert tokens_of(run(core)["r"])


def test_a_prompt_without_room_is_refused_and_a_full_context_is_a_length(
    two: list[Path], tiny_base: Path
) -> None:
    core = loaded(two, tiny_base)
    with pytest.raises(GraftError, match="60 tokens and 5 learned tokens") as caught:
        core.add("r", 1, [5] * 60, GREEDY)
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert caught.value.next_step
    # 64 in all, with 5 learned ones.
    core.add("r", 1, [5] * 57, GREEDY)
    deltas = run(core)["r"]
    assert (len(tokens_of(deltas)), deltas[-1].finish) == (2, Finish.LENGTH)


def test_seeds_do_not_depend_on_who_else_is_there(two: list[Path], tiny_base: Path) -> None:
    drawn = replace(GREEDY, temperature=2.0, seed=3)
    core = loaded(two, tiny_base)
    core.add("alone", 1, [5, 6], drawn)
    alone = tokens_of(run(core)["alone"])
    for index in range(4):
        core.add(f"other{index}", 2, [7, 8, 9], replace(drawn, seed=None))
    core.add("among", 1, [5, 6], drawn)
    core.add("otherwise", 1, [5, 6], replace(drawn, seed=4))
    found = run(core)
    assert tokens_of(found["among"]) == alone != tokens_of(found["otherwise"])


def test_a_row_without_numbers_fails_alone(two: list[Path], tiny_base: Path) -> None:
    core = loaded(two, tiny_base)
    core.add("good", 0, [5, 6], GREEDY)
    expected = tokens_of(run(core)["good"])
    effect = next(iter(core._adapters[2].effects.values()))
    with torch.inference_mode():
        effect.up.fill_(torch.inf)  # type: ignore[attr-defined]
    core.add("good", 0, [5, 6], GREEDY)
    core.add("bad", 2, [5, 6], GREEDY)
    told = []
    while core.busy:
        told += core.step()
    (error,) = [what for name, what in told if name == "bad"]
    assert isinstance(error, GraftError)
    assert error.reason is Reason.ADAPTER_UNUSABLE
    assert [t for name, what in told if name == "good" for t in what.token_ids] == expected  # type: ignore[union-attr]


@pytest.mark.parametrize("stop", [(), ("ö€", "never"), ("€😀",)])
def test_text_comes_in_whole_characters_and_without_stop_strings(
    stop: tuple[str, ...], tiny_base: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    whole = "naïve ö€😀 done"
    ids = tokenizer.encode(whole, add_special_tokens=False)
    prompt = tokenizer.encode("So", add_special_tokens=True)
    for begin in (Text, _slow_text):
        text, parts = begin(tokenizer, prompt, stop, 0), []
        for index, token in enumerate(ids):
            ended = text.add(token)
            parts.append(text.new(last=ended or index == len(ids) - 1))
            if ended:
                break
        said = "".join(parts)
        expected = whole.partition(stop[0])[0] if stop else whole
        assert said == expected
        assert "\ufffd" not in said
        assert len([part for part in parts if part]) > 1


def _slow_text(tokenizer: Any, *arguments: Any) -> Text:
    """As with a tokenizer that is written in Python."""

    class Slow:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            text: str = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
            return text

    return Text(Slow(), *arguments)


def test_a_base_whose_layers_keep_other_states_is_told_apart() -> None:
    assert not _has_plain_cache(make_model("Mamba"))
    assert all(_has_plain_cache(make_model(name)) for name in ("Llama", "Gemma3", "Mistral"))
