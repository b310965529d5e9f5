"""A tiny Llama in the GGUF format, written as llama.cpp's converter writes one."""

from pathlib import Path
from typing import Any

import numpy
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from tiny_models import build_model
from transformers.convert_slow_tokenizer import bytes_to_unicode

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "th"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"
NAMES = {
    "model.embed_tokens.": "token_embd.", "model.norm.": "output_norm.", "lm_head.": "output.",
    "model.layers.": "blk.", "self_attn.q_proj.": "attn_q.", "self_attn.k_proj.": "attn_k.",
    "self_attn.v_proj.": "attn_v.", "self_attn.o_proj.": "attn_output.", "input_layernorm.": "attn_norm.",
    "post_attention_layernorm.": "ffn_norm.", "mlp.gate_proj.": "ffn_gate.", "mlp.up_proj.": "ffn_up.",
    "mlp.down_proj.": "ffn_down.",
}  # fmt: skip


def build_llama() -> Any:
    return build_model("llama", num_layers=2, vocab_size=len(TOKENS), bos_token_id=1, eos_token_id=2, pad_token_id=2)


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    extra: dict[str, numpy.ndarray] | None = None,
    without: str = "",
    **metadata: str,
) -> Path:
    """Writes `build_llama()`; `kind` is the type of its matrices, `metadata` has values for keys with dots as `__`."""
    model = build_llama()
    writer, config = GGUFWriter(path, architecture), model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type({GGMLQuantizationType.F32: 0, GGMLQuantizationType.F16: 1}.get(kind, 3))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for key, value in {"tokenizer__ggml__pre": "smollm", **metadata}.items():
        writer.add_string(key.replace("__", "."), value)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        for old, new in NAMES.items():
            name = name.replace(old, new) if not new.startswith("ffn_norm") or "post" in name else name
        if without and without in name:
            continue
        for part, count in heads.items():
            if f"attn_{part[0]}." in name:  # llama.cpp pairs the halves of each head in another order
                tensor = tensor.view(count, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        values = tensor.numpy().astype(numpy.float32)
        as_kind = kind if values.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(name, quantize(values, as_kind), raw_dtype=as_kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40, 60)[None]).logits
