"""Sampling is exactly the policy's, reproducible per request, and scoring agrees with a plain forward."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_models import ARCHITECTURES, VOCABULARY, build_model, build_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from workbench_helpers import Untouched, plain_log_probs

from autolayer.rollouts.engines.base import Completion, end_of_turn_id, think_prefix, truncate_at_stop
from autolayer.rollouts.engines.hf import GumbelNoise, TransformersEngine, cache_bytes_per_token, noise_tokens
from autolayer.rollouts.prompts import encode_prompts
from autolayer.rollouts.rollouts import Rollouts, request_seed
from autolayer.rollouts.sampler import sample
from autolayer.tasks.base import SPLITS, Task
from autolayer.training.logprobs import ScoreBatch, log_probs, scoring

PROMPTS = ["1+1=", "23+4=", "0", "what is 7+1? ", "12", "3+3+3+3="]


def _engine(model: Any, **changes: Any) -> TransformersEngine:
    settings = {"max_new_tokens": 8, "temperature": 1.0, **changes}
    return TransformersEngine(model, build_tokenizer(), **settings)


def _ids(prompts: list[str]) -> list[list[int]]:
    return encode_prompts(build_tokenizer(), [{"prompt": text} for text in prompts], {})


def test_a_slice_takes_whole_groups_and_thinning_the_first_of_each() -> None:
    rollouts = Rollouts.of_one_turn(
        prompt_ids=[[1], [1], [1], [2], [2], [2]],
        completion_ids=[[3], [4], [5], [6], [7], [8]],
        texts=list("abcdef"),
        rewards=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
        finished=[True, False, True, False, True, False],
        group_size=3,
    )
    first = rollouts[:1]
    assert (first.texts, first.rewards, first.group_size) == (["a", "b", "c"], [0.0, 0.1, 0.2], 3)
    thin = rollouts.thinned(2)
    assert (thin.prompt_ids, thin.completion_ids) == ([[1], [1], [2], [2]], [[3], [4], [6], [7]])
    assert (thin.texts, thin.rewards, thin.group_size) == (["a", "b", "d", "e"], [0.0, 0.1, 0.3, 0.4], 2)
    assert thin.finished == [True, False, False, True] and rollouts.thinned(5) == rollouts


def _rollouts(prompt_ids: list[list[int]], completion_ids: list[list[int]], group_size: int = 1) -> Rollouts:
    count = len(prompt_ids)
    return Rollouts.of_one_turn(
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        texts=[""] * count,
        rewards=[float(i) for i in range(count)],
        finished=[False] * count,
        group_size=group_size,
    )


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_tokens_have_the_frequencies_of_the_tempered_softmax(temperature: float) -> None:
    model = build_model("qwen3", num_layers=2, vocab_size=12, initializer_range=0.3)
    prompt, count = _ids(["12"])[0], 6000
    engine = _engine(model, max_new_tokens=2, temperature=temperature, max_sequences=3000)
    sampled = engine.generate([prompt] * count, [request_seed("frequency", i) for i in range(count)])
    with torch.no_grad():
        expected = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(0).double()
    observed = torch.bincount(torch.tensor([ids[0] for ids in sampled]), minlength=12)
    assert expected.max() > 0.15  # not the uniform distribution by accident
    assert stats.chisquare(observed.numpy(), (expected / expected.sum() * count).numpy()).pvalue > 1e-3
    # The second token follows its own conditional distribution, with noise of its own.
    first = int(torch.where(torch.arange(12) == 1, 0, observed).argmax())
    followers = torch.tensor([ids[1] for ids in sampled if ids[0] == first])
    with torch.no_grad():
        expected = (model(torch.tensor([[*prompt, first]])).logits[0, -1] / temperature).softmax(0).double()
    observed = torch.bincount(followers, minlength=12)
    assert stats.chisquare(observed.numpy(), (expected / expected.sum() * len(followers)).numpy()).pvalue > 1e-3


def test_one_seed_gives_one_completion_whatever_else_is_in_the_batch() -> None:
    model = build_model("qwen3")
    prompt_ids, seeds = _ids(PROMPTS), [request_seed(i) for i in range(len(PROMPTS))]
    together = _engine(model).generate(prompt_ids, seeds)
    for max_sequences in (1, 4):
        assert _engine(model, max_sequences=max_sequences).generate(prompt_ids, seeds) == together
    backwards = _engine(model).generate(prompt_ids[::-1], seeds[::-1])
    assert backwards[::-1] == together
    assert _engine(model).generate(prompt_ids, [seed + 1 for seed in seeds]) != together


def test_one_prompt_with_different_seeds_gives_different_completions() -> None:
    engine = _engine(build_model("qwen3"))
    completions = engine.generate(_ids(["1+1="]) * 8, [request_seed("group", i) for i in range(8)])
    assert len(set(map(tuple, completions))) == 8


@pytest.mark.parametrize("architecture", ["qwen3", "mixtral", "sliding window", "gpt2", "mamba"])
def test_equal_prompts_are_prefilled_once_and_sample_the_same(architecture: str) -> None:
    """Sliding windows forget the first tokens, GPT-2 counts positions, and Mamba keeps no keys and values."""
    if architecture in ("gpt2", "mamba"):
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **small)).eval()
    elif architecture == "sliding window":
        model = build_model("gemma3", sliding_window=4)
    else:
        model = build_model(architecture)
    prompt_ids, seeds = _ids(PROMPTS) * 3, list(range(3 * len(PROMPTS)))
    apart = _engine(model)
    apart._keeps_keys_and_values = False
    read: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda *call: read.append(call[1][0].numel()))
    together = _engine(model).generate(prompt_ids, seeds)
    handle.remove()
    assert together == apart.generate(prompt_ids, seeds)
    longest = max(map(len, prompt_ids))
    shared = [len(PROMPTS) * (longest - 1), len(prompt_ids), len(prompt_ids)]
    assert read[:3] == shared if architecture != "mamba" else len(prompt_ids) * longest in read


def test_noise_drawn_in_blocks_is_each_generators_own_sequence_of_draws() -> None:
    device, vocabulary = torch.device("cpu"), 50
    noise, num_tokens = GumbelNoise([3, 4], device), noise_tokens(vocabulary, device)
    assert num_tokens > 1 and noise_tokens(10**7, device) == 1
    generators = [np.random.default_rng(seed) for seed in (3, 4)]
    for _ in range(3 * num_tokens - 1):
        logits = torch.randn(2, vocabulary)
        draws = torch.from_numpy(np.stack([generator.standard_exponential(vocabulary) for generator in generators]))
        assert torch.equal(noise(torch.empty(0), logits), logits - draws.float().log())


def test_the_head_gets_contiguous_states_and_keeps_no_hook() -> None:
    model = build_model("qwen3")
    head, states = model.get_output_embeddings(), []
    handle = head.register_forward_hook(lambda module, args, output: states.append((args[0], output)))
    _engine(model).generate(_ids(PROMPTS), range(len(PROMPTS)))
    handle.remove()
    assert len(states) > 1 and all(state.is_contiguous() for state, _ in states)
    prefill, logits = states[0]
    assert prefill.shape[:2] == (len(PROMPTS), 1) and torch.equal(
        torch.nn.functional.linear(prefill, head.weight), logits
    )
    assert not head._forward_pre_hooks and not head._forward_hooks


def test_generating_uses_and_leaves_nothing_of_the_global_random_state() -> None:
    model = build_model("qwen3").requires_grad_(False).train()
    before = Untouched(model)
    first = _engine(model).generate(_ids(PROMPTS), range(len(PROMPTS)))
    before.check()
    torch.manual_seed(1234)
    assert _engine(model).generate(_ids(PROMPTS), range(len(PROMPTS))) == first


def test_a_models_own_generation_config_changes_no_sample() -> None:
    plain, opinionated = build_model("qwen3"), build_model("qwen3")
    own = GenerationConfig(
        do_sample=True,
        temperature=0.2,
        top_k=2,
        top_p=0.3,
        min_p=0.2,
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        min_new_tokens=6,
        suppress_tokens=list(range(2, 40)),
        num_return_sequences=2,
        num_beams=1,
        max_length=9,
        eos_token_id=1,
        pad_token_id=0,
    )
    opinionated.generation_config = own
    prompt_ids, seeds = _ids(PROMPTS), list(range(len(PROMPTS)))
    expected = _engine(plain).generate(prompt_ids, seeds)
    before = own.to_dict()
    assert _engine(opinionated).generate(prompt_ids, seeds) == expected
    assert opinionated.generation_config is own and own.to_dict() == before


def test_every_declared_end_token_ends_a_completion_and_stays_in_it() -> None:
    model = build_model("qwen3")
    prompt_ids, seeds = _ids(["1+1="] * 40), list(range(40))
    free = _engine(model, max_new_tokens=12).generate(prompt_ids, seeds)
    extra = next(ids[3] for ids in free if len(ids) == 12 and ids[3] not in ids[:3])
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [extra, 1]
    engine = _engine(model, max_new_tokens=12)
    assert engine.eos_token_ids == sorted({1, extra})
    cut = engine.generate(prompt_ids, seeds)
    for whole, ids in zip(free, cut, strict=True):
        end = next((i + 1 for i, token in enumerate(whole) if token in (1, extra)), len(whole))
        assert ids == whole[:end]
        assert engine.finished(ids) == (ids[-1] in (1, extra))
    assert any(map(engine.finished, cut)) and not all(map(engine.finished, cut))


def test_the_engine_counts_its_tokens_and_its_time() -> None:
    engine = _engine(build_model("qwen3"))
    completions = engine.generate(_ids(PROMPTS), range(len(PROMPTS)))
    assert engine.tokens == sum(map(len, completions)) and engine.seconds > 0


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "mixtral"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_equal_a_plain_unpadded_forward(architecture: str, temperature: float) -> None:
    model = build_model(architecture).requires_grad_(False)
    prompt_ids = _ids(PROMPTS)
    completion_ids = [list(ids) for ids in _engine(model).generate(prompt_ids, range(len(PROMPTS)))]
    completion_ids[2] = completion_ids[2][:1]
    batch = ScoreBatch.of(_rollouts(prompt_ids, completion_ids), 0, model.device)
    before = Untouched(model)
    with scoring(model, temperature), torch.no_grad():
        found = log_probs(model, batch)
        for rows, part in batch.split(4):
            torch.testing.assert_close(log_probs(model, part), found[rows], atol=2e-6, rtol=1e-5)
    before.check()
    with torch.no_grad():
        for row, (prompt, completion) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
            expected = torch.zeros(found.shape[1])
            start = len(prompt) - 1
            expected[start : start + len(completion)] = plain_log_probs(model, prompt, completion, temperature)
            torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def test_scoring_puts_an_earlier_forward_and_mode_back_even_after_an_error(tiny_model: Any) -> None:
    earlier = tiny_model.forward
    tiny_model.forward = earlier
    tiny_model.train()
    with pytest.raises(KeyboardInterrupt), scoring(tiny_model, 1.0):
        assert not tiny_model.training
        raise KeyboardInterrupt
    assert tiny_model.__dict__["forward"] is earlier and tiny_model.training


def test_rollouts_slice_and_join_by_whole_groups() -> None:
    whole = _rollouts([[i] for i in range(12)], [[i, i] for i in range(12)], group_size=3)
    assert whole[1:3].prompt_ids == [[i] for i in range(3, 9)] and whole[1:3].rewards == [3.0, 4, 5, 6, 7, 8]
    assert Rollouts.joined([whole[:2], whole[2:]], 3) == whole and whole[:99] == whole
    assert whole.rewards_P_G().tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert (whole.num_generated, whole.num_tokens) == (24, 36)


def test_prompts_are_encoded_as_the_tokenizer_and_its_chat_template_encode_them() -> None:
    tokenizer = build_tokenizer(chat_template=True)
    messages = [{"role": "user", "content": "1+1="}]
    assert encode_prompts(tokenizer, [{"prompt": messages}], {}) == [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]  # pyright: ignore
    ]
    assert encode_prompts(tokenizer, [{"prompt": "1+1="}], {}) == [tokenizer("1+1=")["input_ids"]]


def test_request_seeds_are_63_bits_fixed_for_ever_and_all_different() -> None:
    seeds = [request_seed(run, word, i) for run in (0, 1) for word in ("train", "eval") for i in range(500)]
    assert len(set(seeds)) == 2000 and all(0 <= seed < 2**63 for seed in seeds)
    assert request_seed(0, "train", 3, 1) == 7470233510176396981


# What ends a completion, and what it begins with


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>\n{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}{{ m.role }}:{{ m.content }}\n<|im_end|>\n{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}", None),
        ("{{ raise_exception('only this way') }}", None),
        (None, None),
    ],
)
def test_a_chat_models_turn_ends_where_its_template_ends_it(template: str | None, wanted: str | None) -> None:
    """The end-of-turn token of base models with a template is often not the end-of-text token."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = template  # pyright: ignore
    found = end_of_turn_id(tokenizer)
    assert found == (None if wanted is None else tokenizer.convert_tokens_to_ids(wanted))
    model = build_model("qwen3")
    engine = TransformersEngine(model, tokenizer, max_new_tokens=4, temperature=1.0)
    assert (found in engine.eos_token_ids) == (found is not None) and tokenizer.eos_token_id in engine.eos_token_ids


@pytest.mark.parametrize(("prompt", "word"), [("1+1=<think>\n", "<think>\n"), ("1+1=<think></think>", ""), ("1", "")])
def test_thoughts_that_the_prompt_has_begun_are_thoughts(prompt: str, word: str) -> None:
    tokenizer = build_tokenizer()
    assert think_prefix(tokenizer, _ids([prompt])[0]) == word


@pytest.mark.parametrize(
    ("text", "kept"), [("1 2\nQ: 3\nQ: 4", "1 2\nQ:"), ("1 2", "1 2"), ("\nQ:", "\nQ:"), ("", ""), ("1\nQ", "1\nQ")]
)
def test_a_completion_ends_with_the_text_that_stops_it(text: str, kept: str) -> None:
    tokenizer = build_tokenizer()
    ids = _ids([text])[0] if text else []
    found = truncate_at_stop(tokenizer, Completion(ids, range(len(ids))), "\nQ:")
    assert tokenizer.decode(list(found)) == kept and found.log_probs == list(range(len(found)))


def test_a_completion_whose_last_token_stops_it_is_not_cut_off() -> None:
    engine, rows = _engine(build_model("qwen3"), max_new_tokens=1), [{"prompt": text} for text in PROMPTS]
    splits = {split: [{"prompt": f"{place}="}] for place, split in enumerate(SPLITS)}
    task = Task(name="t", splits=splits, reward=lambda completions, **_: [0.0] * len(completions), max_new_tokens=1)
    free = sample(engine, task, rows, range(6), 1)
    stop = next(text for text, done in zip(free.texts, free.finished, strict=True) if text.strip() and not done)
    stopped = sample(engine, replace(task, stop=stop), rows, range(6), 1)
    assert stopped.texts == free.texts
    assert stopped.finished == [done or stop in text for text, done in zip(free.texts, free.finished, strict=True)]


def test_a_completion_ends_where_the_context_does() -> None:
    model = build_model("qwen3")
    free = _engine(model, max_new_tokens=12)
    tight = _engine(model, max_new_tokens=12, max_context=20)
    prompts = _ids(["1+1=", "3+3+3+3+3+3+3+3=", "2"])
    whole, cut = free.generate(prompts, range(3)), tight.generate(prompts, range(3))
    assert cut == [ids[: 20 - len(prompt)] for prompt, ids in zip(prompts, whole, strict=True)]
    assert len(cut[1]) == 4 and not tight.finished(cut[1])


def test_the_cache_of_layers_of_different_widths_is_counted() -> None:
    """Gemma 4: global layers have wider heads than local ones."""
    config = AutoConfig.for_model(
        "gemma4_text", vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, global_head_dim=16, layer_types=["sliding_attention", "full_attention"] * 2,
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=100, num_kv_shared_layers=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    found = sum(
        module.out_features for name, module in model.named_modules() if name.endswith(("k_proj", "v_proj"))
    )  # its keys and values, in float32
    assert cache_bytes_per_token(model) == 4 * found
