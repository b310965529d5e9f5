"""Refuses base models that cannot be trained and written back, before any weight is loaded.

Decided from config.json, the names of the files, and the headers of safetensors files. `pick`, `merge` and
`doctor --model` say the same.
"""

import re
from pathlib import Path
from typing import Any

from autolayer.core.errors import ModelError
from autolayer.models.base_folder import read_json, tensor_dtypes, weight_files
from autolayer.models.names import model_path

_METHODS = {
    "fp8": "FP8", "fbgemm_fp8": "FP8", "finegrained_fp8": "FP8", "mxfp4": "MXFP4", "gptq": "GPTQ", "awq": "AWQ",
    "compressed-tensors": "compressed-tensors", "bitsandbytes": "bitsandbytes", "modelopt": "ModelOpt",
}  # fmt: skip
"""Quantization methods as users write them, by their name in config.json."""
_QUANTIZED_TENSOR = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|weight_packed|weight_scale(_inv|_2)?|weight\.(absmax|quant_map)|weight_shape)$|"
    r"_(blocks|scales|scale_inv)$|\.(SCB|W_q|codes)$"
)
"""Names of tensors that only quantized checkpoints have."""
_INTEGERS = ("U8", "I8", "I16", "U16", "I32", "U32")
_OTHER_KINDS = {
    "SequenceClassification": "a classifier or reward model", "Reward|ForScore": "a reward model",
    "TokenClassification": "a classifier of tokens", "QuestionAnswering": "a model that marks answers in a text",
    "MultipleChoice": "a model that chooses among answers",
    "Bidirec|BiModel|EncoderModel|Embedding|Retrieval": "an embedding model",
}  # fmt: skip
"""Kinds of models without an output head for tokens, by what is in the names of their classes."""
_MARKS = {
    "load_in_4bit": "bitsandbytes", "load_in_8bit": "bitsandbytes", "quant_algo": "ModelOpt", "group_size": "MLX",
}  # fmt: skip
"""Keys that tell the method of a configuration that does not name it."""


def check_base(name: str) -> None:
    """Checks that a base model is a whole, unquantized model of a class that transformers has.

    Args:
        name: A model name that `names.check_model_name` accepts.

    Raises:
        ModelError: It is not; the sentence says what it is, and what to give instead.
    """
    from transformers import PreTrainedConfig
    from transformers.utils.peft_utils import find_adapter_config_file

    path = model_path(name)
    adapter = find_adapter_config_file(path)
    try:
        config, _ = PreTrainedConfig.get_config_dict(path)
    except Exception:
        if adapter is not None:
            base = read_json(Path(adapter)).get("base_model_name_or_path") or "its base"
            raise ModelError(
                f"model '{name}' is an adapter of {base}, not a model: give {base}, or a folder that both were merged "
                "into (PEFT's merge_and_unload)."
            ) from None
        raise
    if adapter is not None:
        raise ModelError(
            f"model '{name}' has the adapter of an earlier training beside its weights (adapter_config.json), which "
            "transformers would load with them: move adapter_config.json and adapter_model.safetensors to another "
            "folder, or merge them into the weights (PEFT's merge_and_unload)."
        )
    _check_kind(name, config)
    check_weights(name, config)
    _check_code(name, config)


def _check_kind(name: str, config: dict[str, Any]) -> None:
    """Refuses the models that have something else than an output head for tokens, as far as names show it."""
    from transformers.utils.hub import cached_file

    classes = " ".join(config.get("architectures") or ())
    modules = cached_file(
        model_path(name), "modules.json", _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False, _raise_exceptions_for_gated_repo=False,
    )  # fmt: skip
    kind = next((_OTHER_KINDS[part] for part in _OTHER_KINDS if re.search(part, classes)), None)
    if modules and "sentence_transformers" in Path(modules).read_text(encoding="utf-8", errors="replace"):
        kind = "an embedding model of sentence-transformers (modules.json)"
    if kind and (modules or "CausalLM" not in classes):
        raise ModelError(
            f"model '{name}' ({classes or config.get('model_type')}) is {kind}, not a causal language model: RL needs "
            "a model that generates; give the language model that it was made from, or another such as Qwen3, Llama or "
            "Gemma."
        )


def check_weights(name: str, config: dict[str, Any] | None = None) -> None:
    """Checks that the weights of a model are not quantized, as far as its files are on this machine.

    Args:
        name: Name of the model.
        config: The values in its config.json, or None to look at the files only.

    Raises:
        ModelError: They are quantized.
        ValueError: The files are damaged.
    """
    method, place = _quantization(config or {}), _local_folder(name)
    if not method and place is not None:
        files = weight_files(place)
        if not files and any(place.glob("*.gguf")):
            method = "GGUF"
        elif (place / "hf_quant_config.json").is_file():
            method = "ModelOpt"
        # transformers takes other end tokens if it is damaged
        ends = read_json(place / "generation_config.json").get("eos_token_id") or []
        if not all(type(token) is int for token in (ends if isinstance(ends, list) else [ends])):
            raise ValueError(f"generation_config.json has an eos_token_id that is no token number: {ends!r:.60}")
        for file in files:
            if file.is_file():
                method = method or _quantized_tensors(file)
            elif Path(model_path(name)).is_dir():  # from the Hub it would be fetched
                state = "a folder" if file.is_dir() else "a link to nothing" if file.is_symlink() else "missing"
                raise ModelError(
                    f"model '{name}' is incomplete: {file.name}, which should hold its weights, is {state}; copy or "
                    "download that file again."
                )
    if method:
        raise ModelError(
            f"model '{name}' is quantized ({method}), and a layer of it cannot be trained and written back: give "
            f"{_original(name, method, config or {})}."
        )


def has_weights(name: str) -> bool:
    """Returns True if all weight files of a model are on this machine."""
    place = _local_folder(name)
    files = [] if place is None else weight_files(place)
    return bool(files) and all(file.is_file() for file in files)


def _quantization(config: dict[str, Any]) -> str:
    """Returns the method that a configuration names, that of a nested one included; '' without one."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("quantization_config", "compression_config", "quantization"):
            if isinstance(about := part.get(key), dict) and about:
                method = about.get("quant_method") or next((_MARKS[name] for name in _MARKS if name in about), key)
                return _METHODS.get(str(method), str(method))
    return ""


def _quantized_tensors(file: Path) -> str:
    """Returns the format of a file's weights as its header shows it; '' if they are not quantized."""
    try:
        dtypes = tensor_dtypes(file)
    except Exception:  # damaged: transformers says how
        return ""
    found = set(dtypes.values())
    if narrow := sorted(dtype for dtype in found if dtype.startswith(("F8_", "F6_", "F4"))):
        # Two numbers of four bits are stored in one byte, and their scales in eight bits.
        packed = any(dtype == "U8" and "scale" not in name for name, dtype in dtypes.items())
        return "4-bit floating point" if packed else "FP8" if narrow[-1].startswith("F8") else narrow[0]
    whole = {name for name, dtype in dtypes.items() if dtype in _INTEGERS}
    packed = (n for n in dtypes if _QUANTIZED_TENSOR.search(n) or (n in whole and n.endswith(".weight")))
    return next(packed, "") if whole else ""


def _original(name: str, method: str, config: dict[str, Any]) -> str:
    original = config.get("_name_or_path")
    if isinstance(original, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", original) and original != name:
        return f"the model that it was made from, {original}, if that is not quantized"
    if method == "MXFP4":
        return "a bfloat16 copy of it, such as unsloth/gpt-oss-20b-BF16 or unsloth/gpt-oss-120b-BF16"
    return "the model that it was made from, in bfloat16"


def _local_folder(name: str) -> Path | None:
    """Returns the folder of a model's files on this machine, or None if nothing of it has been fetched."""
    from huggingface_hub import try_to_load_from_cache

    path = model_path(name)
    if Path(path).is_dir():
        return Path(path)
    found = try_to_load_from_cache(path, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def _check_code(name: str, config: dict[str, Any]) -> None:
    """Refuses models whose class is not in transformers; nothing of their own code is ever run."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # pyright: ignore[reportPrivateImportUsage]

    kind, classes = config.get("model_type"), config.get("architectures") or []
    is_native = kind in CONFIG_MAPPING_NAMES
    if config.get("auto_map") and not (is_native and (not classes or any(hasattr(transformers, c) for c in classes))):
        raise ModelError(
            f"model '{name}' ({', '.join(classes) or kind}) needs custom code of its own (auto_map in config.json), "
            "which autolayer never runs: give a version of it for a class of the transformers library, or another "
            "model."
        )
    if kind and not is_native:
        raise ModelError(
            f"model '{name}' is of type `{kind}`, which transformers {transformers.__version__} does not know: install "
            "a version that does, or give another model."
        )
