"""Turns prompts into tokens: texts by the tokenizer, message lists through the chat template."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from autolayer.core.errors import DataError
from autolayer.tasks.base import Row
from autolayer.tasks.rewards import show
from autolayer.tasks.time_limit import within

TEMPLATE_SECONDS = 20
"""Time limit of rendering one conversation; a template is a program, which may never end."""


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], template_kwargs: Mapping[str, Any]
) -> list[list[int]]:
    """Returns the token ids of prompts that are all plain text, or all message lists for the chat template.

    This is what TRL does, with three exceptions. A prompt never ends with the EOS that some tokenizers append, because
    nothing follows it. A text that brings its own BOS gets no second one. A last message of the assistant is continued.
    """
    prompts = [row["prompt"] for row in rows]
    if isinstance(prompts[0], str):
        start = _added_at_the_start(tokenizer, prompts[0])
        encoded = [ids if ids[: len(start)] == start else start + ids for ids in _token_ids(tokenizer, prompts)]
    else:
        texts = [_render_prompt(tokenizer, messages, template_kwargs) for messages in prompts]
        if len(set(texts)) == 1 and any(messages != prompts[0] for messages in prompts):
            raise DataError(
                f"the model's chat template leaves the messages out: every prompt becomes {show(texts[0], 60)}. Repair "
                "it (some take parts of a content only, not a text), or give another model."
            )
        encoded = _token_ids(tokenizer, texts)
    if [] in encoded:
        shown = show(prompts[encoded.index([])], 60)
        raise DataError(f"the prompt {shown} has no tokens: leave it out, or repair the model's tokenizer or template.")
    return encoded


def check_embedded(
    tokenizer: PreTrainedTokenizerBase, num_embeddings: int, encoded: Iterable[Sequence[int]], what: str
) -> None:
    """Refuses texts, named by `what`, with a token that has no embedding, such as that of images in a small Gemma 3."""
    largest = max((max(ids, default=0) for ids in encoded), default=0)
    if largest >= num_embeddings:
        raise DataError(
            f"{what} has the token {show(tokenizer.decode([largest]), 60)} ({largest}), but the model knows only "
            f"{num_embeddings} tokens: leave it out of the text."
        )


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], *, prompt: bool = True, **options: Any
) -> str:
    """Returns the text that the chat template makes of a conversation, or raises what the template raises.

    With `prompt`, the model answers next: the text ends with the opening of its message, or continues the last message
    if that is the assistant's. A template that does not end raises TimeoutError.
    """
    messages = [dict(message) for message in messages]
    if prompt and messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip():
        del messages[-1]  # opening words without a word
    continued = prompt and bool(messages) and messages[-1]["role"] == "assistant"
    options = {**options, "add_generation_prompt": prompt and not continued, "continue_final_message": continued}
    text = within(TEMPLATE_SECONDS, lambda: tokenizer.apply_chat_template(messages, tokenize=False, **options))
    return cast(str, text)


def _render_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any]
) -> str:
    try:
        return render(tokenizer, messages, **template_kwargs)
    except Exception as error:  # a template may raise anything
        shown = "; ".join(f"{message['role']}: {show(message['content'], 60)}" for message in messages)
        raise DataError(
            f"the model's chat template refuses the prompt ({shown}): {str(error) or type(error).__name__}. Give "
            "messages that it takes (many templates know no system role, or want user and assistant to alternate), or "
            "another model."
        ) from error


def _added_at_the_start(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the special tokens that the tokenizer puts before a text, usually BOS or nothing."""
    plain, around = _token_ids(tokenizer, [text])[0], _token_ids(tokenizer, [text], add_special_tokens=True)[0]
    starts = (n for n in range(len(around)) if around[n : n + len(plain)] == plain)
    return around[: next(starts, 0)]


def _token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, add_special_tokens: bool = False
) -> list[list[int]]:
    encoded = tokenizer(text=list(texts), add_special_tokens=add_special_tokens)
    return [list(ids) for ids in cast(list[list[int]], encoded["input_ids"])]
