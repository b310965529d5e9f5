"""Patches: saved, loaded, applied, merged; refused where they do not belong; nothing half-written."""

import errno
import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from patch_helpers import trained
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, build
from transformers import AutoModelForCausalLM, AutoTokenizer

from autolayer.core.errors import PatchError
from autolayer.models import sealed_tensors
from autolayer.models.loading import weight_hash
from autolayer.models.merge import merge
from autolayer.models.patch import apply, load_patch

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def saved(tiny_folder, tmp_path):
    model, patch = trained(tiny_folder, (1, 3))
    path = tmp_path / "run" / "layer.safetensors"
    patch.save(path)
    return tiny_folder, model, patch, path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", [(2,), "full"])
def test_round_trip(tmp_path, architecture, dtype, layers):
    tied = architecture in ("gemma3", "qwen2")
    base = build(architecture, tmp_path / "base", dtype=dtype, tied=tied, chat_template=True)
    model, patch = trained(base, layers)
    patch.save(tmp_path / "layer.safetensors")
    loaded = load_patch(tmp_path / "layer.safetensors")
    assert replace(loaded, tensors={}) == replace(patch, tensors={})
    assert loaded.tensors.keys() == patch.tensors.keys()
    assert all(torch.equal(t, patch.tensors[n]) and t.dtype == dtype for n, t in loaded.tensors.items())

    fresh = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    loaded.apply(fresh)
    assert weight_hash(fresh) == weight_hash(model)

    out = merge(str(base), tmp_path / "layer.safetensors", tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "layer.safetensors", "merged"]
    merged = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert weight_hash(merged) == weight_hash(model)
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(base).chat_template
    assert merged.generation_config.eos_token_id == model.generation_config.eos_token_id
    # The files themselves: the base's names, each in its dtype, and outside the layers its bits.
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    different = {n for n in before if not torch.equal(before[n], after[n])}
    assert all(after[n].dtype == before[n].dtype for n in before)
    assert different
    if layers != "full":
        assert all(name.startswith("model.layers.2.") and ".gate." not in name for name in different)
    assert merge(str(base), tmp_path / "layer.safetensors", tmp_path / "second" / "merged").is_dir()


def test_from_model_copies(saved):
    _, model, patch, _ = saved
    name = next(iter(patch.tensors))
    with torch.no_grad():
        dict(model.named_parameters())[name].zero_()
    assert patch.tensors[name].abs().sum() > 0


def test_another_base_is_refused(saved, tmp_path):
    _, _, patch, path = saved
    other = build("qwen3", tmp_path / "other", seed=5)
    model = AutoModelForCausalLM.from_pretrained(other)
    before = weight_hash(model)
    with pytest.raises(PatchError) as caught:
        apply(model, load_patch(path))
    for part in (patch.base, patch.base_hash[:10], str(other), before[:10]):
        assert part in str(caught.value)
    assert weight_hash(model) == before
    with pytest.raises(PatchError, match="was trained on"):
        merge(str(other), path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_problems_at_once_and_nothing_written(saved):
    folder, _, patch, _ = saved
    model = AutoModelForCausalLM.from_pretrained(folder)
    tensors = dict(patch.tensors)
    names = list(tensors)
    del tensors[names[0]]
    tensors[names[1]] = tensors[names[1]][:3]
    tensors[names[2]] = tensors[names[2]].bfloat16()
    tensors["lm_head.weight"] = torch.zeros(2)
    with pytest.raises(PatchError) as caught:
        apply(model, replace(patch, tensors=tensors))
    for part in (
        f"{names[0]} is missing",
        f"{names[1]} is float32 [3,",
        f"{names[2]} is bfloat16",
        "lm_head.weight is not",
    ):
        assert part in str(caught.value)
    assert weight_hash(model) == patch.base_hash
    with pytest.raises(PatchError, match="layer 9 does not exist"):
        apply(model, replace(patch, layers=(9,)))


def test_damaged_missing_and_foreign_files(saved, tmp_path):
    _, _, _, path = saved
    data = path.read_bytes()
    with pytest.raises(PatchError, match="does not exist"):
        load_patch(tmp_path / "nothing")
    for name, content in (("cut", data[:-9]), ("head", data[:20]), ("text", b"hello"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PatchError, match="is damaged"):
            load_patch(tmp_path / name)
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign", {"format": "pt"})
    with pytest.raises(PatchError, match="is no layer patch"):
        load_patch(tmp_path / "foreign")
    with safe_open(path, framework="pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != "digest"}
    for change in ({"layers": "x"}, {"layers": ""}, {"layers": "9" * 5000}, {"steps": "x"}, {"versions": "3"},
                   {"versions": "[" * 100_000}):  # fmt: skip
        save_file({"a": torch.zeros(2)}, tmp_path / "half", {**metadata, **change})
        with pytest.raises(PatchError, match="is damaged"):
            load_patch(tmp_path / "half")


def test_a_full_disk_is_found_before_writing(saved, tmp_path, monkeypatch):
    folder, _, patch, path = saved
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(PatchError, match=r"needs [\d,]{6,} bytes but the disk has 1,000 free"):
        patch.save(tmp_path / "layer.safetensors")
    with pytest.raises(PatchError, match=r"bytes but the disk has 1,000 free"):
        merge(str(folder), path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_disk_that_fills_while_writing_leaves_nothing(saved, tmp_path, monkeypatch):
    folder, _, patch, path = saved
    before = path.read_bytes()

    def fill(tensors, file, metadata=None):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sealed_tensors, "save_file", fill)
    with pytest.raises(PatchError, match="the disk ran full"):
        patch.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]

    def break_off(source, target):
        target.write_text("half")
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "copyfile", break_off)
    with pytest.raises(PatchError, match="cannot be written"):
        merge(str(folder), path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_merge_prints_nothing(saved, tmp_path, capfd):
    folder, _, _, path = saved
    capfd.readouterr()
    merge(str(folder), path, tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_out_must_be_new_or_empty(saved, tmp_path):
    folder, _, _, path = saved
    with pytest.raises(PatchError, match="not empty"):
        merge(str(folder), path, path.parent)
    with pytest.raises(PatchError, match="is a file"):
        merge(str(folder), path, path)
    (tmp_path / "empty").mkdir()
    assert (merge(str(folder), path, tmp_path / "empty") / "config.json").is_file()


def test_save_where_one_cannot_write(saved, tmp_path):
    _, _, patch, path = saved
    with pytest.raises(PatchError, match="cannot be written"):
        patch.save(path / "below-a-file")
