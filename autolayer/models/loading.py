"""Models by name: the embedded ones, local folders and the Hugging Face Hub; loading, and refusing what cannot work.

Checking a name loads no torch. Nothing is ever loaded with `trust_remote_code`.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from autolayer.core.errors import ConfigError, ModelError, unknown
from autolayer.models.validation import check_causal, check_kind, check_tokens, first_line, unreadable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A very small base model that comes with the package."""

    folder: str
    """Below `autolayer/data/`."""
    forms: Mapping[str, str] = field(default_factory=dict)
    """Kind of task, which its name begins with, to the one form of it that fits this model."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By task, values of `Config` fields that the user left open; '' for all other tasks."""

    def preset(self, task: str) -> Mapping[str, Any]:
        return self.presets.get(task, self.presets.get("", {}))


_FORMS = {"math": "math:arith", "code": "code:expr", "agent": "agent:house"}
_PRESETS = {
    "": {"steps": 400, "prompts_per_step": 32, "num_eval": 1024, "budget": 0.25},
    # A program is run for every completion, an episode has some 100 tokens: these cost more than arithmetic.
    "code:expr": {"steps": 120, "prompts_per_step": 16, "num_eval": 512, "budget": 0.25},
    "agent:house": {"steps": 60, "prompts_per_step": 16, "num_eval": 512, "budget": 0.25},
}

EMBEDDED: Mapping[str, EmbeddedModel] = MappingProxyType(
    {
        "tiny": EmbeddedModel(folder="tiny-2", forms=_FORMS, presets=_PRESETS),
        "tiny-qwen2": EmbeddedModel(folder="tiny-qwen2-2", forms=_FORMS, presets=_PRESETS),
    }
)
"""A new version of a model is a new folder: published numbers belong to weights."""

_HINT = "Your own: a folder with config.json, or a Hugging Face name such as Qwen/Qwen3-8B."


@dataclass(kw_only=True)
class LoadedModel:
    """A model that passed every check, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    """Always with an eos and a pad token."""
    name: str
    """As the user gave it."""
    num_layers: int
    chat: bool
    """Whether the tokenizer has a chat template."""
    device: torch.device

    @cached_property
    def weight_hash(self) -> str:
        """Hash of the weights when first asked: ask before training."""
        return weight_hash(self.model)


def check_name(name: str) -> None:
    """Refuses a model name that cannot work, before anything heavy is imported.

    Raises:
        UnknownNameError: Nothing by that name can exist.
        ModelError: It is a path, but not to a model.
    """
    path = Path(name).expanduser()
    if name in EMBEDDED:
        return
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"--model {name} is no model: the folder has no config.json; give one that has.")
    elif name and path.exists():
        raise ModelError(f"--model {name} is a file: give the folder that holds config.json and the weights.")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"--model {name} does not exist: give the path of a folder with config.json.")
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise unknown("model", name, EMBEDDED, _HINT)


def model_path(name: str) -> str:
    """What `from_pretrained` takes for a name: the packaged folder, a local folder, or the Hub's name."""
    check_name(name)
    if name in EMBEDDED:
        folder = Path(__file__).parent.parent / "data" / EMBEDDED[name].folder
        if not (folder / "config.json").is_file():
            raise ModelError(f"model '{name}' is missing from this installation ({folder}): install autolayer again.")
        return str(folder)
    path = Path(name).expanduser()
    return str(path) if path.is_dir() else name


def load_model(name: str, device: str = "auto") -> LoadedModel:
    """Loads a causal language model in its checkpoint's own dtype, in eval mode.

    Args:
        name: Anything `check_name` accepts.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...

    Raises:
        ModelError: It cannot be reached or is damaged, or it cannot be trained layer by layer.
        ConfigError: There is no such device.
    """
    from autolayer.models.layers import find_layers

    path = model_path(name)
    where = find_device(device)
    with quiet_transformers():
        model = _read_model(name, path)
        tokenizer = read_tokenizer(name)
    check_tokens(name, tokenizer, model.get_input_embeddings().weight.shape[0])
    model = model.to(where).eval()
    check_causal(name, model)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        num_layers=len(find_layers(model)),
        chat=tokenizer.chat_template is not None,
        device=where,
    )


def meta_model(name: str) -> PreTrainedModel:
    """The model without its weights, on the meta device: names, shapes and dtypes, at no cost.

    Raises:
        ModelError: As `load_model`, as far as the configuration shows it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = model_path(name)
    with quiet_transformers(), torch.device("meta"):
        try:
            config = AutoConfig.from_pretrained(path)
        except Exception as error:
            raise unreadable(name, path, error) from error
        check_kind(name, config)
        return AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32)


def max_positions(model_config: Any) -> int | None:
    """How many tokens a model can attend to, where its configuration says so."""
    return getattr(model_config.get_text_config(decoder=True), "max_position_embeddings", None)


def read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Loads a model's tokenizer just as it is on disk.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    path = model_path(name)
    try:
        with quiet_transformers():
            # A folder that declares no class of its own means its tokenizer.json as written. `AutoTokenizer` would
            # put the architecture's own class over it (Qwen2: byte-level BPE, and spaces vanish).
            plain = get_tokenizer_config(path).get("tokenizer_class") in (
                "PreTrainedTokenizerFast",
                "TokenizersBackend",
            )
            tokenizer = (PreTrainedTokenizerFast if plain else AutoTokenizer).from_pretrained(path)
        # Without its files transformers builds a tokenizer of special tokens that reads nothing.
        if len(tokenizer) > len(set(tokenizer.all_special_ids)) + 1 and tokenizer("1 + 1")["input_ids"]:
            return tokenizer
        reason = "it has no vocabulary"
    except Exception as error:  # its Rust part raises plain `Exception` for a file it cannot read
        if isinstance(error, OSError) and "couldn't connect" in str(error):
            raise unreadable(name, path, error) from error
        reason = first_line(error)
    raise ModelError(
        f"model '{name}' has no usable tokenizer ({reason}): put the base model's tokenizer.json and "
        "tokenizer_config.json beside its weights."
    )


def weight_hash(model: torch.nn.Module) -> str:
    """Content hash of every parameter's name, dtype, shape and bytes; tied weights count once, the device does not."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        digest.update(json.dumps([name, str(parameter.dtype), list(parameter.shape)]).encode())
        raw = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def _read_model(name: str, path: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path)
    except Exception as error:
        raise unreadable(name, path, error) from error
    check_kind(name, config)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto", output_loading_info=True)
    except Exception as error:
        raise unreadable(name, path, error) from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would go on with random numbers
        raise ModelError(
            f"model '{name}' is incomplete: {len(missing)} weights are not in its files ({', '.join(missing[:3])}); "
            "give a complete checkpoint of a causal language model, head included."
        )
    return model


def find_device(device: str) -> torch.device:
    """The device of a name; "auto" is a GPU if there is one.

    Raises:
        ConfigError: There is no such device.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError as error:  # what torch raises for a name it does not know, and nothing else runs here
        raise _unusable(device, first_line(error)) from None
    if where.type != "cpu":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if accelerator is None or where.type != accelerator.type:
            raise _unusable(device, f"torch finds no {where.type} device here")
        if (count := torch.accelerator.device_count()) <= (where.index or 0):
            raise _unusable(device, f"there are {count}, counted from 0")
    return where


def _unusable(device: str, why: str) -> ConfigError:
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    usable = ["auto", "cpu", *([accelerator.type] if accelerator else [])]
    return ConfigError(f"--device {device} cannot be used ({why}): give {', '.join(usable[:-1])} or {usable[-1]}.")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' and the Hub's reports off the screen; what matters in them becomes an error here."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, bars, hub_verbosity = (
        logging.get_verbosity(), logging.is_progress_bar_enabled(), hub_logging.get_verbosity()
    )  # fmt: skip
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        hub_logging.set_verbosity_error()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()
