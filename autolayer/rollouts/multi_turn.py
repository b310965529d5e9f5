r"""Episodes: a model acts in an environment over several turns, in one growing sequence.

Plain text reads `{prompt}{observation}\n> {action}\n{observation}\n> {action}\n...`; an action ends with the line. For
a chat model every observation is a message, as the chat template writes it. The sequence is put together from tokens,
never decoded and encoded again: what the model wrote is what it is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

from jinja2 import TemplateError
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from autolayer.core.errors import EpisodeError
from autolayer.rollouts.engines.base import Completion, Engine, think_prefix
from autolayer.rollouts.types import Rollouts, Turn, encode_prompts, request_seed
from autolayer.tasks.base import Row, Task
from autolayer.tasks.environment import Environment, act, begin, end, finish, make, state_of

PROMPT = "\n> "
"""Stands between an observation and the action, in plain text."""


@dataclass
class _Episode:
    """One that is being played."""

    environment: Environment
    prompt_ids: list[int]
    state: str
    completion_ids: list[int] = field(default_factory=list)
    log_probs: list[float] | None = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    prefilled: int = 0
    done: bool = False
    """Ended by the environment."""
    truncated: bool = False
    """An action hit the token limit."""
    full: bool = False
    """There is no room for another action."""

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.completion_ids


def play_episodes(engine: Engine, task: Task, rows: Sequence[Row], seeds: Sequence[int], group_size: int) -> Rollouts:
    """Plays an episode for every row, all of them turn by turn together.

    Args:
        engine: Generates the actions.
        task: With an environment.
        rows: One for each episode, groups of equal ones behind each other.
        seeds: One for each episode; its turns' follow from it.
        group_size: Episodes of a prompt.

    Raises:
        EpisodeError: An environment failed, or a first observation leaves no room for an action.
    """
    assert task.environment is not None
    form = _Chat(engine, task.chat_template_kwargs) if task.is_chat else _Plain(engine.tokenizer)
    most = engine.max_new_tokens
    room = engine.max_context - most
    with ExitStack() as opened:
        episodes = []
        for row in rows:
            environment = make(task.environment)
            opened.callback(end, environment)
            observation = begin(environment, row)
            state = state_of(environment, observation)
            episodes.append(_Episode(environment, form.first(row, observation, environment), state))
        if (longest := max(len(episode.ids) for episode in episodes)) > room:
            raise EpisodeError(
                f"a prompt and its first observation have {longest} tokens, which leaves no room for an action of "
                f"{most} in {engine.max_context}: give shorter ones, or a smaller --max-new-tokens."
            )
        _play(episodes, engine, form, seeds, room, task.max_turns)
    return Rollouts(
        prompt_ids=[episode.prompt_ids for episode in episodes],
        completion_ids=[episode.completion_ids for episode in episodes],
        turns=[tuple(episode.turns) for episode in episodes],
        actions=[tuple(episode.actions) for episode in episodes],
        rewards=[sum(turn.reward for turn in episode.turns) for episode in episodes],
        finished=[not (episode.truncated or episode.full) for episode in episodes],
        prefilled=[episode.prefilled for episode in episodes],
        log_probs=[episode.log_probs for episode in episodes],
        group_size=group_size,
    )


def _play(
    episodes: Sequence[_Episode],
    engine: Engine,
    form: _Plain | _Chat,
    seeds: Sequence[int],
    room: int,
    max_turns: int,
) -> None:
    """Turn by turn until all are done, or have no turn or room left."""
    ends = {*engine.eos_token_ids, *form.stop_ids}
    for turn in range(max_turns):
        playing = [index for index, episode in enumerate(episodes) if not (episode.done or episode.full)]
        if not playing:
            break
        written = engine.generate(
            [episodes[index].ids for index in playing],
            [request_seed(seeds[index], turn) if turn else seeds[index] for index in playing],
            stop_ids=form.stop_ids,
        )
        for index, ids in zip(playing, written, strict=True):
            episode = episodes[index]
            episode.truncated |= ids[-1] not in ends
            _take_turn(episode, ids, form, room, last=turn + 1 == max_turns)
    for episode in episodes:
        if not episode.done:
            last = episode.turns[-1]
            episode.turns[-1] = last._replace(reward=last.reward + finish(episode.environment))


def _take_turn(episode: _Episode, ids: Completion, form: _Plain | _Chat, room: int, *, last: bool) -> None:
    """Takes the action that these tokens are, and reads what it led to."""
    episode.prefilled += len(episode.ids)
    start = len(episode.completion_ids)
    said = cast(str, form.tokenizer.decode(ids, skip_special_tokens=True))
    action = (think_prefix(form.tokenizer, episode.ids) + said).strip()
    step = act(episode.environment, action)
    episode.completion_ids += ids
    if episode.log_probs is not None:
        episode.log_probs = None if ids.log_probs is None else episode.log_probs + ids.log_probs
    episode.turns.append(Turn(start, start + len(ids), step.reward, episode.state))
    episode.actions.append(action)
    episode.done = step.done
    episode.state = state_of(episode.environment, step.observation)
    if last or episode.done:
        return
    observation = form.next(ids, step.observation, episode.environment)
    episode.full = len(episode.ids) + len(observation) > room
    if not episode.full:
        episode.completion_ids += observation
        if episode.log_probs is not None:
            episode.log_probs += [0.0] * len(observation)


class _Plain:
    """Lines of text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = _line_ends(tokenizer)
        self._breaks = set(self.stop_ids)

    def first(self, row: Row, observation: str, environment: Environment) -> list[int]:
        return encode_prompts(self.tokenizer, [{"prompt": row["prompt"] + observation + PROMPT}], {})[0]

    def next(self, ids: list[int], observation: str, environment: Environment) -> list[int]:
        line = "" if ids[-1] in self._breaks else "\n"
        return list(self.tokenizer(line + observation + PROMPT, add_special_tokens=False)["input_ids"])  # pyright: ignore


class _Chat:
    """Messages."""

    def __init__(self, engine: Engine, template_kwargs: Mapping[str, Any]) -> None:
        self.tokenizer = engine.tokenizer
        self._ends = set(engine.eos_token_ids)
        self.template_kwargs = dict(template_kwargs)
        self.stop_ids: tuple[int, ...] = ()
        self._shows_tools = False

    def first(self, row: Row, observation: str, environment: Environment) -> list[int]:
        *before, last = row["prompt"]
        content = f"{last['content']}\n\n{observation}" if observation else last["content"]
        messages = [*before, {**last, "content": content}]
        with _rendering("the tools of the environment"):
            ids = encode_prompts(self.tokenizer, [{"prompt": messages}], self._options(environment))[0]
        if not self._shows_tools:
            self._check_tools(environment, ids)
        return ids

    def next(self, ids: list[int], observation: str, environment: Environment) -> list[int]:
        """What the chat template writes between one assistant message and the next.

        Found between two known words, since a template may write the messages before them in another way.
        """
        action, answer = "an action of the assistant", "an observation of the world"
        messages = [
            {"role": "user", "content": "a question"},
            {"role": "assistant", "content": action},
            {"role": getattr(environment, "role", "user"), "content": answer},
        ]
        with _rendering(f"a message of the role '{messages[-1]['role']}'"):
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **self._options(environment)
            )
        assert isinstance(text, str)
        between, _, after = text.rpartition(action)[2].partition(answer)
        found = list(self.tokenizer(between + observation + after, add_special_tokens=False)["input_ids"])  # pyright: ignore
        # The model has written the end of its message itself.
        return found[1:] if found and found[0] == ids[-1] and found[0] in self._ends else found

    def _check_tools(self, environment: Environment, ids: list[int]) -> None:
        """Once: some templates pass the tools over without a word, and the model would never hear of them."""
        names = [tool.get("function", tool).get("name", "") for tool in getattr(environment, "tools", None) or ()]
        text = str(self.tokenizer.decode(ids))
        if missing := [name for name in names if name not in text]:
            raise EpisodeError(
                f"the model's chat template does not show the tool {missing[0]} of the environment: give a model whose "
                "template lists tools, or describe them in the prompt and leave the environment's `tools` out."
            )
        self._shows_tools = True

    def _options(self, environment: Environment) -> dict[str, Any]:
        tools = getattr(environment, "tools", None)
        return self.template_kwargs if tools is None else {**self.template_kwargs, "tools": tools}


@contextmanager
def _rendering(what: str) -> Iterator[None]:
    """What a chat template raises names neither the template nor what it was to write."""
    try:
        yield
    except TemplateError as error:
        raise EpisodeError(
            f"the model's chat template cannot write {what} ({error}): give a model whose template can, or an "
            "environment without."
        ) from error


@lru_cache(maxsize=4)
def _line_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token with a line break in it."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return tuple(token for token, text in enumerate(texts) if "\n" in text)
