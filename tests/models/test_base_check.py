"""Bases that cannot be trained and written back: refused in a sentence, before a weight is read."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_cache import make_model_cache
from safetensors.torch import load_file, save_file
from tiny_models import build, build_model, build_text_and_vision
from transformers import AutoModelForCausalLM

from autolayer.cli.doctor import diagnose
from autolayer.core.config import Config
from autolayer.core.errors import ModelError
from autolayer.models.base_check import check_base
from autolayer.models.layers import find_layers
from autolayer.models.loading import load_model, meta_model, read_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build("qwen3", tmp_path / "base")


def set_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def assert_refused(folder: Path, words: str) -> None:
    """Both ways to a model say it, and neither reads a weight."""
    for read in (check_base, meta_model, load_model):
        with pytest.raises(ModelError, match=words) as caught:
            read(str(folder))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, r"quantized \(FP8\)"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, r"\(MXFP4\).*gpt-oss-20b-BF16"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"\(GPTQ\)"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"\(AWQ\)"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, r"\(compressed-tensors\)"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, r"\(compressed-tensors\)"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, r"\(bitsandbytes\)"),
        ({"quantization_config": {"quant_method": "new-method"}}, r"\(new-method\)"),
        ({"quantization_config": {"load_in_8bit": True}}, r"\(bitsandbytes\)"),
        ({"quantization_config": {"quant_algo": "NVFP4", "group_size": 16}}, r"\(ModelOpt\)"),
        ({"quantization": {"bits": 4, "group_size": 64}}, r"\(MLX\)"),
        ({"quantization_config": {"bits": 4, "group_size": 64, "mode": "affine"}}, r"\(MLX\)"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, r"\(FP8\)"),
        (
            {"quantization_config": {"quant_method": "gptq"}, "_name_or_path": "Qwen/Qwen3-8B"},
            r"\(GPTQ\).*made from, Qwen/Qwen3-8B,",
        ),
    ],
)
def test_quantized_by_its_configuration(folder: Path, values: dict[str, Any], words: str) -> None:
    set_config(folder, **values)
    assert_refused(folder, words)


def test_an_empty_entry_is_not_a_quantization(folder: Path) -> None:
    set_config(folder, quantization_config=None, quantization={})
    check_base(str(folder))


def add_scales(folder: Path) -> None:
    """Float8 weights that only their dtype and their scales show."""
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    tensors[f"{name}_scale_inv"] = torch.ones(1, 1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def pack(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.qweight"] = torch.zeros(4, 4, dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def to_four_bits(folder: Path) -> None:
    """NVFP4: two numbers in each byte, and scales in eight bits."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(64, 16, dtype=torch.uint8)
    tensors["model.layers.1.mlp.up_proj.weight_scale"] = torch.ones(64, 2).to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def to_integers(folder: Path) -> None:
    """A weight in eight bits that transformers would read as if it were rounded."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(64, 32, dtype=torch.int8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def to_bin(folder: Path, change: Callable[[Path], Any]) -> None:
    change(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def only_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-Q8_0.gguf")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (add_scales, r"\(FP8\)"),
        (to_four_bits, r"\(4-bit floating point\)"),
        (pack, r"\(model.layers.1.mlp.up_proj.qweight\)"),
        (to_integers, r"\(model.layers.1.mlp.up_proj.weight\)"),
        (lambda folder: to_bin(folder, to_integers), r"\(model.layers.1.mlp.up_proj.weight\)"),
        (lambda folder: to_bin(folder, add_scales), r"\(FP8\)"),
        (lambda folder: (folder / "hf_quant_config.json").write_text("{}"), r"\(ModelOpt\)"),
        (only_gguf, r"\(GGUF\)"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter of an earlier training.*: move"),
    ],
)
def test_refused_by_its_files(folder: Path, change: Callable[[Path], Any], words: str) -> None:
    change(folder)
    assert_refused(folder, words)


def test_folders_without_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter, not a model: give its base"):
        check_base(str(tmp_path / "adapter"))
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model-Q4_K_M.gguf").write_text("")
    with pytest.raises(ModelError, match="is a folder with GGUF files and no config.json: give one of the files"):
        check_base(str(tmp_path / "gguf"))


def test_a_model_of_the_hub_is_checked_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    add_scales(build("qwen3", tmp_path / "fp8"))
    make_model_cache(tmp_path / "home", tmp_path / "fp8", "some-org/some-model-FP8")
    assert_refused(Path("some-org/some-model-FP8"), r"\(FP8\)")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-8B"}')
    make_model_cache(tmp_path / "home", tmp_path / "adapter", "some-org/some-adapter")
    assert_refused(Path("some-org/some-adapter"), "is an adapter of Qwen/Qwen3-8B, not a model: give Qwen/Qwen3-8B")


def own_code(folder: Path, **values: Any) -> None:
    """A model with a class of its own, whose code leaves a mark if it is run."""
    mark = f"open({str(folder / 'ran')!r}, 'w').close()\n"
    (folder / "own_config.py").write_text(
        mark + "from transformers import Qwen3Config\nclass C(Qwen3Config):\n    model_type = 'own'\n"
    )
    (folder / "own_model.py").write_text(
        mark + "from transformers import Qwen3ForCausalLM\nclass M(Qwen3ForCausalLM):\n    pass\n"
    )
    auto_map = {"AutoConfig": "own_config.C", "AutoModelForCausalLM": "own_model.M"}
    set_config(folder, auto_map=auto_map, **values)


@pytest.mark.parametrize("values", [{"model_type": "own", "architectures": ["M"]}, {"architectures": ["M"]}])
def test_custom_code_is_never_run_or_asked_for(
    folder: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_code(folder, **values)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    assert_refused(folder, r"\(M\) needs custom code of its own .*never runs")
    assert not (folder / "ran").exists()


def test_a_native_class_beside_custom_code_is_loaded(folder: Path) -> None:
    own_code(folder, architectures=["Qwen3ForCausalLM"])
    assert type(load_model(str(folder)).model).__module__.startswith("transformers.")
    assert not (folder / "ran").exists()


def test_a_tokenizer_with_custom_code_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "own_tokenizer.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\nclass T: pass\n")
    (folder / "tokenizer.json").unlink()
    about = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["own_tokenizer.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(ModelError, match="no usable tokenizer"):
        read_tokenizer(str(folder))
    assert not (folder / "ran").exists()
    assert "own_tokenizer" not in sys.modules


def test_a_type_that_transformers_does_not_have(folder: Path) -> None:
    set_config(folder, model_type="newer")
    assert_refused(folder, "is of type `newer`, which transformers .* does not know")


def test_doctor_says_the_same(folder: Path) -> None:
    set_config(folder, quantization_config={"quant_method": "awq"})
    found = [check for check in diagnose(Config(model=str(folder), task="math:arith")).checks if check.state == "bad"]
    assert any("is quantized (AWQ)" in str(check) for check in found)


def test_scales_that_a_whole_model_kept_are_no_quantization(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_scale_inv"] = torch.ones(1, 1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    check_base(str(folder))


def without_the_last_layer(folder: Path, **about: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    text.update(num_hidden_layers=3, layer_types=(text.get("layer_types") or [])[:3] or None, **about)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["plain", "sharded", "text and vision", "bin"])
def test_a_config_that_cuts_layers_off_is_refused(folder: Path, kind: str) -> None:
    if kind == "sharded":
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="30KB")
        (folder / "model.safetensors").unlink()
    elif kind == "text and vision":
        build_text_and_vision(folder)
    elif kind == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    without_the_last_layer(folder)
    for read in (meta_model, load_model):
        with pytest.raises(ModelError, match="says num_hidden_layers 3, but its files hold layer 3 too; restore"):
            read(str(folder))


def test_a_config_of_other_shapes_is_refused_by_name(folder: Path) -> None:
    set_config(folder, intermediate_size=63)
    for read in (meta_model, load_model):
        with pytest.raises(ModelError, match=r"down_proj.weight has shape \[32, 64\] in its files, and \[32, 63\] by"):
            read(str(folder))


@pytest.mark.parametrize("ends", ["<eos>", [1, None], 1.5])
def test_end_tokens_that_are_no_numbers_are_refused(folder: Path, ends: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert_refused_as_unreadable(folder, "generation_config.json has an eos_token_id that is no token number")


def test_an_invalid_field_of_the_configuration_is_told(folder: Path) -> None:
    set_config(folder, hidden_size="32")
    assert_refused_as_unreadable(folder, "Validation error for field 'hidden_size': .*expected int, got str")


def assert_refused_as_unreadable(folder: Path, words: str) -> None:
    for read in (meta_model, load_model):
        with pytest.raises(ModelError, match=words):
            read(str(folder))


def test_a_configuration_that_asks_for_tuples_is_overruled(folder: Path) -> None:
    set_config(folder, return_dict=False)
    assert load_model(str(folder)).model.config.return_dict


def test_a_head_for_further_tokens_is_no_layer(folder: Path) -> None:
    without_the_last_layer(folder, num_nextn_predict_layers=1)
    assert len(find_layers(meta_model(str(folder)))) == load_model(str(folder)).num_layers == 3


def test_a_class_without_a_decoder_of_its_own_is_refused(folder: Path) -> None:
    set_config(folder, model_type="llama4_text", architectures=["Llama4ForCausalLM"])
    with pytest.raises(ModelError, match="Llama4ForCausalLM of transformers has no `base_model`"):
        meta_model(str(folder))


def test_a_model_of_images_and_text_is_called_that(folder: Path) -> None:
    set_config(folder, model_type="llava", architectures=["LlavaForConditionalGeneration"])
    with pytest.raises(ModelError, match="is a model of images and text, for which"):
        meta_model(str(folder))


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (
            "Qwen3ForSequenceClassification",
            r"\(Qwen3ForSequenceClassification\) is a classifier or reward model, not a",
        ),
        (
            "Qwen3ForTokenClassification",
            "is a classifier of tokens, not a causal language model: .*; give the language",
        ),
        ("Qwen2ForProcessRewardModel", "is a reward model"),
        ("LlamaBidirectionalModel", "is an embedding model"),
    ],
)
def test_a_model_that_does_not_generate_is_called_what_it_is(folder: Path, classes: str, words: str) -> None:
    own_code(folder, architectures=[classes])
    assert_refused(folder, words)


def test_an_embedding_model_of_sentence_transformers_is_refused(folder: Path) -> None:
    (folder / "modules.json").write_text('[{"idx": 0, "type": "sentence_transformers.models.Transformer"}]')
    assert_refused(folder, "is an embedding model of sentence-transformers .*, not a causal language model")


@pytest.mark.parametrize("prefix", [True, False], ids=["whole", "decoder"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_decoder_is_taken_if_its_files_hold_a_language_model(prefix: bool, tied: bool, tmp_path: Path) -> None:
    folder = build("qwen3", tmp_path / "base", tied=tied)
    if not prefix:
        build_model("qwen3", tied=tied).model.save_pretrained(folder)
    set_config(folder, architectures=["Qwen3Model"])
    if prefix or tied:
        assert len(find_layers(meta_model(str(folder)))) == 4
    else:
        assert_refused_as_unreadable(folder, r"\(Qwen3Model\) is a decoder without an output head, such as .*lm_head")


@pytest.mark.parametrize("kind", ["a folder", "a link to nothing", "missing"])
def test_weights_that_are_no_file_are_refused_by_name(folder: Path, kind: str) -> None:
    file = folder / "model.safetensors"
    file.rename(folder / "elsewhere.safetensors")
    if kind == "a folder":
        file.mkdir()
    elif kind == "missing":
        file = folder / "model-00001-of-00001.safetensors"
        index = {"metadata": {}, "weight_map": {"lm_head.weight": file.name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        file.symlink_to("nowhere.safetensors")
    assert_refused(folder, f"is incomplete: {file.name}, which should hold its weights, is {kind}; copy or")


def test_a_python_object_among_the_weights_is_named(folder: Path) -> None:
    torch.save({**load_file(folder / "model.safetensors"), "extra": Path("x")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_refused_as_unreadable(
        folder, r"has a Python object \(pathlib\S*\) in its .bin files.*: save its tensors alone"
    )


def test_a_missing_package_is_named(folder: Path) -> None:
    set_config(folder, attn_implementation="flash_attention_2")
    assert_refused_as_unreadable(
        folder, "needs a package that is not installed .FlashAttention2 .*: install it, or take"
    )


def test_the_chat_template_of_an_older_processor_is_read(folder: Path) -> None:
    assert read_tokenizer(str(folder)).chat_template is None
    (folder / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    assert read_tokenizer(str(folder)).chat_template == "{{ messages }}"
