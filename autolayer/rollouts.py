"""Rollouts: prompts in, sampled completions out, and the log-probabilities a policy gives them.

Sampling adds one request's own Gumbel noise to the logits and takes the largest (the Gumbel-max trick), which is
exact sampling at the given temperature. Two policies that answer one request with one seed therefore differ only
where their probabilities do, and paired comparisons need far fewer items. Top-p and top-k, which cut the tail that RL
learns from, are for evaluation only (`TransformersEngine.decoding`).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import psutil
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from trl.trainer.utils import add_fused_lm_head

from autolayer.masks import mask_tail
from autolayer.tasks.base import Row
from autolayer.tasks.suites import Decoding

UNLIMITED = 1 << 30
MAX_SEQUENCES = 512
"""Sequences generated at once, at the most: more are hardly any faster."""

# P prompts, G completions of a group, B = P * G sequences, T tokens, D hidden width.


def request_seed(*words: object) -> int:
    """A 63-bit seed from words such as (run seed, "train", step, index): the same on every machine."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Turn(NamedTuple):
    """One action of an episode, or the whole completion of a task without an environment."""

    start: int
    stop: int
    """The model's own tokens are `completion_ids[start:stop]`; what lies between two turns it has read."""
    reward: float
    state: str
    """The state that the action was taken in, by name; '' where there is no environment."""


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Sampled completions of P prompts, G each, in prompt order: lists of length B = P * G."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    """From the first token written to the last; over several turns with the observations in between."""
    turns: list[tuple[Turn, ...]]
    actions: list[tuple[str, ...]]
    """What was written, decoded without special tokens: the completion, or one text for each turn."""
    rewards: list[float]
    """Over several turns the sum of their rewards."""
    finished: list[bool]
    """Ended by itself, not by the token limit; over several turns, every action did."""
    prefilled: list[int]
    """Tokens read in order to write: the prompt, and over several turns everything so far, again for each of them."""
    group_size: int

    @classmethod
    def of_one_turn(
        cls,
        prompt_ids: list[list[int]],
        completion_ids: list[list[int]],
        texts: list[str],
        rewards: list[float],
        finished: list[bool],
        group_size: int,
    ) -> Rollouts:
        """Those of a task without an environment."""
        return cls(
            prompt_ids=prompt_ids,
            completion_ids=completion_ids,
            turns=[(Turn(0, len(ids), reward, ""),) for ids, reward in zip(completion_ids, rewards, strict=True)],
            actions=[(text,) for text in texts],
            rewards=rewards,
            finished=finished,
            prefilled=list(map(len, prompt_ids)),
            group_size=group_size,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rollouts:
        """From plain values, as `dataclasses.asdict` makes them."""
        turns = [tuple(Turn(*turn) for turn in episode) for episode in values["turns"]]
        return cls(**{**values, "turns": turns, "actions": list(map(tuple, values["actions"]))})

    @property
    def texts(self) -> list[str]:
        """What was written; each action in lines of its own."""
        return ["\n".join(actions) for actions in self.actions]

    def well_formed(self, is_well_formed: Callable[[str], bool]) -> list[float]:
        """For each completion, the share of its actions that look like one; 0 or 1 where there is one turn."""
        return [sum(map(is_well_formed, actions)) / max(1, len(actions)) for actions in self.actions]

    @property
    def num_generated(self) -> int:
        return sum(turn.stop - turn.start for turns in self.turns for turn in turns)

    @property
    def num_tokens(self) -> int:
        """Of whole sequences, as they are trained on."""
        return sum(map(len, self.completion_ids)) + sum(map(len, self.prompt_ids))

    def own_masks(self) -> list[list[int]]:
        """For each completion, 1 at the tokens that the model wrote."""
        masks = [[0] * len(ids) for ids in self.completion_ids]
        for mask, turns in zip(masks, self.turns, strict=True):
            for turn in turns:
                mask[turn.start : turn.stop] = [1] * (turn.stop - turn.start)
        return masks

    def rewards_P_G(self) -> torch.Tensor:
        return torch.tensor(self.rewards, dtype=torch.float64).view(-1, self.group_size)

    def __add__(self, other: Rollouts) -> Rollouts:
        joined = {name: getattr(self, name) + getattr(other, name) for name in LISTS}
        return Rollouts(**joined, group_size=self.group_size)

    def __getitem__(self, prompts: slice) -> Rollouts:
        """The rollouts of a slice of the prompts, whole groups."""
        start, stop, _ = prompts.indices(len(self.rewards) // self.group_size)
        return self._take(range(start * self.group_size, stop * self.group_size), self.group_size)

    def thinned(self, completions: int) -> Rollouts:
        """The first so many completions of every group."""
        rows = [row for row in range(len(self.rewards)) if row % self.group_size < completions]
        return self._take(rows, min(completions, self.group_size))

    def _take(self, rows: Sequence[int], group_size: int) -> Rollouts:
        return Rollouts(**{name: [getattr(self, name)[row] for row in rows] for name in LISTS}, group_size=group_size)


LISTS = ("prompt_ids", "completion_ids", "turns", "actions", "rewards", "finished", "prefilled")
"""The fields of Rollouts that have an entry for each completion."""


def encode_prompts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], template_kwargs: dict) -> list[list[int]]:
    """Token ids of plain-text prompts, or of message lists through the chat template, as TRL makes them."""
    prompts = [row["prompt"] for row in rows]
    if not isinstance(prompts[0], str):
        encoded = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, tokenize=True, return_dict=True, **template_kwargs
        )
        return [list(ids) for ids in encoded["input_ids"]]  # pyright: ignore
    return [list(ids) for ids in tokenizer(text=prompts)["input_ids"]]  # pyright: ignore


class TransformersEngine:
    """Generates with the model itself: always in step with the weights, no second copy."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        temperature: float,
        max_context: int | None = None,
        max_sequences: int = MAX_SEQUENCES,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.top_k, self.top_p = 0, 1.0
        positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        self.context = min(max_context or UNLIMITED, positions or UNLIMITED)
        """Tokens of a sequence at the most, read and written together."""
        self.max_sequences = max_sequences
        """Sequences generated at once, at the most, where half of the free memory holds their key-value cache."""
        self.seconds, self.tokens = 0.0, 0
        """Time spent and tokens generated so far: the measured price of a generated token."""
        declared = model.generation_config.eos_token_id if model.generation_config is not None else None
        declared = [declared] if isinstance(declared, int) else list(declared or [])
        # `read_tokenizer` has refused a tokenizer without these.
        self.pad_token_id = cast(int, tokenizer.pad_token_id)
        self.eos_token_ids = sorted({cast(int, tokenizer.eos_token_id), *declared})
        # Every field that a model's own generation config could change is set here: RL samples from the policy itself.
        self.config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            pad_token_id=self.pad_token_id,
            eos_token_id=self.eos_token_ids,
            bos_token_id=tokenizer.bos_token_id,
            disable_compile=True,
        )

    @contextlib.contextmanager
    def decoding(self, decoding: Decoding | None) -> Iterator[None]:
        """Samples inside as an evaluation asks for, outside from the policy again; None changes nothing."""
        before = self.temperature, self.top_k, self.top_p, self.config.max_new_tokens
        try:
            if decoding is not None:
                self.temperature, self.top_k, self.top_p = decoding.temperature, decoding.top_k, decoding.top_p
                self.config.max_new_tokens = decoding.max_new_tokens
            yield
        finally:
            self.temperature, self.top_k, self.top_p, self.config.max_new_tokens = before

    def generate(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], *, stop_ids: Sequence[int] = ()
    ) -> list[list[int]]:
        """Samples one completion per prompt, the token that ended it included where it ended by itself.

        Args:
            prompt_ids: Token ids, one list per request.
            seeds: One seed per request: equal prompt, weights and seed give the same completion.
            stop_ids: Tokens that end a completion besides the end-of-text tokens.
        """
        started = time.perf_counter()
        completions: list[list[int]] = []
        longest = max(map(len, prompt_ids), default=0) + self.config.max_new_tokens
        at_once = min(self.max_sequences, sequences_that_fit(self.model, longest))
        for start in range(0, len(prompt_ids), at_once):
            stop = start + at_once
            completions += self._generate_batch(prompt_ids[start:stop], seeds[start:stop], stop_ids)
        self.seconds += time.perf_counter() - started
        self.tokens += sum(map(len, completions))
        return completions

    def _generate_batch(
        self, prompt_ids: list[list[int]], seeds: Sequence[int], stop_ids: Sequence[int]
    ) -> list[list[int]]:
        device = self.model.device
        width = max(map(len, prompt_ids))
        pad = self.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompt_ids], device=device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=device)
        noise = LogitsProcessorList([_GumbelNoise(seeds, self.temperature, device, self.top_k, self.top_p)])
        config, ends = self.config, {*self.eos_token_ids, *stop_ids}
        if stop_ids:
            config = copy.deepcopy(config)
            config.eos_token_id = sorted(ends)
        with _generation_mode(self.model, config), torch.no_grad():
            output = cast(Any, self.model).generate(
                input_ids=input_ids, attention_mask=mask, generation_config=config, logits_processor=noise
            )
        return [_until_end(ids, ends) for ids in output[:, width:].tolist()]  # pyright: ignore

    def finished(self, completion_ids: list[int]) -> bool:
        return bool(completion_ids) and completion_ids[-1] in self.eos_token_ids


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    """Cuts the padding after the first token that ends a completion, which stays."""
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return ids


def sequences_that_fit(model: PreTrainedModel, num_tokens: int) -> int:
    """How many sequences of this length the key-value cache can hold in half of the free memory."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    on_gpu = model.device.type == "cuda"
    free = torch.cuda.mem_get_info(model.device)[0] if on_gpu else psutil.virtual_memory().available
    return max(1, int(free / 2 / (per_token * num_tokens)))


class _GumbelNoise(LogitsProcessor):
    """Logits over temperature, without their tail, plus each request's own noise: the largest is a sample."""

    def __init__(
        self, seeds: Sequence[int], temperature: float, device: torch.device, top_k: int = 0, top_p: float = 1.0
    ) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        logits = mask_tail(scores.float() / self.temperature, top_k=self.top_k, top_p=self.top_p)
        return logits - noise.log_()


@contextlib.contextmanager
def _generation_mode(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Evaluation mode and our generation config; `generate` fills whatever is unset from the model's own."""
    training, own = model.training, model.generation_config
    try:
        model.eval()
        model.generation_config = config
        yield
    finally:
        model.generation_config = own
        model.train(training)


@dataclass(frozen=True, kw_only=True)
class ScoreBatch:
    """Prompt and completion of B sequences, padded on the right, ready to be scored."""

    input_ids: torch.Tensor
    """(B, T)"""
    attention_mask: torch.Tensor
    """(B, T), 1 at real tokens."""
    completion_mask: torch.Tensor
    """(B, T), 1 at the tokens that the model wrote."""

    @classmethod
    def of(cls, rollouts: Rollouts, pad_token_id: int, device: torch.device) -> ScoreBatch:
        triples = list(zip(rollouts.prompt_ids, rollouts.completion_ids, rollouts.own_masks(), strict=True))
        width = max(len(prompt) + len(completion) for prompt, completion, _ in triples)

        def padded(fill: int, make) -> torch.Tensor:
            rows = [make(*triple) for triple in triples]
            return torch.tensor([row + [fill] * (width - len(row)) for row in rows], device=device)

        return cls(
            input_ids=padded(pad_token_id, lambda p, c, own: p + c),
            attention_mask=padded(0, lambda p, c, own: [1] * (len(p) + len(c))),
            completion_mask=padded(0, lambda p, c, own: [0] * len(p) + own),
        )

    def split(self, max_sequences: int) -> Iterator[tuple[slice, ScoreBatch]]:
        """Micro-batches, each with the rows it covers."""
        for start in range(0, len(self.input_ids), max_sequences):
            rows = slice(start, min(start + max_sequences, len(self.input_ids)))
            yield (
                rows,
                ScoreBatch(
                    input_ids=self.input_ids[rows],
                    attention_mask=self.attention_mask[rows],
                    completion_mask=self.completion_mask[rows],
                ),
            )


@contextlib.contextmanager
def scoring(model: PreTrainedModel, temperature: float) -> Iterator[None]:
    """Lets `log_probs` run on the model: TRL's fused head, which never holds all logits, put on and taken off."""
    before = model.__dict__.get("forward")
    training = model.training
    try:
        add_fused_lm_head(model, temperature=temperature)
        model.eval()
        yield
    finally:
        model.train(training)
        if before is None:
            model.__dict__.pop("forward", None)
        else:
            model.__dict__["forward"] = before


def log_probs(model: PreTrainedModel, batch: ScoreBatch) -> torch.Tensor:
    """Log-probability of every completion token under the model, shape (B, T - 1), zero elsewhere.

    Works inside `scoring(model, temperature)` only.
    """
    labels = batch.input_ids.masked_fill(batch.completion_mask == 0, -100)
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels, fused_lm_head=True)
    return output.log_probs
