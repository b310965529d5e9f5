"""Prompts become the tokens that TRL makes of them, and what a template or a tokenizer spoils is mended or refused."""

from typing import Any

import pytest
from datasets import Dataset
from tiny_models import CHAT_TEMPLATE, build_tokenizer
from tokenizers import processors
from workbench_helpers import make_task, mean_id

from autolayer.core.errors import DataError
from autolayer.rollouts import prompts as module
from autolayer.rollouts.prompts import encode_prompts
from autolayer.tasks.base import Task


def with_added(template: str) -> Any:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>"})
    tokens = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<bos>", "<eos>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=tokens)
    return tokenizer


@pytest.mark.parametrize("template", ["$A", "<bos> $A", "$A <eos>", "<bos> $A <eos>"])
def test_texts_begin_with_one_bos_and_end_with_no_eos(template: str) -> None:
    tokenizer = with_added(template)
    plain = tokenizer("1+1=", add_special_tokens=False)["input_ids"]
    bos = [tokenizer.bos_token_id]
    rows = [{"prompt": "1+1="}, {"prompt": "<bos>1+1="}]
    assert encode_prompts(tokenizer, rows, {}) == [(bos if "<bos>" in template else []) + plain, bos + plain]
    assert encode_prompts(tokenizer, rows[::-1], {}) == encode_prompts(tokenizer, rows, {})[::-1]
    ended = [{"prompt": "1+1=<eos>"}]
    assert encode_prompts(tokenizer, ended, {})[0][-1] == tokenizer.eos_token_id, "the text's own"


def chat(template: str = CHAT_TEMPLATE) -> Any:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_messages_are_what_the_template_makes_of_them() -> None:
    tokenizer = chat()
    messages = [{"role": "user", "content": "1+1="}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"]
    assert encode_prompts(tokenizer, [{"prompt": messages}] * 2, {}) == [list(expected)] * 2


def test_a_last_message_of_the_assistant_is_continued() -> None:
    tokenizer = chat()
    opened = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "It is "}]
    (ids,) = encode_prompts(tokenizer, [{"prompt": opened}], {})
    assert tokenizer.decode(ids).endswith("It is ")
    for blank in ("", " \n"):
        empty = [{"prompt": [opened[0], {"role": "assistant", "content": blank}]}]
        assert encode_prompts(tokenizer, empty, {}) == encode_prompts(tokenizer, [{"prompt": opened[:1]}], {})


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('System role not supported') }}", "{{ messages[9]['content'] + 1 }}", "{% broken"],
)
def test_a_template_that_refuses_a_row_names_it(template: str) -> None:
    rows = [{"prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": "1+1="}]}]
    with pytest.raises(DataError, match=r"chat template refuses the prompt \(system: 'x'; user: '1\+1='\)"):
        encode_prompts(chat(template), rows, {})


def test_a_template_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEMPLATE_SECONDS", 0.02)
    seconds = "{% for a in range(9999) %}{% for b in range(300) %}{% endfor %}{% endfor %}"  # its thread goes on
    with pytest.raises(DataError, match="not back after 0.02 seconds"):
        encode_prompts(chat(seconds), [{"prompt": [{"role": "user", "content": "1"}]}], {})


def test_half_a_character_is_refused() -> None:
    for prompt in ("1+\ud83d=", [{"role": "user", "content": "1+\ud83d="}]):
        with pytest.raises(DataError, match=r"row 0 of 'train'.*half of a character \('\\ud83d'"):
            splits = {name: [{"prompt": prompt}] for name in ("train", "probe", "select", "eval")}
            Task(name="t", splits=splits, reward=mean_id, max_new_tokens=4)


def test_splits_may_be_data_sets() -> None:
    rows = make_task().splits
    data: Any = {n: Dataset.from_list(list(rows[n])) for n in rows}
    task = Task(name="t", splits=data, reward=mean_id, max_new_tokens=4)
    assert {name: list(split) for name, split in task.splits.items()} == {n: list(rows[n]) for n in rows}
    assert task.splits["train"][:2] == rows["train"][:2]


def test_a_template_that_leaves_the_messages_out_is_refused() -> None:
    parts = "{% for m in messages %}user: {% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"
    rows = [{"prompt": [{"role": "user", "content": f"{a}+1="}]} for a in range(2)]
    with pytest.raises(DataError, match="leaves the messages out: every prompt becomes 'user: '. Repair"):
        encode_prompts(chat(parts), rows, {})
    assert encode_prompts(chat(), [rows[0], rows[0]], {}), "equal prompts are no fault"


@pytest.mark.parametrize("tokenizer", [build_tokenizer(), chat("{{ '' }}")])
def test_a_prompt_without_tokens_is_named(tokenizer: Any) -> None:
    has_template = tokenizer.chat_template is not None
    prompt = [{"role": "user", "content": "1+1="}] if has_template else ""
    with pytest.raises(DataError, match="the prompt '.*' has no tokens: leave it out"):
        encode_prompts(tokenizer, [{"prompt": prompt}], {})
