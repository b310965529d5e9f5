"""Tiny random models in Hugging Face folders, with a real tokenizer of single characters. Nothing is downloaded."""

import string
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3TextConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"
SPECIAL = ("<pad>", "<eos>")
VOCABULARY = len(SPECIAL) + len(CHARACTERS)

_CONFIGS = {
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "llama": LlamaConfig,
    "gemma3": Gemma3TextConfig,
    "qwen3_moe": Qwen3MoeConfig,
    "mixtral": MixtralConfig,
    "mamba": MambaConfig,
}
ARCHITECTURES = ("qwen2", "qwen3", "llama", "gemma3", "qwen3_moe")
_MIXTURES = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def build_tokenizer(*, eos: bool = True, pad: bool = True, chat_template: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per printable ASCII character; `<pad>` is 0 and `<eos>` is 1."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {name: token for name, token, on in (("pad_token", "<pad>", pad), ("eos_token", "<eos>", eos)) if on}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)
    if chat_template:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(
    architecture: str,
    *,
    num_layers: int = 4,
    hidden: int = 32,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    seed: int = 0,
    **config: object,
):
    """A random causal language model; `config` overrides single fields."""
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        # Larger than usual: with the usual 0.02 every completion would look alike to a random model.
        "initializer_range": 0.1,
        **_MIXTURES.get(architecture, {}),
        **config,
    }
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(_CONFIGS[architecture](**values)).to(dtype)
    torch.random.set_rng_state(state)
    model.config.dtype = dtype
    return model.eval()


def build(
    architecture: str,
    folder: Path,
    *,
    num_layers: int = 4,
    hidden: int = 32,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    seed: int = 0,
    chat_template: bool = False,
    eos: bool = True,
    pad: bool = True,
    tokenizer: bool = True,
    **config: object,
) -> Path:
    """Writes a random model and its tokenizer to a folder that `AutoModelForCausalLM` loads.

    Args:
        architecture: One of ARCHITECTURES, "mixtral" or "mamba".
        folder: Made if it is not there.
        tied: Whether the head is the embedding.
        eos, pad: Whether the tokenizer names these tokens.
        tokenizer: Whether one is written at all.
        config: Overrides fields of the model's config.
    """
    model = build_model(architecture, num_layers=num_layers, hidden=hidden, dtype=dtype, tied=tied, seed=seed, **config)
    model.save_pretrained(folder)
    if tokenizer:
        build_tokenizer(eos=eos, pad=pad, chat_template=chat_template).save_pretrained(folder)
    return folder


def build_text_and_vision(folder: Path) -> Path:
    """A checkpoint like Qwen3.5's, whose text model has another prefix in the files than in transformers."""
    text = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
        "layer_types": ["linear_attention", "full_attention"] * 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "eos_token_id": 1,
        "pad_token_id": 0,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}
    config = AutoConfig.for_model("qwen3_5", text_config=text, vision_config=vision)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder
