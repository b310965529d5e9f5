"""Names, loading, and every refusal, on real folders."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from tiny_models import ARCHITECTURES, VOCABULARY, build, build_model, build_tokenizer
from transformers import AutoModelForCausalLM

from autolayer.core.config import Config
from autolayer.core.errors import ConfigError, DataError, ModelError, UnknownNameError
from autolayer.models import names
from autolayer.models.loading import load_model, meta_model, weight_hash
from autolayer.models.names import EMBEDDED, check_model_name
from autolayer.rollouts.length_limits import apply_length_limits
from autolayer.tasks import TASKS
from autolayer.tasks.base import SPLITS, Task


def test_import_loads_no_torch():
    code = (
        "import sys, autolayer.models.names as m; m.check_model_name('tiny'); m.check_model_name('org/name'); "
        "sys.exit(bool({'torch', 'transformers', 'safetensors'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_presets_are_config_fields():
    for embedded in EMBEDDED.values():
        for task in ("math:arith", "code:expr", "agent:house", "my.py:TASK"):
            Config(model="tiny", **embedded.preset(task))
        assert set(embedded.presets) <= {"", *TASKS}
        assert set(embedded.forms) == {task.partition(":")[0] for task in TASKS}
        assert all(form in TASKS and kind in ("words", form.partition(":")[0]) for kind, form in embedded.forms.items())


def test_names(tmp_path, tiny_folder):
    for name in ("tiny", "Qwen/Qwen3-8B", "a-b/c_d.e", str(tiny_folder)):
        check_model_name(name)
    with pytest.raises(
        UnknownNameError, match="unknown model 'tinny'. Did you mean 'tiny'.*Or give your own model: a "
    ):
        check_model_name("tinny")
    with pytest.raises(UnknownNameError, match="unknown model ''"):
        check_model_name("")
    with pytest.raises(ModelError, match="has no config.json"):
        check_model_name(str(tmp_path))
    with pytest.raises(ModelError, match="is a file: give the folder"):
        check_model_name(str(tiny_folder / "config.json"))
    for name in ("./nowhere", "/nowhere/x", "~/nowhere", "a/b/c"):
        with pytest.raises(ModelError, match="does not exist"):
            check_model_name(name)


def test_a_local_folder_has_one_name_everywhere(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("model", "./model", "model/", "~/model"):
        assert names.full_name(name) == str(tmp_path / "model")
    assert [names.full_name(name) for name in ("tiny", "Qwen/Qwen3-8B")] == ["tiny", "Qwen/Qwen3-8B"]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
     OSError(12, "Cannot allocate memory"), torch.OutOfMemoryError("CUDA out of memory.")],
)  # fmt: skip
def test_a_model_that_does_not_fit_into_memory(tiny_folder, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(ModelError, match="does not fit into the memory of this machine .* give a smaller model"):
        load_model(str(tiny_folder), device="cpu")


@pytest.mark.parametrize(
    "change",
    [{"hidden_act": "nope"}, {"hidden_size": 0}, {"hidden_size": -1}, {"hidden_size": "abc"}, {"hidden_size": 10**400},
     {"num_attention_heads": 0}, {"num_hidden_layers": 0}, {"num_hidden_layers": 1.5}, {"vocab_size": -1},
     {"vocab_size": 0}, {"head_dim": 0}, {"head_dim": 10**400}, {"pad_token_id": 10**400}, {"rope_parameters": 3},
     {"dtype": 3}, {"dtype": "float99"}, {"architectures": 3}, {"model_type": []}, {"model_type": None}],
    ids=lambda change: str(change)[:30],
)  # fmt: skip
def test_a_config_with_nonsense_in_it_is_refused(tmp_path, tiny_folder, change):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    for read in (meta_model, load_model):
        with pytest.raises(ModelError, match="model '.*/model'"):
            read(str(folder))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "3", "\0", "[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_a_file_that_is_no_json_or_no_tensors_is_refused(tmp_path, tiny_folder, file, text):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / file).write_text(text)
    with pytest.raises(ModelError, match="model '.*/model'"):
        load_model(str(folder))


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": "gone.safetensors"}}'])
def test_a_damaged_index_is_refused(tmp_path, tiny_folder, text):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    for read in (meta_model, load_model):
        if read is load_model or "gone" not in text:
            with pytest.raises(ModelError, match="model '.*/model'"):
                read(str(folder))


def test_missing_embedded_folder(monkeypatch):
    monkeypatch.setattr(names, "EMBEDDED", {"tiny": names.NamedModel(folder="gone")})
    with pytest.raises(ModelError, match="missing from this installation"):
        load_model("tiny")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loads_in_its_own_dtype(tmp_path, architecture, dtype, capfd):
    build(architecture, tmp_path, dtype=dtype, chat_template=architecture == "qwen3")
    capfd.readouterr()
    loaded = load_model(str(tmp_path), device="cpu")
    assert {p.dtype for p in loaded.model.parameters()} == {dtype}
    assert not loaded.model.training
    assert (loaded.num_layers, loaded.name, loaded.device) == (4, str(tmp_path), torch.device("cpu"))
    assert (loaded.tokenizer.chat_template is not None) == (architecture == "qwen3")
    assert loaded.tokenizer.decode(loaded.tokenizer("1+1=\n")["input_ids"]) == "1+1=\n"
    original = build_model(architecture, dtype=dtype)
    assert loaded.weight_hash == weight_hash(original)
    assert capfd.readouterr() == ("", "")


def test_hash_sees_value_dtype_and_shape_but_is_cached():
    model = build_model("qwen3", tied=True)
    base = weight_hash(model)
    assert base == weight_hash(build_model("qwen3", tied=True)) and len(base) == 32
    assert base != weight_hash(build_model("qwen3", tied=True, seed=1))
    assert base != weight_hash(build_model("qwen3", tied=True, dtype=torch.bfloat16))
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nextafter(model.model.norm.weight[3], torch.tensor(9.0))
    assert weight_hash(model) != base


def test_a_missing_pad_token_becomes_eos(tmp_path):
    tokenizer = load_model(str(build("llama", tmp_path, pad=False))).tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1


@pytest.mark.parametrize(
    ("eos", "pad", "message"),
    [(False, True, "has no eos_token,"), (False, False, "neither an eos_token nor a pad_token")],
)
def test_tokens_that_training_needs(tmp_path, eos, pad, message):
    build("llama", tmp_path, eos=eos, pad=pad)
    with pytest.raises(ModelError, match=message + ".* set eos_token in its tokenizer_config.json"):
        load_model(str(tmp_path))


def test_tokenizer_missing_or_damaged_or_too_big(tmp_path):
    build("qwen3", tmp_path, tokenizer=False)
    with pytest.raises(ModelError, match="no usable tokenizer .*no vocabulary.* put the base model's tokenizer.json"):
        load_model(str(tmp_path))
    build_tokenizer().save_pretrained(tmp_path)
    for text in ("{nope", "{}"):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ModelError, match="no usable tokenizer"):
            load_model(str(tmp_path))
    build("qwen3", tmp_path / "small", vocab_size=50)
    with pytest.raises(ModelError, match=f"goes up to token {VOCABULARY - 1}, but the embedding has only 50"):
        load_model(str(tmp_path / "small"))


def test_an_added_token_beyond_the_embedding_is_accepted_and_refused_in_a_prompt(tmp_path):
    """As <image_soft_token> of Gemma 3 270M and 1B: the tokenizer of all sizes has it, their embeddings have no row."""
    folder = build("gemma3", tmp_path)
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    loaded = load_model(str(folder)).tokenizer
    assert loaded.convert_tokens_to_ids("<image>") == VOCABULARY
    for prompt, is_known in (("1+1=", True), ("<image>?", False)):
        splits = {name: [{"prompt": name + prompt}] for name in SPLITS}
        task = Task(name="toy", splits=splits, reward=lambda prompts, **_: [0.0] * len(prompts), max_new_tokens=2)
        with (
            nullcontext()
            if is_known
            else pytest.raises(DataError, match=f"the token '<image>' \\({VOCABULARY}\\), but")
        ):
            apply_length_limits(Config(model=str(folder)), task, loaded, None, VOCABULARY)
    rows = {name: [{"prompt": f"{name}?"}, {"prompt": f"{name}<image>" + 9 * "?"}] for name in SPLITS[:-1]}
    task = replace(task, splits=rows | {"eval": [{"prompt": "1"}]})
    apply_length_limits(Config(model=str(folder), max_prompt_tokens=8), task, loaded, None, VOCABULARY)
    tokenizer.eos_token = "<image>"
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=f"goes up to token {VOCABULARY}, but"):
        load_model(str(folder))


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-500])


def drop_a_tensor(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def shrink_a_tensor(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:5].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def write_nan(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_weights, "cannot be read .*incomplete metadata.*: copy or download the folder again"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot be read .*no file named model.safetensors"),
        (lambda f: (f / "config.json").write_text("{nope"), "cannot be read .*not a valid JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "cannot be read .*model_type"),
        (lambda f: (f / "config.json").write_text('{"model_type": "new"}'), "is of type `new`, which transformers"),
        (drop_a_tensor, r"is incomplete: 1 weights are not in its files \(model.layers.2.mlp.up_proj.weight\)"),
        (shrink_a_tensor, "cannot be read"),
        (write_nan, "logits that are not finite"),
    ],
)
def test_damaged_folders(tmp_path, damage, message):
    build("qwen3", tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_hub_out_of_reach():
    with pytest.raises(ModelError, match="'no-such-org/nothing' cannot be fetched: .*give a local folder: --model"):
        load_model("no-such-org/nothing")


def test_unknown_device(tiny_folder):
    for device in ("gpu", "cuda:7", "meta", "hpu"):  # the last two are names of torch's that hold no model here
        with pytest.raises(ConfigError, match=f"--device {device} cannot be used .*give auto\\b"):
            load_model(str(tiny_folder), device=device)


def bert(folder, kind):
    import transformers

    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=VOCABULARY
    )
    getattr(transformers, kind)(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def test_an_encoder_is_refused_by_its_config(tmp_path):
    bert(tmp_path, "BertForMaskedLM")
    with pytest.raises(ModelError, match=r"\(BertForMaskedLM\) is an encoder, not a causal language model"):
        load_model(str(tmp_path))


def test_an_encoder_that_claims_to_be_causal_is_found_out(tmp_path):
    bert(tmp_path, "BertLMHeadModel")
    with pytest.raises(ModelError, match="is not causal: changing its last token changes"):
        load_model(str(tmp_path))


def test_encoder_decoder_is_refused(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=32, num_layers=2, num_heads=4, d_ff=64, d_kv=8, vocab_size=VOCABULARY)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is an encoder-decoder, not a causal language model"):
        load_model(str(tmp_path))


def test_a_model_without_head_is_refused(tmp_path):
    build("llama", tmp_path)
    build_model("llama").model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaModel"]
    with pytest.raises(ModelError, match="decoder without an output head.*lm_head.weight is not in its files"):
        load_model(str(tmp_path))
