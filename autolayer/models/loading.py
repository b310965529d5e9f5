"""Loads models and tokenizers, and refuses those that cannot be trained. Never uses `trust_remote_code`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from autolayer.core.errors import ModelError
from autolayer.models.base_check import check_base, check_weights, has_weights
from autolayer.models.device import find_device
from autolayer.models.names import gguf_file, model_path
from autolayer.models.quiet import quiet_transformers
from autolayer.models.validation import (
    check_causal,
    check_class,
    check_kind,
    check_tokens,
    first_line,
    reading,
    unreadable,
)  # fmt: skip

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(kw_only=True)
class LoadedModel:
    """A model that passed every check, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    """The tokenizer; it always has an eos and a pad token."""
    name: str
    """The model name that the user gave."""
    num_layers: int
    device: torch.device
    stored_dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    """The checkpoint's dtype of each parameter, by full name, if the model computes in a wider one."""

    @cached_property
    def weight_hash(self) -> str:
        """Hash of the weights at the first access, which must come before training."""
        return weight_hash(self.model)

    def as_stored(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a parameter's values in the dtype in which its checkpoint holds it."""
        return tensor.to(self.stored_dtypes.get(name, self.model.get_parameter(name).dtype))


def load_model(name: str, device: str = "auto") -> LoadedModel:
    """Loads a causal language model in its checkpoint's own dtype, in eval mode.

    Args:
        name: A name that `names.check_model_name` accepts.
        device: "auto" (the GPU if there is one), "cpu", "cuda", "cuda:1", ...

    Raises:
        ModelError: The model cannot be reached, is damaged, or cannot be trained layer by layer.
        ConfigError: There is no such device.
    """
    from autolayer.models.layers import find_layers

    where = find_device(device)
    with quiet_transformers():
        model = _read_model(name)
        tokenizer = read_tokenizer(name)
    check_tokens(name, tokenizer, num_embeddings(model))
    model = model.to(where).eval()
    check_causal(name, model)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        num_layers=len(find_layers(model)),
        device=where,
    )


def meta_model(name: str, *, only_header: bool = False) -> PreTrainedModel:
    """Builds a model without weights on the meta device, which has all names, shapes and dtypes.

    With `only_header`, a GGUF file is not converted; then the dtypes are not those that it is trained in.

    Raises:
        ModelError: The configuration cannot be read, or describes no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with quiet_transformers(), reading(name):
        file = gguf_file(name) if only_header else None
        config = read_config(name) if file is None else _read_header(file)
        if file is None and has_weights(name):
            model = _read_weights(name, device_map="meta")
        else:  # of the Hub, and not fetched yet
            with torch.device("meta"):
                dtype = config.dtype or torch.float32
                model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        if empty := [parameter for parameter, p in model.named_parameters() if not p.numel()]:
            raise ValueError(f"by its config.json, {empty[0]} has no entries")
    check_class(name, model)
    return model


def max_positions(model_config: Any) -> int | None:
    """Returns the number of positions of a model, or None if its configuration does not limit them."""
    return getattr(model_config.get_text_config(decoder=True), "max_position_embeddings", None)


def num_embeddings(model: Any) -> int:
    """Returns the number of tokens that a model can read."""
    return model.get_input_embeddings().weight.shape[0]


def read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model exactly as its files define it.

    Raises:
        ModelError: There is no tokenizer, or it cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config
    from transformers.processing_utils import ProcessorMixin

    path = model_path(name)
    try:
        with quiet_transformers():
            # These classes mean that tokenizer.json holds as written. `AutoTokenizer` would use the architecture's
            # class instead (for Qwen2 byte-level BPE, which loses the spaces of other tokenizers).
            plain = get_tokenizer_config(path).get("tokenizer_class") in (
                "PreTrainedTokenizerFast",
                "TokenizersBackend",
            )
            tokenizer = (PreTrainedTokenizerFast if plain else AutoTokenizer).from_pretrained(
                path, trust_remote_code=False
            )
        if tokenizer.chat_template is None:  # older processors have it in chat_template.json
            tokenizer.chat_template = ProcessorMixin.get_processor_dict(path)[0].get("chat_template")
        # If the files are missing, transformers builds a tokenizer that has special tokens only.
        if len(tokenizer) > len(set(tokenizer.all_special_ids)) + 1 and tokenizer("1 + 1")["input_ids"]:
            return tokenizer
        reason = "it has no vocabulary"
    except Exception as error:  # the Rust tokenizers raise plain `Exception` for a file they cannot read
        if isinstance(error, OSError) and "couldn't connect" in str(error):
            raise unreadable(name, path, error) from error
        is_own_code = "custom code" in str(error)
        reason = "it needs custom code, which autolayer never runs" if is_own_code else first_line(error)
    raise ModelError(
        f"model '{name}' has no usable tokenizer ({reason}): put the base model's tokenizer.json and "
        "tokenizer_config.json in the folder of its weights."
    )


def weight_hash(model: torch.nn.Module) -> str:
    """Returns a hash of every parameter's name, dtype, shape and bytes.

    Tied weights count once. The hash does not depend on the device.
    """
    from autolayer.models.sealed_tensors import hash_tensors

    return hash_tensors(dict(model.named_parameters()))


def read_config(name: str) -> Any:
    """Reads the configuration of a model, and refuses one that cannot be trained.

    Raises:
        ModelError: It cannot be read, or describes no causal language model.
    """
    from transformers import AutoConfig

    with reading(name):
        check_base(name)
        config = AutoConfig.from_pretrained(model_path(name), trust_remote_code=False)
        check_kind(name, config)
        return config


def _read_header(file: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)


def _read_model(name: str) -> Any:
    read_config(name)
    with reading(name):
        model = _read_weights(name)
        check_weights(name)  # again, because a model of the Hub has been fetched only now
    return model


def _read_weights(name: str, **options: Any) -> Any:
    """Reads a model, and checks that its files hold all of its weights and no further layers.

    Raises:
        ModelError: They do not.
    """
    from transformers import AutoModelForCausalLM

    from autolayer.models.layers import find_layers

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model_path(name),
        dtype="auto",
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, by name
        return_dict=True,
        trust_remote_code=False,
        **options,
    )
    model, report = loaded
    for key, in_files, by_config in sorted(report["mismatched_keys"]):
        raise ModelError(
            f"model '{name}' cannot be read: {key} has shape {list(in_files)} in its files, and {list(by_config)} by "
            "its config.json; restore the config.json of these weights."
        )
    check_class(name, model)
    missing = sorted(report["missing_keys"])
    classes = model.config.architectures or ()
    if missing and classes and all(each.endswith("Model") for each in classes):
        raise ModelError(
            f"model '{name}' ({', '.join(classes)}) is a decoder without an output head, such as one for "
            f"embeddings, not a causal language model ({missing[0]} is not in its files): "
            "give the language model that it was made from."
        )
    if missing:  # transformers initializes missing weights at random
        raise ModelError(
            f"model '{name}' is incomplete: {len(missing)} weights are not in its files ({', '.join(missing[:3])}); "
            "give a complete checkpoint of a causal language model, head included."
        )
    blocks = find_layers(model)
    place = next(name for name, module in model.named_modules() if module is blocks)
    found = (re.match(rf"{re.escape(place)}\.(\d+)\.", key) for key in report["unexpected_keys"])
    last = max((int(match[1]) for match in found if match), default=0)
    ahead = getattr(model.config.get_text_config(decoder=True), "num_nextn_predict_layers", None) or 0
    if last >= len(blocks) + ahead:  # heads for further tokens follow the last layer, and are not loaded
        raise ModelError(
            f"model '{name}' would be cut short: its config.json says num_hidden_layers {len(blocks)}, but its files "
            f"hold layer {last} too; restore the config.json of these weights."
        )
    return model
