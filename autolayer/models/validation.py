"""Checks of models and tokenizers, which raise a one-sentence error before training would fail."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autolayer.core.errors import AutolayerError, ModelError, is_out_of_memory
from autolayer.models.names import model_path


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns whatever the files of a model make the libraries raise into a ModelError that names the model."""
    try:
        yield
    except AutolayerError:
        raise
    except Exception as error:
        raise unreadable(name, model_path(name), error) from error


def unreadable(name: str, path: str, error: Exception) -> ModelError:
    """Builds the error for a model that cannot be read or fetched."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if is_out_of_memory(error):
        return ModelError(
            f"model '{name}' does not fit into the memory of this machine ({first_line(error)}): give a smaller model, "
            "end other programs, or take a machine with more memory."
        )
    if found := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
        return ModelError(
            f"model '{name}' has a Python object ({found[1]}) in its .bin files, and is not read, because such objects "
            "can run code: save its tensors alone, best as safetensors (save_pretrained)."
        )
    if isinstance(error, ImportError):
        return ModelError(
            f"model '{name}' needs a package that is not installed ({first_line(error)}): install it, or take what "
            "asks for it, such as attn_implementation, out of its config.json."
        )
    if Path(path).is_dir():
        return ModelError(
            f"model '{name}' cannot be read ({first_line(error)}): copy or download the folder again, with "
            "an unchanged config.json and all weight files."
        )
    if isinstance(error.__cause__, GatedRepoError):
        return ModelError(
            f"model '{name}' is gated on the Hugging Face Hub: accept its terms there, then run `hf auth login`."
        )
    if isinstance(error.__cause__, RepositoryNotFoundError):
        return ModelError(
            f"model '{name}' is not on the Hugging Face Hub, or is private: check the name, log in with "
            "`hf auth login`, or give a folder."
        )
    return ModelError(
        f"model '{name}' cannot be fetched: it is not in the local cache, and the Hugging Face Hub did not provide it "
        f"({first_line(error)}); go online once, or give a local folder: --model path/to/folder."
    )


def check_kind(name: str, config: Any) -> None:
    """Checks by the configuration alone that a model is a causal decoder; `check_causal` tests the weights.

    Raises:
        ModelError: The model is an encoder, an encoder-decoder or another kind.
    """
    from transformers.models.auto import modeling_auto as auto

    kinds = set(config.architectures or ())
    causal = type(config) in auto.MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder
    masked = kinds and kinds <= set(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values())
    if not causal or masked:
        kind = "an encoder-decoder" if config.is_encoder_decoder else "an encoder" if masked else "something else"
        if type(config) in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            kind = "a model of images and text, for which transformers has no class without images"
        raise ModelError(
            f"model '{name}' ({', '.join(sorted(kinds)) or config.model_type}) is {kind}, not a causal language model: "
            "RL needs a model that generates; give a decoder such as Qwen3, Llama or Gemma."
        )


def check_class(name: str, model: Any) -> None:
    """Checks that a model's class has a decoder without the head, which the trainer runs on its own.

    Raises:
        ModelError: It has none.
    """
    if model.base_model is model:
        raise ModelError(
            f"model '{name}' cannot be trained: {type(model).__name__} of transformers has no `base_model` without the "
            "output head; docs/architectures.md lists architectures that work."
        )


def check_causal(name: str, model: Any) -> None:
    """Checks that the prediction after the first of four tokens does not depend on the last token.

    Raises:
        ModelError: It depends on it, or the logits are not finite.
    """
    import torch

    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=model.device) % model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        # One row at a time, because the rows of one batch may be computed in different ways.
        first, second = (model(input_ids=row[None], use_cache=False).logits[0, 0].float() for row in ids)
    if not bool(first.isfinite().all()):
        raise ModelError(
            f"model '{name}' computes logits that are not finite, so its weights are damaged: fetch it again."
        )
    # A mixture of experts may sum its experts in another order, which causes rounding differences.
    tolerance = (1e-5 if model.dtype == torch.float32 else 1e-2) * float(first.abs().max())
    if float((first - second).abs().max()) > tolerance:
        raise ModelError(
            f"model '{name}' is not causal: changing its last token changes the prediction after the first; RL needs "
            "a decoder, so give one such as Qwen3, Llama or Gemma."
        )


def check_tokens(name: str, tokenizer: Any, num_embeddings: int) -> None:
    """Checks the special tokens and the vocabulary of a tokenizer; sets a missing pad token as TRL does.

    Added tokens may lie beyond the embedding, as that of images does in Gemma 3 without images: prompts without them
    never need their rows.

    Raises:
        ModelError: There is no eos token, or the vocabulary is larger than the embedding.
    """
    if tokenizer.eos_token_id is None:
        missing = "neither an eos_token nor a pad_token" if tokenizer.pad_token_id is None else "no eos_token"
        raise ModelError(
            f"the tokenizer of model '{name}' has {missing}, so completions cannot end: set eos_token in its "
            "tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    added = getattr(tokenizer, "get_added_vocab", dict)()  # Mistral's tokenizers tell of none
    needed = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    largest = max(needed | {index for token, index in tokenizer.get_vocab().items() if token not in added})
    if largest >= num_embeddings:
        raise ModelError(
            f"the tokenizer of model '{name}' goes up to token {largest}, but the embedding has only {num_embeddings} "
            "rows: use the tokenizer that the model was trained with."
        )


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message without its final period or colon, at most 200 characters."""
    text, kind = str(error).strip(), type(error).__name__
    if not text or isinstance(error, LookupError | ArithmeticError | TypeError | AttributeError | AssertionError):
        text = f"{kind}: {text}"  # such as KeyError: 'name', which says nothing without it
    lines = text.splitlines()
    if lines[0].endswith(":") and len(lines) > 1:  # a heading, such as those of invalid configurations
        lines[0] += f" {lines[1].strip()}"
    return lines[0].rstrip(".:")[:200]
