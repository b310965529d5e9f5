"""Merged checkpoints of several kinds in transformers 5, transformers 4 and vLLM, beside the model that was trained.

    pip install --target TF4 --no-deps transformers==4.57.3 "huggingface_hub<1" "tokenizers<0.23" requests urllib3 \
      idna certifi charset-normalizer
    python examples/benchmarks/merge_matrix.py --transformers4 TF4 [--vllm .venv-vllm/bin/python]   # CPU: 6 minutes

Random bases of four layers of width 64 in bfloat16, written by transformers 4 where it knows the architecture. A patch
changes layer 2, and `merge` writes the folder. Every library loads both folders in float32.
A figure is the largest difference of a log-probability from the trained model in memory, over all tokens and positions
of a prompt. The tokenizer and the processor are named where they give what the base's give in the same library.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

LAYER, WORDS = 2, 160
TOLERANCE = 1e-4
IDS = [5 + (7 * i * i + 3 * i) % (WORDS - 6) for i in range(24)]
IMAGE_TOKENS = ("<image>", "<boi>", "<eoi>", "<video>")
TEXT = {
    "vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512, "rope_theta": 1e6, "pad_token_id": 0,
    "eos_token_id": 1, "bos_token_id": None, "initializer_range": 0.1,
}  # fmt: skip
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"] * 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GEMMA_EYE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 28, "patch_size": 14}  # fmt: skip
QWEN_EYE = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3": ("qwen3", TEXT),
    "Llama": ("llama", TEXT),
    "Gemma 3 with vision": ("gemma3", {
        "text_config": {**TEXT, "layer_types": ["sliding_attention", "full_attention"] * 2},
        "vision_config": GEMMA_EYE, "mm_tokens_per_image": 4, "image_token_index": 2, "boi_token_index": 3,
        "eoi_token_index": 4}),
    "Qwen3.5 with vision": ("qwen3_5", {
        "text_config": {**TEXT, **LINEAR}, "vision_config": QWEN_EYE, "image_token_id": 2, "vision_start_token_id": 3,
        "vision_end_token_id": 4, "video_token_id": 5}),
    "Llama in shards": ("llama", TEXT),
    "Qwen3-Next with `mtp.*`": ("qwen3_next", {**TEXT, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 32}),
}  # fmt: skip


def model_class(sees: bool) -> Any:
    return transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM


def make(folder: Path) -> None:
    """Writes the base whose number is in the folder's name: model, tokenizer, processor."""
    kind, (architecture, values) = list(KINDS.items())[int(folder.name.rpartition("-")[2])]
    sees = "vision_config" in values
    torch.manual_seed(0)
    model: Any = model_class(sees).from_config(transformers.AutoConfig.for_model(architecture, **values))
    shards = {"max_shard_size": "60KB"} if "shards" in kind else {}
    model.to(torch.bfloat16).save_pretrained(folder, **shards)
    if "mtp" in kind:
        file = folder / "model.safetensors"
        save_file({**load_file(file), "mtp.fc.weight": torch.randn(64, 128).bfloat16()}, file, {"format": "pt"})
    words = ["<pad>", "<eos>", *IMAGE_TOKENS, *map(str, range(WORDS - 6))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {f"{word.strip('<>')}_token": word for word in IMAGE_TOKENS}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", extra_special_tokens=named
    )
    if not sees:
        tokenizer.save_pretrained(folder)
    elif architecture == "gemma3":
        from transformers import Gemma3ImageProcessor, Gemma3Processor

        eye = Gemma3ImageProcessor(size={"height": 28, "width": 28})
        Gemma3Processor(eye, tokenizer, image_seq_length=4).save_pretrained(folder)
    else:  # its classes need torchvision, whose files are therefore written by hand
        tokenizer.save_pretrained(folder)
        size = {"shortest_edge": 1024, "longest_edge": 4096}
        about = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "processor_class": "Qwen3VLProcessor",
                 "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": size}  # fmt: skip
        eye = {"image_processor_type": "Qwen2VLImageProcessorFast", **about}
        film = {"video_processor_type": "Qwen3VLVideoProcessor", **about}
        (folder / "preprocessor_config.json").write_text(json.dumps(eye))
        (folder / "video_preprocessor_config.json").write_text(json.dumps(film))


def logprobs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([IDS])).logits[0, :-1].float().log_softmax(-1)


def read(folder: Path) -> dict[str, Any]:
    """Returns what transformers makes of a folder; a part that it cannot load is the reason."""
    text, config = "1 2 3 50 7 7 60 9", transformers.AutoConfig.from_pretrained(folder)
    sees = hasattr(config, "vision_config")
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    found: dict[str, Any] = {"version": transformers.__version__, "tokenizer": tokens}
    model = model_class(sees).from_pretrained(folder, dtype=torch.float32)
    found["logprobs"] = logprobs(model)
    if sees:
        try:
            process: Any = transformers.AutoProcessor.from_pretrained(folder)
            seen = process(text=f"<boi> {text}", images=Image.new("RGB", (28, 28), "red"))
            found["processor"] = {name: torch.as_tensor(value) for name, value in seen.items()}
        except (ImportError, ValueError, OSError) as error:
            found["processor"] = " ".join(str(error).split())
    return found


def read_by_vllm(folder: Path) -> dict[str, Any]:
    """Returns what vLLM's CPU build computes from a folder."""
    from vllm import LLM, SamplingParams, __version__  # pyright: ignore[reportMissingImports]

    model: Any = LLM(str(folder), dtype="float32", max_model_len=64, enforce_eager=True, max_logprobs=-1,
                     gpu_memory_utilization=0.05)  # fmt: skip
    settings = SamplingParams(max_tokens=1, prompt_logprobs=-1)
    rows = model.generate([{"prompt_token_ids": IDS}], settings, use_tqdm=False)[0].prompt_logprobs[1:]
    table = [[row[token].logprob for token in range(WORDS)] for row in rows]
    return {"version": __version__, "logprobs": torch.tensor(table)}


def attempt(verb: str, *arguments: Any) -> Any:
    """Returns what a function of this file returns, or in one line why it failed."""
    try:
        return {"make": make, "read": read, "read_by_vllm": read_by_vllm}[verb](*arguments)
    except Exception as error:  # any of a library's
        return " ".join(f"{type(error).__name__}: {error}".split())


def run(python: str, path: str | None, verb: str, folders: Iterable[Path]) -> list[Any]:
    """Calls a function of this file for some folders, in a process of an environment of its own."""
    with tempfile.NamedTemporaryFile(suffix=".pt") as answers:
        # vLLM reads its settings from here.
        settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1",
                    "VLLM_CPU_OMP_THREADS_BIND": "nobind", **({"PYTHONPATH": path} if path else {})}  # fmt: skip
        command = [python, __file__, "--answer", answers.name, verb, *map(str, folders)]
        subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, **settings})
        return torch.load(answers.name)


def train(base: Path, patch: Path) -> tuple[torch.Tensor, float]:
    """Writes a patch of one layer; returns the trained model's log-probabilities, and how far the patch moves them."""
    from autolayer.models.layers import layer_parameters
    from autolayer.models.loading import load_model
    from autolayer.models.patch import LayerPatch, apply

    loaded = load_model(str(base), device="cpu")
    tensors = {n: p.detach() + 0.05 * torch.randn_like(p) for n, p in layer_parameters(loaded.model, (LAYER,)).items()}
    made = LayerPatch(tensors=tensors, base=str(base), base_hash=loaded.weight_hash, layers=(LAYER,), task="none",
                      algorithm="grpo", steps=1)  # fmt: skip
    made.save(patch)
    before = logprobs(transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    apply(loaded.model, made)
    after = logprobs(loaded.model.float())
    return after, float((after - before).abs().max())


def changed_tensors(base: Path, merged: Path) -> str:
    """Counts the tensors of which a bit differs, in the trained layer and elsewhere."""
    stored = [{k: v for f in sorted(d.glob("*.safetensors")) for k, v in load_file(f).items()} for d in (base, merged)]
    before, after = ({k: (v.dtype, v.reshape(-1).view(torch.uint8)) for k, v in each.items()} for each in stored)
    assert before.keys() == after.keys()
    other = [k for k in before if before[k][0] != after[k][0] or not torch.equal(before[k][1], after[k][1])]
    trained = [k for k in before if f".layers.{LAYER}." in k and not k.startswith("mtp.")]
    return f"{len(set(other) & set(trained))} of {len(trained)}, {len(set(other) - set(trained))} elsewhere"


def verdict(base: Any, merged: Any, wanted: torch.Tensor) -> str:
    """Returns a cell of the table: how far the log-probabilities are from those wanted, and what is as in the base."""
    if isinstance(base, str) or isinstance(merged, str):
        return f"as the base: {merged[:90]}" if merged == base else f"WRONG: {merged}"
    far, kept = float((merged["logprobs"] - wanted).abs().max()), []
    for part in sorted({"tokenizer", "processor"} & base.keys()):
        reason = f" (none, as the base: {base[part][:90]})" if isinstance(base[part], str) else ""
        kept.append(f"{'' if same(base[part], merged[part]) else 'WRONG '}{part}{reason}")
    return ", ".join([f"{'' if far < TOLERANCE else 'WRONG '}{far:.0e} ({merged['version']})", *kept])


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    return first == second


def main() -> int:
    from autolayer.models.merge import merge

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers4", metavar="FOLDER", help="where pip has put transformers 4")
    parser.add_argument("--vllm", metavar="PYTHON", help="a Python that has vLLM")
    parser.add_argument("--only", metavar="NUMBER", type=int, help="one row of the table, from 0")
    options = parser.parse_args()
    table, cells = Table(box=MARKDOWN), {}
    for name in ("base", "moved by", "tensors changed", "transformers 5", "transformers 4", "vLLM"):
        table.add_column(name)
    with tempfile.TemporaryDirectory() as scratch:
        bases = {kind: Path(scratch) / f"base-{number}" for number, kind in enumerate(KINDS)
                 if options.only in (None, number)}  # fmt: skip
        pairs = {kind: (base, base.with_name(f"merged-{base.name}")) for kind, base in bases.items()}
        old = options.transformers4
        if old:
            run(sys.executable, old, "make", bases.values())
        wanted = {}
        for kind, (base, merged) in pairs.items():
            if not base.exists():
                make(base)
            wanted[kind], moved = train(base, base.with_suffix(".safetensors"))
            merge(None, base.with_suffix(".safetensors"), merged)
            cells[kind] = [f"{moved:.2f}", changed_tensors(base, merged)]
        folders = [folder for pair in pairs.values() for folder in pair]
        for path in (None, old) if old else (None,):
            found = run(sys.executable, path, "read", folders)
            for kind, base, merged in zip(pairs, found[::2], found[1::2], strict=True):
                cells[kind].append(verdict(base, merged, wanted[kind]))
        for kind, (base, merged) in pairs.items() if options.vllm else ():  # a second engine would inherit its groups
            found = run(options.vllm, None, "read_by_vllm", [merged])[0]
            before = run(options.vllm, None, "read_by_vllm", [base])[0] if isinstance(found, str) else {}
            cells[kind].append(verdict(before, found, wanted[kind]))
    for kind, row in cells.items():
        table.add_row(kind, *row)
    Console(width=400).print(table)
    return int(any("WRONG" in cell for row in cells.values() for cell in row))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:  # in an environment of its own
        _, _, answers, verb, *folders = sys.argv
        torch.save([attempt(verb, Path(folder)) for folder in folders], answers)
    else:
        sys.exit(main())
