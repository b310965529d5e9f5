"""Merges a trained patch or adapter into its base model: a copy of the base's folder with the trained tensors replaced.

Everything else stays as it is: configuration, tokenizer, processor, chat templates, shards, and tensors that
transformers does not read (a vision tower, extra prediction heads). Whatever loads the base therefore loads the result.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers.core_model_loading import revert_weight_conversion

from autolayer.core.errors import ModelError, PatchError, UnknownNameError
from autolayer.core.layer_set import Layers
from autolayer.core.run_folder import LOCK, RunFolder
from autolayer.core.whole_files import sync
from autolayer.models.base_folder import base_folder, model_files, read_tensors, weight_files, write_tensors
from autolayer.models.disk_space import check_disk_space, follow_umask, write_error
from autolayer.models.layers import layer_parameters
from autolayer.models.loading import load_model, weight_hash
from autolayer.models.lora import merge_adapter, read_adapter_info
from autolayer.models.patch import apply, check_patch_base, check_run, load_patch

Tensors = Mapping[str, torch.Tensor]


def merge(base_name: str | None, patch_path: str | Path, out: str | Path) -> Path:
    """Writes a copy of the base model's folder with the trained layers in it, and checks that it loads as trained.

    The merge runs on the CPU. Trained tensors keep the base's names, and its dtypes where these hold them exactly;
    every other tensor is bit-identical to the base.

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
    patch = None if path.is_dir() else load_patch(path)
    about = read_adapter_info(path) if patch is None else vars(patch)
    check_run(path, about.get("signature"), RunFolder(path.parent).signature)
    name: str = base_name or about["base"]
    try:
        model: Any = load_model(name, device="cpu").model
    except (ModelError, UnknownNameError) as error:
        if base_name is not None:
            raise
        raise ModelError(
            f"{error} This base model is named in {path}, and a relative path counts from where it was trained: if it "
            "is elsewhere, give --model."
        ) from error
    folder = base_folder(name)
    if out.resolve().is_relative_to(folder.resolve()):
        raise PatchError(f"--out {out} is in the folder of the base model, {folder}: give a folder outside of it.")
    check_patch_base(model, about["base"], about["base_hash"])
    layers = about["layers"] if about["layers"] == "full" else tuple(about["layers"])
    stored = {name: tensor for file in weight_files(folder) for name, tensor in read_tensors(file).items()}
    for tensor_name, tensor in _by_stored_name(model, layers, stored).items():
        if tensor_name not in stored or not torch.equal(stored[tensor_name].to(tensor.dtype), tensor):
            raise PatchError(
                f"{tensor_name} cannot be written back into the files of {name}, which hold it in another form: save "
                "the base with transformers (save_pretrained), and give that folder with --model."
            )
    if patch is None:
        merge_adapter(model, path)
    else:
        apply(model, patch)
    trained = {n: _exact(tensor, stored[n].dtype) for n, tensor in _by_stored_name(model, layers, stored).items()}
    expected = _fingerprint(model)
    del model  # it is loaded again below
    _write(folder, trained, out, expected)
    return out


def _by_stored_name(model: Any, layers: Layers, stored: Tensors) -> dict[str, torch.Tensor]:
    """Returns the parameters of some layers as the base's files have them: split, fused and named by its conventions.

    A tied weight is returned under each name that the files have for it.
    """
    chosen = {id(parameter) for parameter in layer_parameters(model, layers).values()}
    weights = {n: p.detach() for n, p in model.named_parameters(remove_duplicate=False) if id(p) in chosen}
    prefix, found = f"{model.base_model_prefix}.", {}
    for name, tensor in revert_weight_conversion(model, weights).items():
        names = (name, name.removeprefix(prefix), prefix + name)  # a model without head is saved without the prefix
        found[next((each for each in names if each in stored), name)] = tensor
    places = {tensor.data_ptr() for name, tensor in found.items() if name in stored}
    return {name: tensor for name, tensor in found.items() if name in stored or tensor.data_ptr() not in places}


def _exact(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns a copy of a tensor in a dtype, or in its own if the other cannot hold its values."""
    cast = tensor.to(dtype, copy=True)
    return cast if torch.equal(cast.to(tensor.dtype), tensor) else tensor.clone()


class _Fingerprint(NamedTuple):
    """Hash of a model's weights, and its logits for some tokens."""

    weights: str
    logits: torch.Tensor


def _fingerprint(model: Any) -> _Fingerprint:
    ids = torch.arange(16)[None] % model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        return _Fingerprint(weight_hash(model), model(input_ids=ids, use_cache=False).logits)


def _write(folder: Path, trained: Tensors, out: Path, expected: _Fingerprint) -> None:
    files = model_files(folder)
    size = sum((folder / file).stat().st_size for file in files)
    check_disk_space(out, size)
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _scratch(parent / f".{out.name}.autolayer-merge") as scratch:
            checkpoint = scratch / "checkpoint"
            checkpoint.mkdir()
            for file in files:
                (checkpoint / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, checkpoint / file)
            for file in weight_files(folder):
                tensors = read_tensors(file)
                if new := {name: tensor for name, tensor in trained.items() if name in tensors}:
                    write_tensors(checkpoint / file.name, {**tensors, **new}, like=file)
            follow_umask(checkpoint)
            _check(folder, checkpoint, trained, expected)
            for place in (checkpoint, *checkpoint.rglob("*")):
                sync(place)
            if out.exists():
                out.rmdir()
            checkpoint.rename(out)
        sync(parent)
    except (OSError, SafetensorError) as error:
        raise write_error(out, size, error) from error


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yields an empty folder, and deletes it with what is in it. It has one name, so what a kill has left goes, too."""
    with RunFolder(folder).locked():
        try:
            _clear(folder)
            yield folder
        finally:
            _clear(folder)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path)


def _check(folder: Path, checkpoint: Path, trained: Tensors, expected: _Fingerprint) -> None:
    """Checks the tensors of a merged checkpoint one by one, and that it computes what was trained.

    Raises:
        PatchError: A tensor or the logits differ.
    """
    wrong = []
    for file in weight_files(folder):
        before, after = read_tensors(file), read_tensors(checkpoint / file.name)
        wanted = {**before, **{name: tensor for name, tensor in trained.items() if name in before}}
        wrong += [n for n in wanted.keys() | after.keys() if not _same_bits(wanted.get(n), after.get(n))]
    if not wrong:
        found = _fingerprint(load_model(str(checkpoint), device="cpu").model)
        wrong = ["the weights"] * (found.weights != expected.weights)
        wrong += ["the logits"] * (not torch.equal(found.logits, expected.logits))
    if wrong:
        raise PatchError(
            f"the merged checkpoint is not the trained model ({wrong[0]} differ), and was deleted: save the base with "
            "transformers (save_pretrained), and give that folder with --model."
        )


def _same_bits(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None or (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    first, second = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second))
    return torch.equal(first, second)
