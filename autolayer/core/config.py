"""Every setting, its default and its one line of explanation, in one place.

`Config` holds what the command line shows; the tables (`TABLES`) hold the rest, reachable through `--config run.toml`.
A field that is None is filled from the model's preset or the task (`open_fields.resolve`), and the resolved values are
written to the run folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autolayer.core.errors import ConfigError, unknown

ALGORITHMS = ("grpo", "dr_grpo", "gigpo")
FROZEN = ("8bit", "4bit")
ROLLOUTS = ("auto", "transformers", "vllm")

NOT_SIGNED = ("out", "storage", "hours", "device", "shard", "recompute", "vllm", "allow_unsandboxed", "accept_changes")
"""Fields that may change between two calls for one folder: where it runs and for how long, not what it does."""
MAX_SEED = 2**32 - 1
"""NumPy's largest."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How the cheap signals are measured."""

    share: float = 0.3
    """Share of the finding budget that the probes may spend, where the rest pays for a race; else they have it all."""
    num_folds: int = 3
    """Parts of the shared batch: a direction is taken on all but one and judged on that one."""
    num_prompts: int = 64
    """Prompts in each fold, at most; fewer where the budget asks for it."""
    burst_steps: int | None = None
    """Optimizer steps per layer of the `rl_burst` probe, at most; 0 leaves the probe out. Default: 2, or none where the
    budget pays for a race, whose first rung is a burst of its own."""

    def __post_init__(self) -> None:
        _check_table(
            "probe",
            self,
            share=(0 < self.share <= 1, "a number above 0 and up to 1"),
            num_folds=(self.num_folds >= 2, "at least 2, since no direction is judged on itself"),
            num_prompts=(self.num_prompts >= 1, "a whole number above 0"),
            burst_steps=((self.burst_steps or 0) >= 0, "0 or a whole number above"),
        )


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How the race confirms the prediction."""

    num_select: int = 256
    """Items of the `select` split on which every rung compares its arms."""
    rate_span: float = 4.0
    """A layer's learning rate is searched between the starting rate divided and multiplied by this."""
    confidence: float = 0.95
    """The leader is clear when it is best with at least this probability."""

    def __post_init__(self) -> None:
        _check_table(
            "search",
            self,
            num_select=(self.num_select >= 1, "a whole number above 0"),
            rate_span=(1 <= self.rate_span < math.inf, "1 or a number above"),
            confidence=(0 < self.confidence < 1, "a number between 0 and 1"),
        )


@dataclass(frozen=True, kw_only=True)
class GiGPOConfig:
    """How GiGPO (arXiv 2505.10978) weighs the steps of an episode."""

    omega: float = 1.0
    """Weight of the advantages among equal states against those among episodes."""
    gamma: float = 0.95
    """Discount of a later step's reward."""
    normalize: str = "std"
    """std: advantages are divided by the standard deviation of what they compare; none: they are not."""
    similarity: float | None = None
    """Share of two states' text that has to agree for them to count as equal (difflib's ratio); default: all of it."""

    def __post_init__(self) -> None:
        if self.normalize not in ("std", "none"):
            raise unknown("norm of [gigpo]", self.normalize, ("std", "none"))
        _check_table(
            "gigpo",
            self,
            omega=(0 <= self.omega < math.inf, "0 or a number above"),
            gamma=(0 <= self.gamma <= 1, "a number from 0 to 1"),
            similarity=(self.similarity is None or 0 < self.similarity <= 1, "a number above 0 and up to 1"),
        )


@dataclass(frozen=True, kw_only=True)
class VLLMConfig:
    """What vLLM may take of the device that it shares with the training."""

    memory_share: float = 0.5
    """Of the device's memory, for a second copy of the weights and the cache of many sequences."""
    sleep: bool = False
    """Whether it gives all of that back while the policy trains (CUDA only; the weights wait in host memory)."""

    def __post_init__(self) -> None:
        _check_table("vllm", self, memory_share=(0 < self.memory_share < 1, "a number between 0 and 1"))


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """How `measure` finds the contribution of every layer."""

    num_seeds: int = 3
    """Training seeds of every arm: the run's seed and the ones after it."""
    rates: str | None = None
    """Learning rates that every arm is tried at, such as 1e-4,3e-4,1e-3; default: a grid made from the probes."""

    def __post_init__(self) -> None:
        if self.num_seeds < 1:
            raise ConfigError(f"--num-seeds {self.num_seeds} cannot work: give a whole number above 0.")
        try:
            valid = all(0 < rate < math.inf for rate in self.grid or ())
        except ValueError:
            valid = False
        if not valid:
            raise ConfigError(
                f"--rates {self.rates!r} cannot be read: give learning rates above 0, such as 1e-4,3e-4,1e-3, or auto."
            )

    @property
    def grid(self) -> tuple[float, ...] | None:
        """The rates in order, or None for the probes' grid."""
        return None if self.rates in (None, "auto") else tuple(sorted({float(text) for text in self.rates.split(",")}))


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of one run."""

    model: str
    """Base model: 'tiny', a local folder, or a Hugging Face name."""
    task: str = "math"
    """Task: a built-in name (see `autolayer tasks`) or FILE.py:NAME."""
    data: str | None = None
    """Your own prompts: a .jsonl file with a 'prompt' column; needs --reward. Or a folder with copies of the public
    data sets that --task reads (FOLDER/openai/gsm8k)."""
    reward: str | None = None
    """Your own reward: FILE.py:function with TRL's signature."""
    algorithm: str = "grpo"
    """RL algorithm: grpo, dr_grpo or gigpo (for tasks of several turns)."""
    layers: str | None = None
    """Candidate layers, such as 16, 10-14 or 8,16; in `train` and `measure`, what is trained. Default: all."""
    top_k: int = 1
    """Layers to train together: sets of so many race instead of single ones."""
    boost: float | None = None
    """Train all parameters in the end, with this many times the learning rate on the best layers (2 is usual)."""
    adapter: str | None = None
    """lora: train LoRA adapters on the chosen layers instead of whole layers."""
    frozen: str | None = None
    """8bit or 4bit: keep the layers that `train` leaves alone in so many bits (needs the extra `quantized`)."""
    budget: float | None = None
    """What finding the layer may cost, as a share of one full run of the final training; default: what
    40 of its steps cost (beyond 400 steps, 2 roots of their number), 0.25 at the most."""
    regret: float = 0.05
    """Contribution one is ready to lose: the search stops when no more than this is at stake."""
    hours: float | None = None
    """Deadline for the whole run, on top of the budget."""
    history: str | None = None
    """Folder of your own contribution.json files, which sharpen the prediction."""
    steps: int | None = None
    """Optimizer steps of the final training run."""
    prompts_per_step: int | None = None
    """Prompts per optimizer step."""
    group_size: int = 8
    """Completions per prompt: the group that rewards are compared in."""
    max_new_tokens: int | None = None
    """Longest completion, in tokens."""
    max_prompt_tokens: int | None = None
    """Leave longer prompts out of training; the evaluation keeps all."""
    temperature: float = 1.0
    """Sampling temperature of rollouts and evaluation."""
    learning_rate: float | None = None
    """Learning rate of the trained layers; default: searched."""
    beta: float = 0.0
    """Weight of the KL term against the base model."""
    thinking: bool | None = None
    """Thinking switch of the chat template, where it has one."""
    num_eval: int | None = None
    """Items of the `eval` split that base and trained model are compared on; default: the task's own."""
    seed: int = 0
    """Fixes every random choice of the run."""
    out: str | None = None
    """Run folder; default: runs/MODEL-TASK-SIGNATURE."""
    storage: str | None = None
    """Optuna storage of the search; default: study.db in the run folder."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    rollouts: str = "auto"
    """What generates completions: transformers, vllm, auto (vllm where it is installed with a GPU), or the URL of a
    vLLM server; of several, with commas between them."""
    shard: bool = False
    """Divide the model's blocks among the processes of `torchrun --nproc_per_node N -m autolayer`, where one device
    does not hold it (FSDP2). Not with --adapter, --boost, --frozen, --layers full or --rollouts vllm."""
    recompute: bool = False
    """Recompute activations in the backward pass from the start, not only when memory runs out."""
    allow_unsandboxed: bool = False
    """Run programs that the model writes without a sandbox where there is none; they can do what you can."""
    accept_changes: bool = False
    """Go on with a run although its reward, data or task file has changed since; the result says so."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    gigpo: GiGPOConfig = field(default_factory=GiGPOConfig)
    vllm: VLLMConfig = field(default_factory=VLLMConfig)

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise unknown("algorithm", self.algorithm, ALGORITHMS)
        if self.rollouts not in ROLLOUTS and not is_server(self.rollouts):
            raise unknown("rollout engine", self.rollouts, ROLLOUTS, "Or http://HOST:PORT of a vLLM server.")
        if self.adapter not in (None, "lora"):
            raise unknown("adapter", self.adapter or "", ("lora",))
        if self.frozen not in (None, *FROZEN):
            raise unknown("value of --frozen", self.frozen or "", FROZEN)
        problems = [text for field_name, valid, text in self._checks() if not valid and field_name]
        if problems:
            raise ConfigError("; ".join(problems) + ".")

    def _checks(self) -> list[tuple[str, bool, str]]:
        def positive(name: str, whole: bool = False) -> tuple[str, bool, str]:
            value = getattr(self, name)
            option = "--" + name.replace("_", "-")
            valid = value is None or 0 < value < math.inf
            return name, valid, f"{option} {value} cannot work: give a {'whole' if whole else 'finite'} number above 0"

        return [
            *(positive(name, whole=True) for name in ("steps", "prompts_per_step", "max_new_tokens")),
            *(positive(name, whole=True) for name in ("max_prompt_tokens", "num_eval")),
            *(positive(name) for name in ("budget", "hours", "temperature", "learning_rate", "regret")),
            ("top_k", self.top_k >= 1, f"--top-k {self.top_k} cannot work: give a whole number above 0"),
            ("boost", None in (self.boost, self.adapter), "--boost trains all parameters, --adapter only adapters: "
             "give one"),
            ("boost", self.boost is None or 1 <= self.boost < math.inf,
             f"--boost {self.boost} cannot work: give 1 or more"),
            ("frozen", self.frozen is None or self.rollouts in ("auto", "transformers"), f"--frozen does not go with "
             f"--rollouts {self.rollouts}, which would sample from the model as it was: leave one out"),
            ("shard", not self.shard or self.rollouts != "vllm", "--shard does not go with --rollouts vllm, which "
             "needs the whole model beside it: give the URL of a vLLM server"),
            ("shard", not self.shard or (self.boost, self.adapter, self.frozen) == (None, None, None),
             "--shard does not go with --boost, --adapter or --frozen: leave it or them out"),
            ("group_size", self.group_size >= 2, f"--group-size {self.group_size} cannot work: rewards are compared "
             "inside a group, give at least 2"),
            ("seed", 0 <= self.seed <= MAX_SEED, f"--seed {self.seed} cannot work: give a whole number from 0 to "
             f"{MAX_SEED}"),
            ("beta", 0 <= self.beta < math.inf, f"--beta {self.beta} cannot work: give 0 or a number above"),
            ("data", self.data is not None if self.reward is not None else not (self.data or "").endswith(".jsonl"),
             f"--data and --reward belong together (got --data {self.data}, --reward {self.reward}): give both, "
             "or a --task"),
            ("task", self.reward is None or self.task == Config.task, f"--task {self.task} would be ignored beside "
             "--data and --reward: leave it out"),
            ("measure", None in (self.learning_rate, self.measure.grid),
             f"--learning-rate {self.learning_rate} and --rates {self.measure.rates} exclude each other: give one"),
        ]  # fmt: skip

    @property
    def signature(self) -> str:
        """Ten characters that two configurations share only if they would do the same."""
        signed = self.signed()
        if self.measure == MeasureConfig():  # the other verbs do nothing with it
            del signed["measure"]
        return hashlib.sha256(json.dumps(signed, sort_keys=True).encode()).hexdigest()[:10]

    def signed(self) -> dict[str, Any]:
        """The settings that decide what a run does, as plain values."""
        left_out = NOT_SIGNED if self.algorithm == "gigpo" else (*NOT_SIGNED, "gigpo")
        rollouts = {"rollouts": "vllm"} if self.rollouts not in ROLLOUTS else {}  # wherever the server is
        return {name: v for name, v in (dataclasses.asdict(self) | rollouts).items() if name not in left_out}


TABLES = {
    "probe": ProbeConfig,
    "search": SearchConfig,
    "measure": MeasureConfig,
    "gigpo": GiGPOConfig,
    "vllm": VLLMConfig,
}
"""Fields of `Config` that are tables in a --config file."""


def is_server(rollouts: str) -> bool:
    """Whether --rollouts names vLLM servers: URLs, with commas between them."""
    return all(re.fullmatch(r"https?://[\w.\-\[\]:]+(/v1)?/?", url.strip()) for url in rollouts.split(","))


def from_dict(values: dict[str, Any]) -> Config:
    """Builds a Config from nested plain values; unknown names are refused with the nearest valid one."""
    return _build(Config, values)


def read_toml(path: str) -> dict[str, Any]:
    """Reads a `--config` file. The keys are the fields of `Config`, the names in `TABLES` are tables."""
    try:
        values = tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"--config {path} does not exist: give the path of a TOML file.") from None
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read ({error.strerror}): give the path of a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not valid TOML ({error}): mend that line.") from None

    several = values.get("layers")
    if isinstance(several, list) and several and all(type(each) is int for each in several):
        values["layers"] = ",".join(map(str, several))
    return values


def _check_table(table: str, config: Any, **checks: tuple[bool, str]) -> None:
    for name, (valid, wanted) in checks.items():
        if not valid:
            raise ConfigError(f"[{table}] {name} = {getattr(config, name)} cannot work: give {wanted}.")


def _build(cls: Any, values: dict[str, Any]) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    arguments = {}
    for name, value in values.items():
        if name not in fields:
            table = next((f"[{table}] " for table, kind in TABLES.items() if kind is cls), "")
            raise unknown(f"{table}setting", name, fields)
        if name in TABLES and isinstance(value, dict):
            value = _build(TABLES[name], value)
        elif name not in TABLES or not isinstance(value, TABLES[name]):
            value = _typed(name, str(fields[name].type), value)
        arguments[name] = value
    if cls is Config and "model" not in arguments:
        raise ConfigError("no model is given: give 'tiny', a local folder, or a Hugging Face name.")
    return cls(**arguments)


def _typed(name: str, kind: str, value: Any) -> Any:
    """The value as its field wants it: a whole number serves as a float, and nothing else is converted."""
    wanted, _, optional = kind.partition(" | ")
    if value is None and optional:
        return None
    if wanted == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value).__name__ == wanted:
        return value
    raise ConfigError(f"setting {name} = {value!r} cannot be read: give {_WORDS.get(wanted, 'a table of settings')}.")


_WORDS = {"int": "a whole number", "float": "a number", "str": "a text in quotes", "bool": "true or false"}
