"""Defines every setting of a run once: its name, type, default and one line of help.

The fields of `Config` are the options of the command line; its tables (`TABLES`) are reachable through
`--config run.toml` and from Python. Fields that are None are filled by `pipeline.defaults.resolve`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, TypeVar, Unpack, get_type_hints

import annotated_types
from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from autolayer.core.config_tables import GiGPOConfig, MeasureConfig, ProbeConfig, SearchConfig, VLLMConfig
from autolayer.core.errors import ConfigError, did_you_mean, unknown
from autolayer.core.layer_set import LayersLike, layers_text
from autolayer.core.settings import AtMost, LearningRate, NonNegative, Positive, Settings, Size
from autolayer.core.shown_text import hide_url

Algorithm = Literal["grpo", "dr_grpo", "gigpo"]
ENGINES = ("auto", "transformers", "vllm")
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
DEFAULT_TASK = "math"
Verb = TypeVar("Verb", bound=Callable[..., Any])
TABLES = ("probe", "search", "measure", "gigpo", "vllm")
"""The fields of `Config` that are tables in a --config file."""

DATA_FILES = (".jsonl", ".json", ".csv", ".parquet")
"""Suffixes of the files that --data reads."""
LARGEST_WEIGHT = 1000
"""Largest absolute weight of a reward, so that the squares of weighted rewards fit into float32."""

NOT_SIGNED = (
    "out", "track", "storage", "hours", "device", "shard", "activation_checkpointing", "vllm", "allow_unsandboxed",
    "accept_changes", "reward_retries",
)  # fmt: skip
"""Fields that may change when a run is resumed: they decide where and how long it runs, but not its results."""


def is_server(rollouts: str) -> bool:
    """Returns True if a value of --rollouts names vLLM servers: URLs separated by commas."""
    return all(re.fullmatch(r"https?://[\w.\-\[\]:]+(/v1)?/?", url.strip()) for url in rollouts.split(","))


def _engine(value: Any) -> Any:
    if isinstance(value, str) and value not in ENGINES and not is_server(value):
        close = did_you_mean(value, ENGINES)
        raise ConfigError(
            f"--rollouts {hide_url(value)!r} cannot work: give {', '.join(ENGINES)}, or http://HOST:PORT of a vLLM "
            f"server.{close}"
        )
    return value


def _rate(value: Any) -> Any:
    if value == "auto":
        return None
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        raise ConfigError(f"--learning-rate {value!r} cannot work: give a number such as 1e-5, or auto.") from None


def _rewards(value: Any) -> Any:
    """Returns one --reward as a text, and several as a tuple of texts."""
    if not isinstance(value, list | tuple):
        return value
    if not value or not all(isinstance(text, str) and text for text in value):
        raise ConfigError(f"--reward {value!r} cannot work: give FILE.py:function, or a list of them.")
    return value[0] if len(value) == 1 else tuple(value)


def _weights(value: Any) -> Any:
    try:
        numbers = value.split(",") if isinstance(value, str) else value
        weights = None if value is None else tuple(map(float, numbers))
        if weights is not None and not all(abs(weight) <= LARGEST_WEIGHT for weight in weights):  # NaN is not either
            raise ValueError
    except (TypeError, ValueError):
        at_most = f"numbers such as 1,0.2, of at most {LARGEST_WEIGHT}"
        raise ConfigError(f"--reward-weights {value!r} cannot work: give {at_most}.") from None
    return weights


def _columns(value: Any) -> Any:
    """Returns pairs of a new name and the column's own."""
    if value is None:
        return None
    try:
        named = [pair.split("=", 1) for pair in value.split(",")] if isinstance(value, str) else value
        pairs = tuple((ours.strip(), theirs.strip()) for ours, theirs in dict(named).items())
    except (AttributeError, TypeError, ValueError):
        pairs = ()
    if not pairs or not all(map(all, pairs)) or len(pairs) < len(named):
        raise ConfigError(f"--columns {value!r} cannot work: give NEW=COLUMN pairs, prompt=question,answer=solution.")
    return pairs


def _trackers(value: Any) -> Any:
    """Returns the names of trackers as one text, each name once."""
    if value is None:
        return None
    texts = value if isinstance(value, list | tuple) else [value]
    names = [name.strip() for text in texts for name in str(text).split(",")]
    for name in names or [""]:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS, "Several: --track tensorboard,wandb.")
    return ",".join(dict.fromkeys(names))


def _path(value: Any) -> Any:
    if "\0" in str(value):
        raise ConfigError(f"{str(value)!r} cannot be a path: it has a null character.")
    return str(value) if isinstance(value, Path) else value


PathText = Annotated[str, BeforeValidator(_path)]


class Config(Settings):
    """The settings of one run.

    Raises:
        ConfigError: Some settings cannot work. One error names all of them.

    Example:
        config = autolayer.Config(model="tiny", task="math:arith", layers=range(2, 6))
        autolayer.pick(config)
    """

    model: PathText
    """Base model: 'tiny', 'smollm2', a local folder, a GGUF file, or a Hugging Face name."""
    task: str = DEFAULT_TASK
    """Task: a built-in name (see `autolayer tasks`) or FILE.py:NAME."""
    data: PathText | None = None
    """Your own prompts: a .jsonl, .json, .csv or .parquet file, a folder of save_to_disk, or OWNER/NAME[:SUBSET] on the
    Hub; needs --reward. Or a folder with copies of the public data sets that --task reads (FOLDER/openai/gsm8k)."""
    split: str | None = None
    """Split of --data to read, if it has several."""
    columns: Annotated[tuple[tuple[str, str], ...] | None, BeforeValidator(_columns)] = None
    """Columns of --data to rename, such as prompt=question,answer=solution."""
    reward: Annotated[str | tuple[str, ...] | None, BeforeValidator(_rewards)] = None
    """Your own reward: FILE.py:function with TRL's signature. Give it several times to add up several rewards."""
    reward_weights: Annotated[tuple[float, ...] | None, BeforeValidator(_weights)] = None
    """Weight of each --reward, such as 1,0.2. Default: all weigh 1."""
    reward_retries: Annotated[int, annotated_types.Ge(0), AtMost] = 0
    """Call a reward that has failed again up to N times, after growing pauses, before it ends the run."""
    algorithm: Algorithm = "grpo"
    """RL algorithm; gigpo is for tasks of several turns."""
    layers: Annotated[str | None, BeforeValidator(lambda value: None if value is None else layers_text(value))] = None
    """Candidate layers of `pick`, such as 16, 10-14, 8,16 or middle:5; in `train` and `measure`, the layers to train.
    Default: all."""
    top_k: Size = 1
    """Layers to train together: sets of this many layers race instead of single ones."""
    adapter: Literal["lora"] | None = None
    """Train LoRA adapters on the chosen layers instead of whole layers."""
    budget: Annotated[NonNegative, annotated_types.Le(1e6)] | None = None
    """Cost of finding the layer, as a share of one full run of the final training; 0 answers at once from depth alone,
    and neither measures nor trains. Default: the cost of max(40, 2·√steps) training steps, at most 0.25."""
    regret: Annotated[Positive, annotated_types.Le(10)] = 0.05
    """Contribution that you are ready to lose: the search stops when no more than this is at stake."""
    hours: Annotated[Positive, annotated_types.Le(1e6)] | None = None
    """Deadline for the whole run in hours, on top of the budget."""
    history: PathText | None = None
    """Folder of your own contribution.json files, which sharpen the prediction."""
    steps: Size | None = None
    """Optimizer steps of the final training run."""
    prompts_per_step: Size | None = None
    """Prompts per optimizer step."""
    group_size: Annotated[int, annotated_types.Ge(2), AtMost] = 8
    """Completions per prompt, whose rewards are compared with each other."""
    max_new_tokens: Size | None = None
    """Longest completion, in tokens."""
    max_prompt_tokens: Size | None = None
    """Drop longer prompts from training; the evaluation keeps all prompts."""
    temperature: Annotated[float, annotated_types.Ge(1e-3), annotated_types.Le(1e3)] = 1.0
    """Sampling temperature of rollouts and evaluation."""
    learning_rate: Annotated[LearningRate | None, BeforeValidator(_rate)] = None
    """Learning rate of the trained layers, or auto. Default: auto, which searches it."""
    beta: Annotated[NonNegative, annotated_types.Le(1e3)] = 0.0
    """Weight of the KL term against the base model."""
    thinking: bool | None = None
    """Turn the thinking mode of the chat template on or off, if it has one."""
    num_eval: Size | None = None
    """Items of the `eval` split on which base and trained model are compared. Default: the task decides."""
    seed: Annotated[int, annotated_types.Ge(0), annotated_types.Lt(2**32)] = 0
    """Seed of every random choice of the run."""
    out: PathText | None = None
    """Run folder. Default: runs/MODEL-TASK-SIGNATURE, so the same command resumes."""
    track: Annotated[str | None, BeforeValidator(_trackers)] = None
    """Send the metrics of every arm to tensorboard, wandb, trackio or mlflow, or to several (tensorboard,wandb), each
    arm as a run of one group."""
    storage: Annotated[str | None, PlainSerializer(hide_url, when_used="json-unless-none"), Field(repr=False)] = None
    """Optuna storage of the search, for workers on several machines. Default: study.db in the run folder."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda, cuda:1, ..."""
    dtype: Literal["auto", "float32", "checkpoint"] = "auto"
    """Dtype to compute in: the checkpoint's, float32, or auto (float32 on a CPU where that is faster). Weights are
    rounded to the checkpoint's dtype and written in it."""
    rollouts: Annotated[str, BeforeValidator(_engine)] = "auto"
    """Engine that generates completions: transformers, vllm, auto (vllm if it is installed and there is a GPU), or the
    URLs of vLLM servers, separated by commas."""
    shard: bool = False
    """Divide the model's blocks among the processes of `torchrun --nproc_per_node N -m autolayer`, for a model that is
    too large for one device (FSDP2). Not with --adapter, --layers full or --rollouts vllm."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass from the start, not only when memory runs out."""
    allow_unsandboxed: bool = False
    """Run programs that the model writes without a sandbox if there is none. They can do everything that you can."""
    accept_changes: bool = False
    """Resume a run although its reward, data or task file has changed; the result records the change."""
    probe: ProbeConfig = ProbeConfig()
    search: SearchConfig = SearchConfig()
    measure: MeasureConfig = MeasureConfig()
    gigpo: GiGPOConfig = GiGPOConfig()
    vllm: VLLMConfig = VLLMConfig()

    if TYPE_CHECKING:

        def __init__(self, **options: Unpack[Options]) -> None: ...

    @model_validator(mode="after")
    def _fields_go_together(self) -> Config:
        is_file = Path(self.data or "").suffix.lower() in DATA_FILES
        has_data = is_file if self.reward is None else self.data is not None
        refused = {
            "--shard does not go with --rollouts vllm, which needs a whole copy of the model on each device: give the "
            "URL of a vLLM server.": self.shard and self.rollouts == "vllm",
            "--shard does not go with --adapter: leave one out.": self.shard and self.adapter is not None,
            "--shard does not go with --dtype float32: leave one out.": self.shard and self.dtype == "float32",
            f"--data and --reward belong together (got --data {self.data}, --reward {' '.join(self.rewards) or None}): "
            "give both, or a --task.": has_data != (self.reward is not None),
            "--split and --columns belong to --data and --reward: give all, or leave them out.":
                self.reward is None and (self.split, self.columns) != (None, None),
            f"--reward-weights has {len(self.reward_weights or ())} numbers for {len(self.rewards)} --reward: give one "
            "for each.": self.reward_weights is not None and len(self.reward_weights) != len(self.rewards),
            f"--task {self.task} would be ignored, because --data and --reward define the task: leave it out.":
                self.reward is not None and self.task != DEFAULT_TASK,
            f"--learning-rate {self.learning_rate} and --rates {self.measure.rates} exclude each other: give one.":
                None not in (self.learning_rate, self.measure.rates),
        }  # fmt: skip
        if problems := [sentence for sentence, is_refused in refused.items() if is_refused]:
            raise ConfigError(" ".join(problems))
        return self

    @property
    def rewards(self) -> tuple[str, ...]:
        """Every --reward."""
        return (self.reward,) if isinstance(self.reward, str) else self.reward or ()

    @property
    def trackers(self) -> tuple[str, ...]:
        """Every name in --track."""
        return tuple(self.track.split(",")) if self.track else ()

    @property
    def task_name(self) -> str:
        """Name of the task as far as it is known before the task is loaded."""
        if not self.data or not self.reward:
            return self.task
        path = Path(self.data)
        return path.stem if path.suffix.lower() in DATA_FILES else path.name

    @property
    def signature(self) -> str:
        """Hash of ten characters; two configurations have the same one only if their runs do the same."""
        signed = self.signed()
        if self.measure == MeasureConfig():  # the other verbs do not read it
            del signed["measure"]
        return hashlib.sha256(json.dumps(signed, sort_keys=True).encode()).hexdigest()[:10]

    def signed(self) -> dict[str, Any]:
        """Returns the settings that decide what a run does, as plain values."""
        # What "auto" has come to is signed by `setup`.
        open_fields = (["dtype"] if self.dtype == "auto" else []) + (["gigpo"] if self.algorithm != "gigpo" else [])
        unset = [
            name for name in ("reward_weights", "split", "columns") if getattr(self, name) is None
        ]  # older runs have none of them
        left_out = (*NOT_SIGNED, *open_fields, *unset)
        rollouts = {"rollouts": "vllm"} if self.rollouts not in ENGINES else {}  # a server's address changes no result
        return {name: v for name, v in (self.model_dump() | rollouts).items() if name not in left_out}


class Options(TypedDict, total=False):
    """The fields of `Config` as keyword arguments, with the types that it accepts, for type checkers and editors."""

    model: str | Path
    task: str
    data: str | Path | None
    split: str | None
    columns: Mapping[str, str] | tuple[tuple[str, str], ...] | str | None
    reward: str | tuple[str, ...] | list[str] | None
    reward_weights: tuple[float, ...] | list[float] | str | None
    reward_retries: int
    algorithm: Algorithm
    layers: LayersLike | None
    top_k: int
    adapter: Literal["lora"] | None
    budget: float | None
    regret: float
    hours: float | None
    history: str | Path | None
    steps: int | None
    prompts_per_step: int | None
    group_size: int
    max_new_tokens: int | None
    max_prompt_tokens: int | None
    temperature: float
    learning_rate: float | Literal["auto"] | None
    beta: float
    thinking: bool | None
    num_eval: int | None
    seed: int
    out: str | Path | None
    track: str | tuple[str, ...] | list[str] | None
    storage: str | None
    device: str
    dtype: Literal["auto", "float32", "checkpoint"]
    rollouts: str
    shard: bool
    activation_checkpointing: bool
    allow_unsandboxed: bool
    accept_changes: bool
    probe: ProbeConfig | Mapping[str, Any]
    search: SearchConfig | Mapping[str, Any]
    measure: MeasureConfig | Mapping[str, Any]
    gigpo: GiGPOConfig | Mapping[str, Any]
    vllm: VLLMConfig | Mapping[str, Any]


def config_of(config: Config | None, options: Mapping[str, Any]) -> Config:
    """Returns the settings with which a function of the library was called: a config, or its fields as keywords."""
    if config is not None and options:
        raise ConfigError(f"got a config and also {', '.join(options)}: give one or the other.")
    if not isinstance(config, Config | None):
        raise ConfigError(f"got {config!r} as the config: give settings by name, such as model='tiny'.")
    return config or Config(**options)


def with_options(verb: Verb) -> Verb:
    """Gives a function of the library a signature that lists all options, for `help()` and notebooks."""
    signature = inspect.signature(verb)
    *parameters, options = signature.parameters.values()
    assert options.kind is inspect.Parameter.VAR_KEYWORD
    for name, kind in get_type_hints(Options).items():
        field = Config.model_fields[name]
        default = inspect.Parameter.empty if field.is_required() else field.default
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind))
    vars(verb)["__signature__"] = signature.replace(parameters=parameters)
    return verb


def read_toml(path: str | Path) -> dict[str, Any]:
    """Reads a --config file. Its keys are the fields of `Config`; the names in `TABLES` are tables."""
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read ({error.strerror}): give the path of a TOML file.") from None
    except (ValueError, RecursionError) as error:  # no TOML, no text, or numbers of thousands of digits
        raise ConfigError(f"--config {path} is not valid TOML ({error}): correct that line.") from None
