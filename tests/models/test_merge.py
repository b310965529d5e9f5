"""Merging: the result is the base's folder, in which only the trained tensors are others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_cache import make_model_cache
from patch_helpers import trained
from safetensors.torch import load_file, save_file
from tiny_models import build, build_text_and_vision
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from autolayer.core.errors import ModelError, PatchError, RunFolderError
from autolayer.core.run_folder import RunFolder
from autolayer.models import lora
from autolayer.models import merge as merge_module
from autolayer.models.layers import linear_module_names
from autolayer.models.loading import load_model, weight_hash
from autolayer.models.merge import merge

LAYER = 2
IDS = torch.randint(2, 90, (2, 9), generator=torch.Generator().manual_seed(0))


def stored_tensors(file: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Dtype, shape and bytes of every tensor, read without the code under test."""
    if file.suffix == ".bin":
        tensors = torch.load(file, weights_only=True)
        return {
            n: (str(t.dtype), list(t.shape), bytes(t.contiguous().view(-1).view(torch.uint8)))
            for n, t in tensors.items()
        }
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    return {
        name: (about["dtype"], about["shape"], raw[start + about["data_offsets"][0] : start + about["data_offsets"][1]])
        for name, about in header.items()
    }


def add(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), **tensors}, file, {"format": "pt"})


def shard(folder: Path) -> None:
    """Three shards, one of which no layer is in, and a head for several tokens that transformers does not read."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    save_file({"mtp.layers.0.weight": torch.randn(5, 3)}, folder / "model-mtp.safetensors", {"format": "pt"})
    index["weight_map"]["mtp.layers.0.weight"] = "model-mtp.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def mix_dtypes(folder: Path) -> None:
    """A checkpoint in bfloat16 whose norms and first block are stored in wider formats."""
    for file in [folder / "model.safetensors"]:
        tensors = load_file(file)
        for name in tensors:
            if "norm" in name:
                tensors[name] = tensors[name].float() + 1e-7
            elif f".{LAYER}.mlp.up" in name:
                tensors[name] = tensors[name].double()
        save_file(tensors, file, {"format": "pt"})


def to_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def to_sharded_bin(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(files.values()):
        torch.save(
            {n: tensors[n] for n in names if files[n] == file}, folder / file, _use_new_zipfile_serialization=False
        )
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def store_the_head_twice(folder: Path) -> None:
    add(folder, {"lm_head.weight": load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone()})


def save_without_head(folder: Path) -> None:
    AutoModel.from_pretrained(folder, dtype="auto").save_pretrained(folder)


def narrow_files(folder: Path) -> None:
    """Files in bfloat16 below a configuration that says float32."""
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t.bfloat16() for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def link_files(folder: Path) -> None:
    """Files and a folder that are links, as in the Hub's cache."""
    shutil.move(folder, folder.parent / "blobs")
    (folder.parent / "blobs" / "extra").mkdir()
    (folder.parent / "blobs" / "extra" / "template.jinja").write_text("{{ messages }}")
    folder.mkdir()
    for file in (folder.parent / "blobs").iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "loop").symlink_to(folder)
    (folder / "gone").symlink_to(folder / "nowhere")


KINDS: dict[str, tuple[str, dict[str, Any], Callable[[Path], None]]] = {
    "plain": ("qwen3", {"dtype": torch.bfloat16}, lambda folder: None),
    "sharded": ("llama", {}, shard),
    "experts": ("qwen3_moe", {"dtype": torch.bfloat16}, shard),
    "mixed dtypes": ("qwen3", {"dtype": torch.bfloat16}, mix_dtypes),
    "half precision": ("qwen2", {"dtype": torch.float16}, lambda folder: None),
    "one .bin file": ("qwen3", {}, to_bin),
    "old .bin shards": ("qwen3", {}, to_sharded_bin),
    "tied": ("qwen2", {"tied": True}, lambda folder: None),
    "tied and stored twice": ("qwen2", {"tied": True}, store_the_head_twice),
    "without prefix": ("gemma3", {"tied": True}, save_without_head),
    "links": ("qwen3", {}, link_files),
}


@pytest.mark.parametrize("layers", [(LAYER,), "full"], ids=["layer", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_trained_tensors_differ_from_the_base(tmp_path: Path, kind: str, layers: Any) -> None:
    architecture, options, change = KINDS[kind]
    folder = build(architecture, tmp_path / "base", **options)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "X"}')
    (folder / "modeling_own.py").write_text("# code that nobody runs")
    change(folder)
    model, patch = trained(folder, layers)
    patch.save(tmp_path / "layer.safetensors")
    out = merge(None, tmp_path / "layer.safetensors", tmp_path / "merged")

    files = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
    files |= {Path("extra/template.jinja")} if kind == "links" else set()
    assert {file.relative_to(out) for file in out.rglob("*") if file.is_file()} == files
    for file in files:
        if file.suffix not in (".safetensors", ".bin"):
            assert (out / file).read_bytes() == (folder / file).read_bytes()
            continue
        before, after = stored_tensors(folder / file), stored_tensors(out / file)
        assert {n: about[:2] for n, about in before.items()} == {n: about[:2] for n, about in after.items()}
        changed = {name for name in before if before[name] != after[name]}
        assert not any(name.startswith("mtp.") for name in changed)
        if layers != "full":
            assert all(f"layers.{LAYER}." in name for name in changed)
    merged = AutoModelForCausalLM.from_pretrained(out, dtype="auto").eval()
    assert weight_hash(merged) == weight_hash(model) != patch.base_hash
    with torch.no_grad():
        assert torch.equal(merged(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_a_dtype_that_cannot_hold_the_trained_values_is_widened(tmp_path: Path) -> None:
    folder = build("qwen3", tmp_path / "base")
    narrow_files(folder)
    model, patch = trained(folder, (LAYER,))
    patch.save(tmp_path / "layer.safetensors")
    out = merge(None, tmp_path / "layer.safetensors", tmp_path / "merged")
    after = stored_tensors(out / "model.safetensors")
    assert {about[0] for name, about in after.items() if f".{LAYER}." not in name} == {"BF16"}
    assert after[f"model.layers.{LAYER}.mlp.up_proj.weight"][0] == "F32"
    assert weight_hash(AutoModelForCausalLM.from_pretrained(out, dtype="auto")) == weight_hash(model)


def test_a_vision_tower_stays(tmp_path: Path) -> None:
    add(build_text_and_vision(tmp_path / "base"), {"mtp.norm.weight": torch.randn(32)})
    _, patch = trained(tmp_path / "base", (LAYER,))
    patch.save(tmp_path / "layer.safetensors")
    out = merge(None, tmp_path / "layer.safetensors", tmp_path / "merged")
    before, after = (stored_tensors(folder / "model.safetensors") for folder in (tmp_path / "base", out))
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if name.startswith(f"model.language_model.layers.{LAYER}.")}
    loaded: Any = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    _, report = loaded
    assert not report["missing_keys"]


def test_the_untrained_weights_in_other_files_are_left_behind(tmp_path: Path) -> None:
    folder = build("qwen3", tmp_path / "base")
    (folder / "original").mkdir()
    stale = ("pytorch_model.bin", "consolidated.safetensors", "params.json", "model-Q4.gguf", "model.fp16.safetensors",
             "model-00001-of-00002.safetensors", "model.safetensors.index.json", "original/consolidated.00.pth",
             "optimizer.pt", ".hidden")  # fmt: skip
    for name in stale:
        (folder / name).write_text("{}")
    save_file({"mtp.weight": torch.ones(3)}, folder / "mtp.safetensors")
    _, patch = trained(folder, (LAYER,))
    patch.save(tmp_path / "layer.safetensors")
    out = merge(None, tmp_path / "layer.safetensors", tmp_path / "merged")
    left = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {
        str(file.relative_to(out)) for file in out.rglob("*")
    }
    assert left == set(stale)


def test_a_model_of_the_hub_is_copied_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build("qwen3", tmp_path / "base")
    (folder / "processor_config.json").write_text("{}")
    make_model_cache(tmp_path / "home", folder, "some-org/some-model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    _, patch = trained("some-org/some-model", (LAYER,))
    patch.save(tmp_path / "layer.safetensors")
    out = merge(None, tmp_path / "layer.safetensors", tmp_path / "merged")
    assert {file.name for file in out.iterdir()} == {file.name for file in folder.iterdir()}
    assert not any(file.is_symlink() for file in out.iterdir())


def test_an_adapter_is_merged_like_a_patch(tmp_path: Path) -> None:
    folder = build("qwen3", tmp_path / "base", dtype=torch.bfloat16)
    shard(folder)
    base = load_model(str(folder), device="cpu")
    info = {"base": str(folder), "base_hash": base.weight_hash, "layers": [LAYER]}
    names = linear_module_names(base.model, (LAYER,))
    lora.add_adapters(base.model, names, seed=0)
    for name, parameter in base.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)), std=0.1)
    tensors = {name: p.detach() for name, p in base.model.named_parameters() if "lora_" in name}
    lora.save_adapter(tmp_path / "adapter", tensors, str(folder), info)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["target_modules"] = "(a+)+$" * 30  # never matched against anything
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))

    out = merge(None, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    wanted = dict(lora.merged_weights(base.model))
    found = dict(merged.named_parameters())
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    before, after = (
        {k: v for f in sorted(d.glob("*.safetensors")) for k, v in stored_tensors(f).items()} for d in (folder, out)
    )
    assert {name for name in before if before[name] != after[name]} == {f"{name}.weight" for name in names}

    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    first = next(name for name in weights if "lora_B" in name)
    for damaged in (
        {},
        {first: weights[first]},
        {**weights, first: weights[first][:1]},
        {**weights, "x": torch.ones(1)},
    ):
        save_file(damaged, tmp_path / "adapter" / "adapter_model.safetensors")
        with pytest.raises(PatchError, match="adapter in .* is damaged or does not fit"):
            merge(None, tmp_path / "adapter", tmp_path / "again")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(PatchError, match="adapter in .* is damaged or does not fit"):
        merge(None, tmp_path / "adapter", tmp_path / "again")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "3", "[" * 100_000, '{"base": "b", "base_hash": 3, "layers": [1]}',
     '{"base": "b", "base_hash": "h", "layers": 3}', '{"base": "b", "base_hash": "h", "layers": ["a"]}'],
)  # fmt: skip
def test_an_adapter_without_a_whole_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / lora.INFO_FILE).write_text(text)
    with pytest.raises(PatchError, match="holds no adapter that autolayer has written"):
        merge(None, tmp_path, tmp_path / "merged")


def test_out_is_never_in_the_folder_of_the_base(tmp_path: Path) -> None:
    folder = build("qwen3", tmp_path / "base")
    _, patch = trained(folder, (LAYER,))
    patch.save(tmp_path / "layer.safetensors")
    (tmp_path / "link").symlink_to(folder)
    for out in (folder / "merged", tmp_path / "link" / "merged"):
        with pytest.raises(PatchError, match="is in the folder of the base model"):
            merge(None, tmp_path / "layer.safetensors", out)


@pytest.mark.parametrize("damage", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight"])
def test_what_was_written_wrongly_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    folder = build("qwen3", tmp_path / "base")
    _, patch = trained(folder, (LAYER,))
    patch.save(tmp_path / "layer.safetensors")
    write = merge_module.write_tensors
    monkeypatch.setattr(
        merge_module,
        "write_tensors",
        lambda file, tensors, like: write(file, {**tensors, damage: tensors[damage] + 1}, like),
    )
    with pytest.raises(PatchError, match=rf"is not the trained model \({damage} differ\), and was deleted"):
        merge(None, tmp_path / "layer.safetensors", tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "layer.safetensors"]


def test_what_a_killed_merge_has_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, places = build("qwen3", tmp_path / "base"), []
    _, patch = trained(folder, (LAYER,))
    patch.save(tmp_path / "layer.safetensors")

    def stop(_folder: Path, checkpoint: Path, *_: Any) -> None:
        places.append(checkpoint.parent)
        shutil.copytree(checkpoint.parent, tmp_path / "left")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(merge_module, "_check", stop)
        merge(None, tmp_path / "layer.safetensors", tmp_path / "merged")
    (tmp_path / "left").rename(places[0])  # as if nothing had been cleaned up
    with RunFolder(places[0]).locked(), pytest.raises(RunFolderError, match="another process is working"):
        merge(None, tmp_path / "layer.safetensors", tmp_path / "merged")
    merge(None, tmp_path / "layer.safetensors", tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "layer.safetensors", "merged"]


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    folder = build("llama", tmp_path / "base")
    _, patch = trained(folder, (LAYER,))
    patch.save(tmp_path / "layer.safetensors")
    shutil.move(folder / "model.safetensors", tmp_path / "weights.safetensors")
    names = load_file(tmp_path / "weights.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../weights.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="names files outside of its folder"):
        load_model(str(folder))
