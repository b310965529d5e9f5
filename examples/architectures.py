"""Runs `pick` and `merge` on a tiny random model of every decoder architecture, and writes docs/architectures.md.

python examples/architectures.py                    # all of them, for the page: about 8 minutes on one CPU core
python examples/architectures.py qwen3 gemma4_text  # prints the results of some
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import autolayer
from autolayer.core.errors import AutolayerError
from autolayer.models.merge import merge
from autolayer.models.names import model_path
from autolayer.models.quiet import quiet_transformers

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"

LINEAR, SLIDING = ["linear_attention", "full_attention"] * 2, ["sliding_attention", "full_attention"] * 2
GPT = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1,
}  # fmt: skip
DELTA = {
    "layer_types": LINEAR, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}  # fmt: skip
MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4, "mamba_chunk_size": 8,
    "mamba_expand": 2,
}  # fmt: skip
LATENT = {
    "head_dim": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
INDEXER = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 2}
SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}
PER_LAYER = {
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 173, "num_kv_shared_layers": 2,
    "layer_types": SLIDING,
}  # fmt: skip

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "afmoe": {},
    "apertus": {},
    "arcee": {},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "biogpt": {},
    "bitnet": {},
    "bloom": {"n_layer": 4, "n_head": 4},
    "codegen": {**GPT, "rotary_dim": 4},
    "cohere": {},
    "cohere2": {},
    "cohere2_moe": EXPERTS,
    "cwm": {"bos_token_id": 1},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 4,
        "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {**ROUTED, **LATENT, "n_shared_experts": 1},
    "deepseek_v3": {**ROUTED, **LATENT, "n_shared_experts": 1},
    "deepseek_v32": {**ROUTED, **LATENT, **SPARSE, **INDEXER, "n_shared_experts": 1},
    "diffllama": {},
    "doge": {},
    "dots1": {**ROUTED, "n_shared_experts": 1},
    "ernie4_5": {},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
    "exaone4": {"layer_types": SLIDING, "sliding_window": 16},
    "exaone_moe": {**EXPERTS, **SPARSE, "layer_types": SLIDING, "sliding_window": 16, "num_shared_experts": 1},
    "falcon": {"head_dim": None},
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 4,
        "mamba_chunk_size": 8,
    },
    "falcon_mamba": {"state_size": 4},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "gemma3n_text": {
        **PER_LAYER,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0, 0.0, 0.0, 0.0],
        "intermediate_size": [64, 64, 64, 64],
    },
    "gemma4_text": PER_LAYER,
    "gemma4_unified_text": {"layer_types": SLIDING},
    "glm": {},
    "glm4": {},
    "glm4_moe": ROUTED,
    "glm4_moe_lite": {**ROUTED, **LATENT, **SPARSE, "n_shared_experts": 1},
    "glm_moe_dsa": {**ROUTED, **LATENT, **SPARSE, **INDEXER, "n_shared_experts": 1},
    "gpt2": {**GPT, "n_inner": 64},
    "gpt_bigcode": GPT,
    "gpt_neo": {"head_dim": None, "num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]]},
    "gpt_neox": {},
    "gpt_oss": {**LOCAL, "layer_types": SLIDING, "sliding_window": 16},
    "gptj": {**GPT, "rotary_dim": 4},
    "granite": {},
    "granite_swa": {"layer_types": SLIDING, "layer_rope_theta": [1e4] * 4, "sliding_window": 16},
    "granitemoe": LOCAL,
    "granitemoe_swa": {**LOCAL, "layer_types": SLIDING, "layer_rope_theta": [1e4] * 4, "sliding_window": 16},
    "granitemoehybrid": {
        **MAMBA,
        **LOCAL,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "shared_intermediate_size": 16,
    },
    "granitemoeshared": {**LOCAL, "shared_intermediate_size": 16},
    "helium": {},
    "hrm_text": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "hyperclovax": {},
    "jais2": {},
    "jamba": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "use_mamba_kernels": False,
    },
    "jetmoe": {**LOCAL, "kv_channels": 8},
    "kimi_linear": {
        **LATENT,
        **EXPERTS,
        **SPARSE,
        "layer_types": LINEAR,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "num_experts_per_token": 2,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {**EXPERTS, "layer_types": ["conv", "full_attention", "conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {},
    "llama": {},
    "llama4_text": {
        "num_local_experts": 2,
        "intermediate_size_mlp": 64,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 16,
    },
    "longcat_flash": {},
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "mimo_v2_flash": {**ROUTED, **SPARSE, "layer_types": SLIDING, "sliding_window": 16, "v_head_dim": 8},
    "minicpm3": LATENT,
    "minimax": {**LOCAL, "layer_types": LINEAR, "block_size": 8},
    "minimax_m2": LOCAL,
    "ministral": {},
    "ministral3": {},
    "mistral": {},
    "mixtral": LOCAL,
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 512},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {
        "hybrid_override_pattern": "M*M-",
        "layers_block_type": None,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "ssm_state_size": 4,
        "chunk_size": 8,
    },
    "olmo": {},
    "olmo2": {},
    "olmo3": {"layer_types": SLIDING, "sliding_window": 16},
    "olmo_hybrid": {**DELTA, "linear_num_key_heads": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {"num_local_experts": 4},
    "qwen2": {},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1},
    "qwen3": {},
    "qwen3_5_moe_text": {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": DELTA,
    "qwen3_moe": {**EXPERTS, "decoder_sparse_step": 1},
    "qwen3_next": {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 16},
    "recurrent_gemma": {"lru_width": 32, "block_types": ["recurrent", "attention"], "attention_window_size": 64},
    "rwkv": {"attention_hidden_size": 32, "context_length": 512},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": {**ROUTED, "n_shared_experts": 1},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": {},
    "xglm": {"d_model": 32, "num_layers": 4, "attention_heads": 4, "ffn_dim": 64},
    "xlstm": {"head_dim": None, "num_heads": 4},
    "youtu": LATENT,
    "zamba": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    },
    "zamba2": {
        "mamba_d_state": 4,
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "chunk_size": 8,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "num_mem_blocks": 1,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "adapter_rank": 4,
    },
}
"""The fields of each architecture's configuration that differ from `SMALL`."""

SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "tie_word_embeddings": False,
    "initializer_range": 0.1,
}  # fmt: skip
REWARD = "def score(prompts, completion_ids, **kwargs):\n    return [sum(ids) / len(ids) for ids in completion_ids]\n"


def small_config(architecture: str, tokenizer: Any) -> Any:
    """Returns the configuration of a tiny model."""
    values = {
        **SMALL,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        **ARCHITECTURES[architecture],
    }
    if values["head_dim"] is None:
        del values["head_dim"]  # configurations that compute it do not take it
    return AutoConfig.for_model(architecture, **values)


def build(architecture: str, folder: Path) -> None:
    """Writes a random model with the tokenizer of the packaged model `tiny`."""
    tokenizer = AutoTokenizer.from_pretrained(model_path("tiny"))
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(small_config(architecture, tokenizer), dtype=torch.float32)
    model.get_input_embeddings().weight.data.normal_(std=0.1)  # the pad token's too, which is never 0 after pretraining
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def attempt(architecture: str, folder: Path) -> str:
    """Picks, trains and merges a layer of a random model; returns "works", or "refused: " with the reason."""
    rows = [{"prompt": f"{a % 12}+{a}=", "answer": str(a)} for a in range(600)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    with quiet_transformers():
        build(architecture, folder / "model")
    try:
        autolayer.pick(
            model=str(folder / "model"), data=str(folder / "data.jsonl"), reward=f"{folder / 'reward.py'}:score",
            steps=2, prompts_per_step=2, group_size=4, max_new_tokens=5, num_eval=8, budget=4.0, seed=1, device="cpu",
            out=str(folder / "run"),
        )  # fmt: skip
        merge(None, folder / "run" / "layer.safetensors", folder / "merged")
    except AutolayerError as error:
        return f"refused: {str(error).replace(str(folder / 'model'), architecture)}"
    return "works"


def page(results: dict[str, str]) -> str:
    """Returns the page of the documentation, a table of `attempt`'s results by architecture."""
    works = sum(result == "works" for result in results.values())
    lines = [
        "# Architectures",
        "",
        "`python examples/architectures.py` makes a tiny random model of each architecture, picks and trains a layer "
        "for two steps, and merges it. What the class of an architecture cannot do is refused before any work begins.",
        "",
        f"With transformers {transformers.__version__}, {works} of {len(results)} work. The names are those of "
        "`model_type` in config.json. A checkpoint with text and vision is trained by its text model.",
        "",
        "| Architecture | Result |",
        "| --- | --- |",
        *(f"| {name} | {result.replace('|', '/')} |" for name, result in results.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", metavar="NAME", help="default: all, for the page")
    names = parser.parse_args().architectures
    results: dict[str, str] = {}
    warnings.simplefilter("ignore")
    for name in names or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = attempt(name, Path(folder))
        print(f"{name}: {results[name]}", flush=True)
    if not names:
        PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
