"""What `export` prints is read as each trainer reads it, and trains exactly the chosen layers.

TRL and PEFT are the real ones. The other rules are those of the cited versions, rewritten in two lines.
"""

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import peft
import pytest
import yaml
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from autolayer.core.errors import LayerError
from autolayer.reporting.export import TRAINERS, Handover, LayerNames, export_text

NUM_LAYERS = 20
INSIDE = ("self_attn.q_proj", "mlp.up_proj", "mlp.gate_proj", "input_layernorm")
MIXTURE = ("mlp.gate", "mlp.shared_expert_gate", "mlp.experts.1.up_proj", "mlp.experts.10.up_proj")
ELSEWHERE = (
    "model.embed_tokens", "model.norm", "lm_head", "visual.blocks.1.attn.qkv", "model.visual.blocks.10.attn.qkv",
    "model.vision_tower.encoder.layers.1.mlp.fc1", "mtp.layers.1.mlp.up_proj", "model.mtp.layers.10.mlp.up_proj",
    "model.visual.layers.1.self_attn.q_proj", "draft.model.layers.1.mlp.up_proj",
)  # fmt: skip
CHOICES = [(1,), (0,), (19,), (1, 10), (10, 11, 12)]


class NamedModel(nn.Module):
    """A module with a linear layer, a norm for names with "norm", at each of some names."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        for name in names:
            home: nn.Module = self
            *parents, last = name.split(".")
            for parent in parents:
                if parent not in dict(home.named_children()):
                    home.add_module(parent, nn.Module())
                home = home.get_submodule(parent)
            home.add_module(last, nn.LayerNorm(2) if "norm" in last else nn.Linear(2, 2, bias=False))


def model_of(prefix: str, inside: tuple[str, ...]) -> NamedModel:
    return NamedModel([*ELSEWHERE, *(f"{prefix}.{i}.{name}" for i in range(NUM_LAYERS) for name in inside)])


def handover(layers: tuple[int, ...], *, mixture: bool = False, **changes: Any) -> Handover:
    linear = tuple(name for name in (*INSIDE, *(MIXTURE if mixture else ())) if name not in ("mlp.gate", INSIDE[-1]))
    names = LayerNames(
        layers=layers, num_layers=NUM_LAYERS, prefixes=("model.layers", "model.language_model.layers"),
        frozen=("mlp.gate",) if mixture else (), linear=linear,
    )  # fmt: skip
    return Handover(
        **{"names": names, "model": "a/b", "path": "a/b", "lora": (16, 32), "learning_rate": 3e-6, **changes}
    )


def code_of(text: str, title: str) -> str:
    """Returns the file of a text with several, which begins below the line with its title."""
    return text.partition(f"# ---- {title}")[2].partition("\n")[2].partition("# ---- ")[0]


def by_axolotl(text: str, model: nn.Module, _: Any) -> None:
    patterns = yaml.safe_load(text)["unfrozen_parameters"]  # axolotl 0.19.0, utils/freeze.py, LayerNamePattern
    for name, p in model.named_parameters():
        p.requires_grad_(any(re.match(re.sub(r"\.(?!\+)", "\\.", pattern), name) for pattern in patterns))


def by_llama_factory(text: str, model: nn.Module, pretend: Any) -> None:
    count = yaml.safe_load(code_of(text, "config.yaml"))["freeze_trainable_layers"]
    layers = range(NUM_LAYERS - count, NUM_LAYERS) if count > 0 else range(-count)

    def run_exp(args: Any = None, callbacks: Any = None) -> None:  # LLaMA-Factory 0.9.5, model/adapter.py
        for name, p in model.named_parameters():
            p.requires_grad_(any(f".{index}." in name for index in layers))
        handler = CallbackHandler(callbacks, model, None, None, None)
        handler.on_init_end(SimpleNamespace(), SimpleNamespace(), SimpleNamespace())  # pyright: ignore

    pretend("llamafactory.train.tuner", run_exp=run_exp)
    exec(code_of(text, "train_layers.py"), {"TrainerCallback": TrainerCallback})


def by_ms_swift(text: str, model: nn.Module, _: Any) -> None:
    words = shlex.split(text, comments=True)
    pattern = words[words.index("--trainable_parameters_regex") + 1]
    assert words[words.index("--freeze_parameters_ratio") + 1] == "1"
    for name, p in model.named_parameters():  # ms-swift 4.6.0, utils/transformers_utils.py, activate_parameters
        p.requires_grad_(re.search(pattern, name) is not None)


def by_verl(text: str, model: nn.Module, pretend: Any) -> None:
    class Engine:
        def _build_module(self) -> nn.Module:
            return model

    pretend("verl.workers.engine.fsdp.transformer_impl", FSDPEngine=Engine)
    exec(code_of(text, "train_layers.py"), {})
    assert Engine()._build_module() is model
    assert "actor_rollout_ref.model.external_lib=train_layers" in shlex.split(code_of(text, "the command"), True)


def by_unsloth(text: str, model: nn.Module, pretend: Any) -> None:
    pretend("unsloth", FastLanguageModel=SimpleNamespace(from_pretrained=lambda name, **options: (model, name)))
    exec(text, {})


def by_regex(text: str, model: nn.Module, _: Any) -> None:
    exec(text, {"model": model})


READERS = {
    "axolotl": by_axolotl, "llama-factory": by_llama_factory, "ms-swift": by_ms_swift, "verl": by_verl,
    "unsloth": by_unsloth, "regex": by_regex,
}  # fmt: skip


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a module in the place of one that cannot be installed beside our torch."""

    def put(name: str, **content: Any) -> None:
        for end in [i for i, letter in enumerate(name) if letter == "."]:
            monkeypatch.setitem(sys.modules, name[:end], ModuleType(name[:end]))
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)

    return put


@pytest.mark.parametrize("prefix", ["model.layers", "model.language_model.layers"])
@pytest.mark.parametrize("layers", CHOICES, ids=str)
@pytest.mark.parametrize("trainer", READERS)
def test_exactly_the_layers_train(trainer: str, layers: tuple[int, ...], prefix: str, pretend: Any) -> None:
    for mixture in (False, True):
        model = model_of(prefix, (*INSIDE, *MIXTURE) if mixture else INSIDE)
        READERS[trainer](export_text(trainer, handover(layers, mixture=mixture)), model, pretend)
        expected = {
            name
            for name, _ in model.named_parameters()
            if name.startswith(tuple(f"{prefix}.{layer}." for layer in layers)) and ".mlp.gate." not in name
        }
        assert {name for name, p in model.named_parameters() if p.requires_grad} == expected and expected


@pytest.mark.parametrize("prefix", ["model.layers", "model.language_model.layers"])
@pytest.mark.parametrize("layers", CHOICES, ids=str)
def test_peft_adapts_exactly_the_linear_modules_of_the_layers(layers: tuple[int, ...], prefix: str) -> None:
    inside = (*INSIDE, *MIXTURE)
    found: dict[str, Any] = {"model": model_of(prefix, inside)}
    text = export_text("peft", handover(layers, mixture=True)).replace("get_peft_model(model, config)", "model")
    exec(text, found)
    model = peft.inject_adapter_in_model(found["config"], found["model"])
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {f"{prefix}.{i}.{name}" for i in layers for name in inside} - {
        f"{prefix}.{i}.{name}" for i in layers for name in ("mlp.gate", INSIDE[-1])
    }
    assert (found["config"].r, found["config"].lora_alpha) == (16, 32)


@pytest.mark.parametrize(("layers", "count"), [((1,), -2), ((0, 3), -4), ((19,), 1), ((17, 19), 3), ((0, 19), 20)])
def test_llama_factory_gets_the_fewest_layers_that_it_can_choose(layers: tuple[int, ...], count: int) -> None:
    config = yaml.safe_load(code_of(export_text("llama-factory", handover(layers)), "config.yaml"))
    assert config["freeze_trainable_layers"] == count


def test_peft_without_linear_modules_is_refused() -> None:
    run = Handover(names=LayerNames(layers=(1,), num_layers=2, prefixes=("h",)), model="m", path="m", lora=(1, 1))
    with pytest.raises(LayerError, match="without an nn.Linear"):
        export_text("peft", run)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_learning_rate_goes_only_where_it_was_found_for(trainer: str) -> None:
    """That of whole layers is no rate of an adapter, and the other way round; PEFT alone prints adapters."""
    whole, adapter = (export_text(trainer, handover((1,), is_adapter=adapter)) for adapter in (False, True))
    fits, other = (adapter, whole) if trainer == "peft" else (whole, adapter)
    if trainer != "regex":
        assert re.search(r"(learning_rate|lr)[=: ]+3e-06\b", fits.partition("# Not handed over")[0])
    assert "3e-06" not in other.partition("# Not handed over")[0] and "3e-06 was found for" in other
    unknown = export_text(trainer, handover((1,), learning_rate=None))
    assert "none was looked for" in unknown and "3e-06" not in unknown


@pytest.mark.parametrize("trainer", TRAINERS)
def test_it_says_what_it_does_not_cover(trainer: str) -> None:
    settings = {
        "algorithm": "gigpo", "task": "t", "prompts_per_step": 4, "group_size": 8, "beta": 0.1, "temperature": 1.0,
        "steps": 3, "max_new_tokens": 5,
    }  # fmt: skip
    text = export_text(trainer, handover((1, 2), mixture=True, settings=settings, notes=("a note",)))
    assert text.startswith("# layers 1 and 2 of 20 of a/b, for ")
    notes = text.partition("# Not handed over, and what to know:\n")[2]
    assert ("routers (mlp.gate) stay frozen" in notes) == (trainer != "peft")
    for part in ("gigpo on t with 4 prompts of 8", "this is GRPO", "4.52", "# a note", "freeze_report"):
        assert part in notes
    assert all(line.startswith("# ") and len(line) < 130 for line in notes.splitlines())


def test_trl_finds_own_files_from_every_folder_and_keeps_the_thinking_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "mine.py"):
        Path(name).touch()
    settings = {
        "algorithm": "grpo", "task": None, "prompts_per_step": 4, "group_size": 8, "beta": 0.0, "temperature": 1.0,
        "steps": 3, "max_new_tokens": 5, "thinking": False, "data": "rows.jsonl", "reward": ["mine.py:f", "pack.mod:g"],
    }  # fmt: skip
    Path("base").mkdir()
    text = export_text("trl", handover((1,), settings=settings, path="base"))
    assert f'base = "{tmp_path}/base"' in text
    assert f"data='{tmp_path}/rows.jsonl'" in text and f"reward=['{tmp_path}/mine.py:f', 'pack.mod:g']" in text
    assert 'chat_template_kwargs={"enable_thinking": False}' in text
    compile(text, "pasted", "exec")
    without = export_text(
        "trl", handover((1,), settings=settings | {"thinking": None, "data": "a/hub-name", "reward": "mine.py:f"})
    )
    assert "chat_template_kwargs" not in without and "data='a/hub-name'" in without
    assert f"reward=['{tmp_path}/mine.py:f']" in without


def test_a_path_stays_one_text(pretend: Any) -> None:
    name = """a b"'$(x)\nimport os"""
    run, seen = handover((1,), model=name, path=name), []

    def load(name: str, **_: Any) -> tuple[nn.Module, None]:
        seen.append(name)
        return nn.Linear(1, 1), None

    pretend("unsloth", FastLanguageModel=SimpleNamespace(from_pretrained=load))
    exec(export_text("unsloth", run), {})
    words = shlex.split(export_text("ms-swift", run), comments=True)
    assert [*seen, words[words.index("--model") + 1]] == [name] * 2
