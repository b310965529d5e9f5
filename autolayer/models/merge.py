"""Merges a trained patch or adapter into its base model, as one complete Hugging Face checkpoint."""

import tempfile
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from autolayer.core.errors import PatchError
from autolayer.models.disk_space import check_disk_space, follow_umask, num_bytes, write_error
from autolayer.models.loading import LoadedModel, load_model, quiet_transformers, read_tokenizer
from autolayer.models.lora import read_adapter_info
from autolayer.models.patch import apply, check_base, load_patch


def merge(base_name: str | None, patch_path: str | Path, out: str | Path) -> Path:
    """Writes base model and patch as one checkpoint, with tokenizer and generation config.

    The merge runs on the CPU. Every weight outside the trained layers is bit-identical to the base, in the same dtype.

    Args:
        base_name: The base model, as `load_model` accepts it; None for the one that the patch names.
        patch_path: A file that `LayerPatch.save` wrote, or a folder that `save_adapter` wrote.
        out: A folder that is empty or does not exist; it is written completely or not at all.

    Returns:
        The folder written.

    Raises:
        PatchError: The patch belongs to another base, or `out` cannot be written.
        ModelError: The base cannot be loaded.
    """
    out, path = Path(out), Path(patch_path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PatchError(f"--out {out} is {'not empty' if out.is_dir() else 'a file'}: give a new or empty folder.")
    if path.is_dir():
        base = load_model(base_name or read_adapter_info(path)["base"], device="cpu")
        merge_adapter(base.model, path)
    else:
        patch = load_patch(path)
        base = load_model(base_name or patch.base, device="cpu")
        apply(base.model, patch)
    _write_checkpoint(base, out)
    return out


def merge_adapter(model: nn.Module, folder: Path) -> None:
    """Adds a trained LoRA adapter to the weights that it adapts, in place.

    Raises:
        PatchError: The folder holds no adapter that autolayer wrote, or the model is not its base.
    """
    from peft import PeftModel

    info = read_adapter_info(folder)
    check_base(model, info["base"], info["base_hash"])
    with quiet_transformers():
        PeftModel.from_pretrained(model, str(folder)).merge_and_unload()  # pyright: ignore


def _write_checkpoint(base: LoadedModel, out: Path) -> None:
    size = num_bytes(base.model.parameters()) + (64 << 20)  # tokenizer and headers besides
    check_disk_space(out, size)
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=parent) as temporary, quiet_transformers():
            checkpoint = Path(temporary) / out.name
            base.model.save_pretrained(checkpoint)
            read_tokenizer(base.name).save_pretrained(checkpoint)
            follow_umask(checkpoint)
            if out.exists():
                out.rmdir()
            checkpoint.rename(out)
    except (OSError, SafetensorError, ValueError) as error:  # ValueError: a generation config that contradicts itself
        raise write_error(out, size, error) from error
