"""IA3, the prompt methods and the bottleneck adapter in detail: padding changes nothing, every architecture is trained
or refused, a checkpoint goes on exactly, and what is wrong is said before anything runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from graft.errors import GraftError
from graft.spec_file import spec_from_dict
from peft import PeftModel
from torch.nn.functional import cross_entropy

from services.trainer.methods import METHODS, Setting
from services.trainer.run import training
from services.trainer.run.bottleneck import load_bottleneck
from services.trainer.run.exits import PreemptedError
from services.trainer.run.models import load_model
from services.trainer.run.trainers.common import without_dropout
from services.trainer.spec import BaseSpec
from services.trainer.tokens import IGNORED, load_tokenizer
from tests.unit.trainer_worker.support import COLOURS, Outcome, attempt, merge
from tests.unit.trainer_worker.test_targets import APART, ENDS, GROUPED, IDS, SMALL, learn, logits
from tests.unit.trainer_worker.test_targets import ARCHITECTURES as COMMON

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
Change = dict[str, Any]
Train = Callable[..., Outcome]
PROMPTS = ("prompt_tuning", "p_tuning", "p_tuning_v2", "prefix_tuning")
KINDS = ("ia3", *PROMPTS, "bottleneck")
PREFIXES = ("p_tuning_v2", "prefix_tuning")
EVERY = 2


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Prompts with answers, and texts, of unequal lengths."""
    path = tmp_path / "rows.jsonl"
    made = [
        {
            "instruction": COLOURS[n % 4] * (1 + 3 * (n % 5)),
            "output": "I like " + COLOURS[n % 4] * n,
        }
        for n in range(16)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made), "utf-8")
    return path


@pytest.fixture
def trainer_of(train: Train, rows: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The trainer of a job as it is before its first step, with numbers in its adapter that make a difference."""

    def make(kind: str, **changes: Any) -> Any:
        found: list[Any] = []

        def take(self: Any, trainer: Any, store: Any) -> None:
            found.append(trainer)
            raise PreemptedError("taken")

        usual: Change = {
            "method": {"lora": None, kind: {}},
            "dataset": {"path": str(rows), "eval_fraction": 0.5},
            "hyperparameters": {"micro_batch_size": 8},
        }
        with monkeypatch.context() as patch:
            patch.setattr(training.Training, "_fit", take)
            outcome = train(**merge(usual, changes))
        assert found, outcome.message
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in found[0].model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return found[0]

    return make


def loss_alone(model: Any, row: Any) -> tuple[float, int]:
    """Summed cross-entropy of a row's learned tokens, without any padding, and how many they are."""
    ids, labels = torch.tensor([row.ids.tolist()]), torch.tensor(row.labels.tolist())[1:]
    with torch.no_grad():
        scores = model(input_ids=ids).logits[0, -ids.shape[1] : -1].float()
    loss = cross_entropy(scores, labels, reduction="sum", ignore_index=IGNORED)
    return float(loss), int((labels != IGNORED).sum())


def mean_alone(model: Any, rows: Any) -> float:
    """Mean per learned token, over rows that are each on their own."""
    found = [loss_alone(model, row) for row in rows]
    return sum(loss for loss, _ in found) / sum(learned for _, learned in found)


@pytest.mark.parametrize("objective", ["sft", "cpt"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_batch_is_that_of_its_rows_alone(
    kind: str, objective: str, trainer_of: Callable[..., Any], tmp_path: Path
) -> None:
    changes: Change = {}
    if objective == "cpt":
        path = tmp_path / "texts.jsonl"
        texts = ({"text": COLOURS[n % 4] * (1 + 2 * n)} for n in range(12))
        path.write_text("".join(json.dumps(row) + "\n" for row in texts), "utf-8")
        changes = {
            "objective": {"cpt": {}},
            "dataset": {"path": str(path)},
            "hyperparameters": {"packing": False},
        }
    trainer = trainer_of(kind, **changes)
    prepared = trainer.graft_run.prepared
    batch = prepared.train([{"row": row} for row in range(6)])
    assert len({len(row) for row in prepared.train.rows[:6]}) > 1
    learned = (batch["labels"][:, 1:] != IGNORED).sum()
    with without_dropout(trainer.model):
        expected = mean_alone(trainer.model, prepared.train.rows[:6])
        found = trainer.compute_loss(trainer.model, batch, num_items_in_batch=learned)
        assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
        held_out = mean_alone(trainer.model, prepared.evaluation.rows)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(held_out, rel=1e-5)


@pytest.mark.parametrize("kind", PROMPTS)
def test_padding_before_a_prompt_changes_neither_an_answer_nor_its_probability(
    kind: str, trainer_of: Callable[..., Any]
) -> None:
    reward = {"regex": {"pattern": "e"}}
    objective = {"grpo": {"rewards": [reward], "generations": 2, "max_completion_tokens": 4}}
    trainer = trainer_of(kind, objective=objective, dataset={"eval_fraction": 0})
    model = trainer.model
    prompts = [[1, 40, 41, 42, 43, 44, 45, 46], [1, 50, 51]]
    answer = [60, 61, 62]
    wide = [[0] * (8 - len(prompt)) + prompt + answer for prompt in prompts]
    mask = torch.tensor([[int(token != 0) for token in line] for line in wide])
    together = torch.tensor(wide)
    with without_dropout(model), torch.no_grad():
        score = trainer._get_per_token_logps_and_entropies
        found = score(model, together, mask, len(answer))[0]
        written = model.generate(
            input_ids=together[:, :8], attention_mask=mask[:, :8], max_new_tokens=4, do_sample=False
        )
        for line, prompt in enumerate(prompts):
            alone = torch.tensor([prompt + answer])
            expected = model(input_ids=alone).logits[0, -4:-1].log_softmax(-1)
            expected = expected.gather(-1, alone[0, -3:, None])[:, 0]
            torch.testing.assert_close(found[line], expected, rtol=1e-4, atol=1e-4)
            ids = torch.tensor([prompt])
            for _ in range(4):
                best = model(input_ids=ids).logits[:, -1:].argmax(-1)
                ids = torch.cat([ids, best], dim=1)
            assert written[line, -4:].tolist() == ids[0, -4:].tolist()


FURTHER = {
    # Heads that are wider than hidden / heads, as Qwen3's and Gemma3's real ones.
    "Qwen3 with wide heads": ("Qwen3Config", APART | {"head_dim": 16}),
    "Gemma3 with wide heads": ("Gemma3TextConfig", APART | {"head_dim": 16}),
    "Mixtral": ("MixtralConfig", GROUPED | {"num_local_experts": 4}),
    "Falcon": ("FalconConfig", SMALL),
    "OPT": ("OPTConfig", SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "Mamba": (
        "MambaConfig",
        {"vocab_size": 128, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2} | ENDS,
    ),
}
ARCHITECTURES = {name: settings[:2] for name, settings in COMMON.items()} | FURTHER
# Architectures with methods that do not fit them, and what their refusal says.
REFUSED = {
    ("Mixtral", "ia3"): "What IA3 scales in a mixtral is not known",
    ("OPT", "ia3"): "What IA3 scales in a opt is not known",
    ("Mamba", "ia3"): "What IA3 scales in a mamba is not known",
    ("OPT", "bottleneck"): "0 of 2 layers of a opt are built of attention and MLP",
    ("Mamba", "bottleneck"): "0 of 2 layers of a mamba are built of attention and MLP",
    # One head of keys for all, of which its configuration says nothing that PEFT reads.
    ("Falcon", "p_tuning_v2"): "A falcon does not take what PEFT would put before its input",
    ("Falcon", "prefix_tuning"): "A falcon does not take what PEFT would put before its input",
    **{("Mamba", kind): "A mamba does not take what PEFT would put" for kind in PROMPTS},
}


def make_model(name: str) -> Any:
    torch.manual_seed(0)
    kind, settings = ARCHITECTURES[name]
    config = getattr(transformers, kind)(**settings)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def method_of(kind: str, tokenizer: Any = None, **settings: Any) -> Any:
    message = getattr(spec_from_dict({"method": {kind: settings}}).method, kind)
    setting = Setting("tiny", "CAUSAL_LM", 10, False, tokenizer, 0)
    return METHODS[kind].make(METHODS[kind].parse(message), setting)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_trained_and_loaded_again_or_refused(
    name: str, kind: str, tmp_path: Path
) -> None:
    method = method_of(kind, **({"virtual_tokens": 5} if kind in PROMPTS else {}))
    if (name, kind) in REFUSED:
        with pytest.raises(GraftError, match=REFUSED[name, kind]) as caught:
            method.apply(make_model(name))
        assert caught.value.next_step
        return
    model = method.apply(make_model(name))
    before = logits(model)
    learn(method, model, {"input_ids": IDS, "labels": IDS, "attention_mask": torch.ones_like(IDS)})
    after = logits(model)
    assert (after - before).abs().max() > 1e-2
    method.save(model, tmp_path)
    base = make_model(name)
    again = (
        load_bottleneck(base, tmp_path)
        if kind == "bottleneck"
        else PeftModel.from_pretrained(base, str(tmp_path))
    )
    torch.testing.assert_close(logits(again), after, rtol=0, atol=1e-6)


def test_a_bottleneck_is_not_put_behind_some_layers_only() -> None:
    model = make_model("Llama")
    del model.model.layers[1].mlp
    with pytest.raises(GraftError, match="1 of 2 layers of a llama are built of attention and MLP"):
        method_of("bottleneck").apply(model)


@pytest.mark.parametrize("kind", ["p_tuning", "prefix_tuning", "bottleneck", "ia3"])
def test_going_on_from_a_checkpoint_ends_in_the_same_bytes(kind: str, train: Train) -> None:
    dropout = {"dropout": 0.2} if kind in ("p_tuning", "bottleneck") else {}
    changes: Change = {
        "method": {"lora": None, kind: dropout},
        "hyperparameters": {"max_steps": 5},
        "checkpointing": {"every_steps": EVERY, "keep": 3},
    }
    whole = train("whole", **changes)
    assert whole.code == 0, whole.message
    step = f"step-{EVERY:09d}"
    work = whole.work_dir.with_name("resumed")
    shutil.copytree(whole.work_dir / "checkpoints" / step, work / "checkpoints" / step)
    resumed = train("resumed", **changes)
    assert resumed.code == 0, resumed.message
    assert f"Going on from the checkpoint of step {EVERY}." in resumed.log
    assert resumed.losses == whole.losses[EVERY:]
    assert resumed.weights_digest == whole.weights_digest
    configs = [
        (outcome.work_dir / "result/adapter_config.json").read_bytes()
        for outcome in (resumed, whole)
    ]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["ia3", *PROMPTS])
def test_a_result_of_a_quantized_base_is_the_same_when_loaded_again(
    kind: str, quantization: Any, train: Train, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[torch.Tensor] = []
    save = training.Training._save
    ids = torch.tensor([[1, 200, 17, 512, 33, 900, 4, 5]])

    def save_and_look(self: Any, method: Any, model: Any, *further: Any) -> Any:
        with without_dropout(model), torch.no_grad():
            found.append(model(input_ids=ids).logits.float())
        return save(self, method, model, *further)

    monkeypatch.setattr(training.Training, "_save", save_and_look)
    outcome = train(
        base={"quantization": quantization},
        method={"lora": None, kind: {}},
        hyperparameters={"max_steps": 2},
    )
    assert outcome.code == 0, outcome.message
    base = load_model(tiny_base, BaseSpec(str(tiny_base), "tiny", quantization, "auto"))
    # Quantized layers compute otherwise in evaluation mode, in which PEFT loads.
    again = PeftModel.from_pretrained(base, str(outcome.work_dir / "result")).train()
    with without_dropout(again), torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits.float(), found[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["prompt_tuning", "p_tuning_v2"])
def test_learned_tokens_take_from_the_longest_input(
    kind: str, train: Train, rows: Path, tmp_path: Path
) -> None:
    base = tmp_path / "short"
    config = transformers.GPT2Config(
        vocab_size=1024,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=48,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(base)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path("examples/base") / file, base / file)
    changes: Change = {
        "base": {"source": str(base)},
        "dataset": {"path": str(rows), "chat_template": "chatml"},
        "hyperparameters": {"epochs": 1},
    }
    # GPT-2 has no more positions than these, and would fail.
    outcome = train("fits", method={"lora": None, kind: {}}, **changes)
    assert outcome.code == 0, outcome.message
    assert "reads at most 28 tokens beside the 20 learned ones" in outcome.log
    method = {"lora": None, kind: {"virtual_tokens": 48}}
    refused = train("too many", method=method, **changes)
    assert refused.code == 64
    assert "48 learned tokens leave no room for others" in refused.message
    assert "virtual_tokens far below 48" in refused.message


@pytest.mark.parametrize(
    ("method", "words"),
    [
        *(
            ({kind: {"virtual_tokens": 0}}, (f"method.{kind}.virtual_tokens is 0", "1 to 4096"))
            for kind in PROMPTS
        ),
        (
            {"ia3": {"target_modules": ["w_proj"]}},
            ("no linear layer named w_proj", "k_proj"),
        ),
        (
            {"ia3": {"target_modules": ["k_proj"], "feedforward_modules": ["down_proj"]}},
            ("method.ia3.feedforward_modules[0] is 'down_proj'", "method.ia3.target_modules"),
        ),
        ({"p_tuning": {"encoder_layers": 17}}, ("method.p_tuning.encoder_layers is 17",)),
        ({"p_tuning": {"dropout": 1.0}}, ("method.p_tuning.dropout is 1", "0.99")),
        ({"bottleneck": {"size": 0}}, ("method.bottleneck.size is 0",)),
        (
            {"bottleneck": {"after_attention": False, "after_mlp": False}},
            ("method.bottleneck.after_mlp", "after_attention"),
        ),
    ],
)
def test_bad_settings_are_refused_with_what_is_allowed(
    method: Change, words: tuple[str, ...], spec: Change, tmp_path: Path
) -> None:
    outcome = attempt({**spec, "method": method}, tmp_path / "work")
    assert outcome.code == 64, outcome.message
    for word in words:
        assert word in outcome.message
    assert not (outcome.work_dir / "result").exists()


def test_an_initial_text_without_tokens_is_refused(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    nothing: dict[str, list[int]] = {"input_ids": []}
    silent = type("Silent", (), {"__call__": lambda self, text: nothing})()
    with pytest.raises(GraftError) as caught:
        method_of("prompt_tuning", silent, initial_text="\u200b").apply(make_model("Llama"))
    assert "the base's tokenizer makes no tokens" in caught.value.message
    assert "leave initial_text out" in caught.value.next_step
    assert tokenizer("Which colour?")["input_ids"]
