"""Every TOML file below examples/: it parses, says what the table here says, and trains.

What the files are for needs GPUs and public data. So each is run for two steps on a tiny random model of the same
architecture, on a stand-in in the public format of its data, with a reward that differs from completion to completion.
"""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from alfworld_helpers import install_fake, make_data
from dataset_rows import DEEPCODER_ROWS, HUMANEVAL_ROW, MBPP_ROWS, SUITE_ROWS, TRAINING_ROWS, folder_of
from hub_cache import write_files
from tiny_models import build
from workbench_helpers import differing, mean_id, weights_of

import autolayer
from autolayer.cli.commands import cli
from autolayer.core.budget import default_budget
from autolayer.core.config import Config, GiGPOConfig, read_toml
from autolayer.core.errors import ConfigError
from autolayer.core.run_folder import RunFolder
from autolayer.models.loading import load_model, read_tokenizer
from autolayer.pipeline.defaults import resolve
from autolayer.rollouts.length_limits import apply_length_limits
from autolayer.rollouts.rollouts import Rollouts
from autolayer.tasks import Task, load_task
from autolayer.tasks.agent import alfworld
from autolayer.tasks.code import code_task
from autolayer.tasks.code import public as public_code
from autolayer.tasks.environment import Step
from autolayer.tasks.math import public
from autolayer.tasks.math.datasets import SUITES, TRAINING
from autolayer.tasks.suites import Decoding
from autolayer.training.advantages import step_advantages
from autolayer.training.grpo_trainer import LayerGRPOTrainer

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.rglob("*.toml"))

FIELDS = (
    "model", "task", "algorithm", "prompts_per_step", "steps", "group_size", "max_new_tokens", "max_prompt_tokens",
    "temperature", "learning_rate", "beta",
)  # fmt: skip
TABLE: dict[str, tuple[Any, ...]] = {
    "qwen3-1.7b": ("Qwen/Qwen3-1.7B-Base", "math:numina", "grpo", 128, 1564, 4, 3072, 1024, 0.9, 5e-6, 0.001),
    "qwen3-4b": ("Qwen/Qwen3-4B-Base", "math:numina", "grpo", 128, 1564, 4, 3072, 1024, 0.9, 5e-6, 0.001),
    "qwen3-8b": ("Qwen/Qwen3-8B-Base", "math:numina", "grpo", 128, 1564, 4, 3072, 1024, 0.9, 5e-6, 0.001),
    "qwen3-1.7b-deepscaler": (
        "Qwen/Qwen3-1.7B-Base", "math:deepscaler", "grpo", 128, 624, 5, 8192, 1024, 0.9, 5e-6, 0.001,
    ),
    "qwen3-1.7b-code": ("Qwen/Qwen3-1.7B-Base", "code", "grpo", 128, 750, 4, 3072, 1024, 0.9, 5e-6, 0.001),
    "qwen2.5-math-1.5b": (
        "Qwen/Qwen2.5-Math-1.5B", "math:math", "dr_grpo", 128, 465, 8, 3000, 1024, 1.0, 5e-6, 0.0,
    ),
    "qwen2.5-1.5b-alfworld": (
        "Qwen/Qwen2.5-1.5B-Instruct", "agent:alfworld", "gigpo", 16, 150, 8, 512, None, 1.0, 3e-6, 0.01,
    ),
    "qwen2.5-3b-alfworld": (
        "Qwen/Qwen2.5-3B-Instruct", "agent:alfworld", "gigpo", 16, 150, 8, 512, None, 1.0, 3e-6, 0.01,
    ),
    "deepseek-r1-distill-qwen-7b": (
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "math:skywork", "grpo", 128, 375, 8, 16384, 2048, 1.0, 5e-6, 0.0,
    ),
}  # fmt: skip
CHAT = ("Instruct", "Distill")
LAYER = 1


def config_of(name: str) -> Config:
    return Config(**read_toml(str(EXAMPLES / "configs" / f"{name}.toml")))


def stand_in(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The configuration, with a local stand-in for its data and a reward with variance. Evaluations are short."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    if config.task == "agent:alfworld":
        install_fake(monkeypatch)
        monkeypatch.setenv("ALFWORLD_DATA", str(make_data(folder, num=30)))
        monkeypatch.delenv("ALFWORLD_EVAL", raising=False)
        monkeypatch.setattr(alfworld, "AlfredGame", Paying)
        return config
    if config.task == "code":
        monkeypatch.setattr(code_task, "make_code_reward", lambda **_: mean_id)
        write_code(folder)
    else:
        monkeypatch.setattr(public, "math_reward", mean_id)
        monkeypatch.setattr(public, "EVAL_DECODING", Decoding(temperature=0.6, top_p=0.95, top_k=20, max_new_tokens=8))
        name = config.task.removeprefix("math:")
        folder_of(folder, TRAINING[name], TRAINING_ROWS[name])
        for suite, rows in SUITE_ROWS.items():
            folder_of(folder, SUITES[suite], rows)
    return config.replace(data=str(folder))


class Paying(alfworld.AlfredGame):
    """Pays a little for every small vowel, too: a random model never wins."""

    def step(self, action: str) -> Step:
        step = super().step(action)
        return step._replace(reward=step.reward + 0.1 * sum(map(action.count, "aeiou")))


def write_code(folder: Path) -> None:
    """DeepCoder, HumanEval and MBPP."""
    for part in public_code.DEEPCODER_PARTS:
        rows = [{**DEEPCODER_ROWS[part], "problem": f"Square {part} {i}."} for i in range(20)]
        write_files(folder / public_code.DEEPCODER / part, {"train": rows})
    header = HUMANEVAL_ROW["prompt"]
    write_files(
        folder / public_code.HUMANEVAL / "data",
        {"test": [{**HUMANEVAL_ROW, "prompt": f"# {i}\n{header}"} for i in (1, 2)]},
    )
    tests = [{**MBPP_ROWS["sanitized"], "prompt": f"Square {i}."} for i in range(4)]
    write_files(folder / public_code.MBPP / "sanitized", {"test": tests})


def tiny(config: Config, folder: Path) -> Path:
    """A random model of the same architecture, with a chat template where the model talks."""
    architecture = "qwen3" if "Qwen3" in config.model else "qwen2"
    is_chat = any(word in config.model for word in CHAT)
    # Positions for a few turns of ALFWorld.
    return build(architecture, folder, num_layers=3, chat_template=is_chat, max_position_embeddings=768)


def test_every_command_of_the_readme_parses() -> None:
    text = (EXAMPLES / "configs" / "README.md").read_text()
    lines = re.findall(r"^ {4}autolayer (\w+) (.+?)(?: {2,}#.*)?$", text, re.MULTILINE)
    assert {verb for verb, _ in lines} == {"pick", "train", "measure"}
    for verb, options in lines:
        with cli.commands[verb].make_context(verb, options.split()) as context:
            assert (EXAMPLES.parent / context.params["toml"]).is_file()


def test_every_file_below_examples_is_in_the_table() -> None:
    assert {file.stem for file in FILES} == set(TABLE) and len(FILES) == len(TABLE)
    models = {values[0] for values in TABLE.values()}
    assert len(models) == 7, "the source has seven models"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_says_what_it_should(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(**read_toml(str(file)))
    task = load_task(stand_in(config, tmp_path, monkeypatch), chat=False)
    resolved = resolve(config, task).model_dump()
    assert resolved.pop("budget") == default_budget(resolved["steps"])
    assert tuple(resolved.pop(name) for name in FIELDS) == TABLE[file.stem]
    assert resolved.pop("num_eval") == len(task.splits["eval"]), "all of these few"
    defaults = Config(model="m").model_dump()
    assert resolved == {name: defaults[name] for name in resolved}, "everything else is left as it is"
    assert resolved["gigpo"] == GiGPOConfig(omega=1.0, gamma=0.95).model_dump()
    assert file.name in (file.parent / "README.md").read_text()


def test_alfworld_has_the_turns_and_the_penalty_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(stand_in(config_of("qwen2.5-3b-alfworld"), tmp_path, monkeypatch), chat=True)
    assert (task.max_turns, task.max_new_tokens, alfworld.PENALTY) == (50, 512, 0.01)


@dataclasses.dataclass
class Seen:
    """Records of a training run."""

    trainers: list[LayerGRPOTrainer] = dataclasses.field(default_factory=list)
    steps: list[tuple[Rollouts, dict[str, Any]]] = dataclasses.field(default_factory=list)
    """Every step's rollouts, and what the trainer made of them."""
    weights: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    """Taken from the whole model, while the trained layer is still in it."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    score, close = LayerGRPOTrainer._generate_and_score_completions, LayerGRPOTrainer.close

    def scoring(self: LayerGRPOTrainer, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = score(self, inputs)
        assert self.rollouts is not None
        found.steps.append((self.rollouts, output))
        return output

    def closing(self: LayerGRPOTrainer) -> None:
        found.trainers.append(self)
        found.weights = weights_of(cast(torch.nn.Module, self.model))
        close(self)

    monkeypatch.setattr(LayerGRPOTrainer, "_generate_and_score_completions", scoring)
    monkeypatch.setattr(LayerGRPOTrainer, "close", closing)
    return found


def grpo(rollouts: Rollouts, config: Config, *, scaled: bool) -> torch.Tensor:
    rewards_P_G = rollouts.rewards_P_G()
    centred = rewards_P_G - rewards_P_G.mean(1, keepdim=True)
    return (centred / (rewards_P_G.std(1, keepdim=True) + 1e-4) if scaled else centred).flatten()


def gigpo(rollouts: Rollouts, config: Config) -> torch.Tensor:
    advantages = torch.zeros(len(rollouts.turns), max(map(len, rollouts.completion_ids)))
    of_turns = step_advantages(rollouts.turns, config.group_size, config.gigpo)
    for row, turns, values in zip(advantages, rollouts.turns, of_turns, strict=True):
        for turn, value in zip(turns, values, strict=True):
            row[turn.start : turn.stop] = value
    return advantages


ALGORITHMS: dict[str, tuple[str, Callable[..., torch.Tensor]]] = {
    "grpo": ("grpo", partial(grpo, scaled=True)),
    "dr_grpo": ("dr_grpo", partial(grpo, scaled=False)),
    "gigpo": ("grpo", gigpo),
}
"""Name of the loss in TRL, and the advantages."""


@pytest.mark.parametrize("name", TABLE)
def test_a_file_trains(name: str, seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(name)
    model = tiny(config, tmp_path / "model")
    short = stand_in(config, tmp_path / "data", monkeypatch).replace(
        **{"model": str(model), "layers": str(LAYER), "steps": 2, "prompts_per_step": 2, "group_size": 4},
        **{"max_new_tokens": 8, "num_eval": 8, "device": "cpu", "out": str(tmp_path / "run")},
    )
    result = autolayer.train_layer(short)

    (trainer,) = seen.trainers
    assert trainer.state.global_step == len(seen.steps) == 2 and result.trained_layers == (LAYER,)
    loss, advantages = ALGORITHMS[config.algorithm]
    assert (trainer.loss_type, trainer.beta) == (loss, config.beta)
    assert (trainer.reference is not None) == (config.beta > 0)
    assert trainer.gigpo == (config.gigpo if config.algorithm == "gigpo" else None)
    assert (trainer.arm.learning_rate, trainer.temperature) == (config.learning_rate, config.temperature)
    for rollouts, output in seen.steps:
        assert rollouts.group_size == 4 and len(rollouts.rewards) == 8
        assert output["advantages"].abs().max() > 0.01
        torch.testing.assert_close(
            output["advantages"].double(), advantages(rollouts, short).double(), atol=1e-5, rtol=1e-4
        )
        assert config.algorithm != "gigpo" or max(map(len, rollouts.turns)) > 1

    base = weights_of(load_model(str(model)).model)
    changed = differing(base, seen.weights)
    layer = {key for key in base if key.startswith(f"model.layers.{LAYER}.")}
    assert changed <= layer, "nothing outside the layer"
    assert {key for key in layer if base[key].dim() == 2} <= changed, "every matrix in it"
    assert (RunFolder(tmp_path / "run").read("config.json") or {})["algorithm"] == config.algorithm
    patch = autolayer.load_patch(tmp_path / "run" / "layer.safetensors")
    assert (patch.layers, patch.steps, patch.algorithm) == ((LAYER,), 2, config.algorithm)
    assert all(torch.equal(tensor, seen.weights[key]) for key, tensor in patch.tensors.items())


# The one setting that only these files use.


def toy(lengths: dict[str, tuple[int, ...]]) -> Task:
    splits = {name: [{"prompt": f"{name[:2]}{'x' * (n - 2)}"} for n in wanted] for name, wanted in lengths.items()}
    return Task(name="toy", splits=splits, reward=mean_id, max_new_tokens=4)


def test_long_prompts_are_left_out_of_training_only(tiny_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    lengths = {"train": (5, 9, 10, 11), "probe": (8, 20), "select": (3, 4), "eval": (6, 30)}
    task, tokenizer = toy(lengths), read_tokenizer(str(tiny_folder))
    fitted = apply_length_limits(Config(model="m", max_prompt_tokens=10), task, tokenizer, None)
    found = {name: tuple(len(row["prompt"]) for row in rows) for name, rows in fitted.splits.items()}
    assert found == {"train": (5, 9, 10), "probe": (8,), "select": (3, 4), "eval": (6, 30)}
    assert "dropped 2 prompts of more than 10 tokens" in caplog.text
    assert apply_length_limits(Config(model="m"), task, tokenizer, None) is task
    assert apply_length_limits(Config(model="m", max_prompt_tokens=20), task, tokenizer, None) is task


def test_a_limit_that_leaves_nothing_is_refused(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = read_tokenizer(str(tiny_folder))
    task = toy({"train": (5,), "probe": (9, 8), "select": (3,), "eval": (6,)})
    with pytest.raises(ConfigError, match="leaves no prompt in split 'probe' of task 'toy', where the shortest has 8"):
        apply_length_limits(Config(model="m", max_prompt_tokens=7), task, tokenizer, None)
    with pytest.raises(ConfigError, match="--max-prompt-tokens 0 cannot work"):
        Config(model="m", max_prompt_tokens=0)
    config = stand_in(config_of("qwen2.5-3b-alfworld"), tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match="'agent:alfworld', because its episodes grow turn by turn"):
        apply_length_limits(config.replace(max_prompt_tokens=7), load_task(config, chat=True), tokenizer, None)
