r"""Multi-turn episodes: a model acts in an environment over several turns, within one growing sequence.

In plain text the sequence is `{prompt}{observation}\n> {action}\n{observation}\n> {action}\n...`, and an action ends at
the line break. For a chat model every observation is a message rendered by the chat template. The sequence is built
from token ids and never decoded and encoded again, so the model is trained on exactly the tokens that it generated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

from jinja2 import TemplateError
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from autolayer.core.errors import DataError, EpisodeError
from autolayer.models.loading import num_embeddings
from autolayer.rollouts.engines.base import Completion, Engine, think_prefix
from autolayer.rollouts.prompts import check_embedded, encode_prompts, render
from autolayer.rollouts.rollouts import Rollouts, Turn, request_seed
from autolayer.tasks.base import Row, Task
from autolayer.tasks.environment import Environment, act, begin, end, finish, make, state_of
from autolayer.tasks.rewards import describe

PROMPT = "\n> "


@dataclass
class _Episode:
    environment: Environment
    prompt_ids: list[int]
    state: str
    completion_ids: list[int] = field(default_factory=list)
    log_probs: list[float] | None = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    prefilled: int = 0
    done: bool = False
    """True if the environment ended the episode."""
    truncated: bool = False
    """True if an action hit the token limit."""
    context_full: bool = False
    """True if the context has no space for another action."""

    @property
    def ids(self) -> list[int]:
        return self.prompt_ids + self.completion_ids


def play_episodes(engine: Engine, task: Task, rows: Sequence[Row], seeds: Sequence[int], group_size: int) -> Rollouts:
    """Plays one episode per row; all episodes advance together, turn by turn.

    The equal rows of a group are adjacent. There is one seed per episode, from which those of its turns are derived.
    """
    assert task.environment is not None
    renderer = _ChatMessages(engine, task.chat_template_kwargs) if task.is_chat else _PlainText(engine.tokenizer)
    max_new_tokens = engine.max_new_tokens
    max_length = engine.max_context - max_new_tokens
    with ExitStack() as opened:
        episodes = []
        for row in rows:
            environment = make(task.environment)
            opened.callback(end, environment)
            observation = begin(environment, row)
            state = state_of(environment, observation)
            episodes.append(_Episode(environment, renderer.first(row, observation, environment), state))
        if (longest := max(len(episode.ids) for episode in episodes)) > max_length:
            raise EpisodeError(
                f"a prompt and its first observation have {longest} tokens, which leaves no space for an action of "
                f"{max_new_tokens} tokens in a context of {engine.max_context}: give shorter prompts and observations, "
                "or a smaller --max-new-tokens."
            )
        _play(episodes, engine, renderer, seeds, max_length, task.max_turns)
    return Rollouts(
        prompt_ids=[episode.prompt_ids for episode in episodes],
        completion_ids=[episode.completion_ids for episode in episodes],
        turns=[tuple(episode.turns) for episode in episodes],
        actions=[tuple(episode.actions) for episode in episodes],
        rewards=[sum(turn.reward for turn in episode.turns) for episode in episodes],
        finished=[not (episode.truncated or episode.context_full) for episode in episodes],
        prefilled=[episode.prefilled for episode in episodes],
        log_probs=[episode.log_probs for episode in episodes],
        group_size=group_size,
    )


def _play(
    episodes: Sequence[_Episode],
    engine: Engine,
    renderer: _PlainText | _ChatMessages,
    seeds: Sequence[int],
    max_length: int,
    max_turns: int,
) -> None:
    ends = {*engine.eos_token_ids, *renderer.stop_ids}
    for turn in range(max_turns):
        playing = [index for index, episode in enumerate(episodes) if not (episode.done or episode.context_full)]
        if not playing:
            break
        for index in playing:
            _check_observation(engine, episodes[index])
        written = engine.generate(
            [episodes[index].ids for index in playing],
            [request_seed(seeds[index], turn) if turn else seeds[index] for index in playing],
            stop_ids=renderer.stop_ids,
        )
        for index, ids in zip(playing, written, strict=True):
            episode = episodes[index]
            episode.truncated |= ids[-1] not in ends
            _step(episode, ids, renderer, max_length, last=turn + 1 == max_turns)
    for episode in episodes:
        if not episode.done:
            last = episode.turns[-1]
            episode.turns[-1] = last._replace(reward=last.reward + finish(episode.environment))


def _check_observation(engine: Engine, episode: _Episode) -> None:
    """Raises EpisodeError if the model does not know a token of the text that it is to answer."""
    newest = episode.completion_ids[episode.turns[-1].stop :] if episode.turns else episode.prompt_ids
    method = episode.environment.step if episode.turns else episode.environment.reset
    try:
        check_embedded(
            engine.tokenizer, num_embeddings(engine.model), [newest], f"an observation of {describe(method)}"
        )
    except DataError as error:  # an environment that fails keeps the steps before
        raise EpisodeError(str(error)) from None


def _step(
    episode: _Episode, ids: Completion, renderer: _PlainText | _ChatMessages, max_length: int, *, last: bool
) -> None:
    """Sends the generated action to the environment and appends action and observation to the episode."""
    episode.prefilled += len(episode.ids)
    start = len(episode.completion_ids)
    text = cast(str, renderer.tokenizer.decode(ids, skip_special_tokens=True))
    action = (think_prefix(renderer.tokenizer, episode.ids) + text).strip()
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
    observation = renderer.next(ids, step.observation, episode.environment)
    episode.context_full = len(episode.ids) + len(observation) > max_length
    if not episode.context_full:
        episode.completion_ids += observation
        if episode.log_probs is not None:
            episode.log_probs += [0.0] * len(observation)


class _PlainText:
    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = _line_break_tokens(tokenizer)

    def first(self, row: Row, observation: str, environment: Environment) -> list[int]:
        return encode_prompts(self.tokenizer, [{"prompt": row["prompt"] + observation + PROMPT}], {})[0]

    def next(self, ids: list[int], observation: str, environment: Environment) -> list[int]:
        line = "" if ids[-1] in self.stop_ids else "\n"
        return list(self.tokenizer(line + observation + PROMPT, add_special_tokens=False)["input_ids"])  # pyright: ignore


class _ChatMessages:
    def __init__(self, engine: Engine, template_kwargs: Mapping[str, Any]) -> None:
        self.tokenizer = engine.tokenizer
        self._ends = engine.eos_token_ids
        self.template_kwargs = dict(template_kwargs)
        self.stop_ids: tuple[int, ...] = ()
        self._shows_tools = False

    def first(self, row: Row, observation: str, environment: Environment) -> list[int]:
        *before, last = row["prompt"]
        content = f"{last['content']}\n\n{observation}" if observation else last["content"]
        messages = [*before, {**last, "content": content}]
        with _template_errors("the tools of the environment"):
            ids = encode_prompts(self.tokenizer, [{"prompt": messages}], self._options(environment))[0]
        if not self._shows_tools:
            self._check_tools(environment, ids)
        return ids

    def next(self, ids: list[int], observation: str, environment: Environment) -> list[int]:
        """Returns the tokens between one assistant message and the next.

        They are cut out between two known texts, because a template may render earlier messages differently once others
        follow.
        """
        action, answer = "an action of the assistant", "an observation of the world"
        messages = [
            {"role": "user", "content": "a question"},
            {"role": "assistant", "content": action},
            {"role": getattr(environment, "role", "user"), "content": answer},
        ]
        with _template_errors(f"a message of the role '{messages[-1]['role']}'"):
            text = render(self.tokenizer, messages, **self._options(environment))
        between, _, after = text.rpartition(action)[2].partition(answer)
        found = list(self.tokenizer(between + observation + after, add_special_tokens=False)["input_ids"])  # pyright: ignore
        # The model has already generated the end of its own message.
        return found[1:] if found and found[0] == ids[-1] and found[0] in self._ends else found

    def _check_tools(self, environment: Environment, ids: list[int]) -> None:
        """Checks once that the template shows the tools, because some templates silently ignore them."""
        names = [tool.get("function", tool).get("name", "") for tool in getattr(environment, "tools", None) or ()]
        text = str(self.tokenizer.decode(ids))
        if missing := [name for name in names if name not in text]:
            raise EpisodeError(
                f"the model's chat template does not show the tool {missing[0]} of the environment: give a model whose "
                "template lists tools, or describe the tools in the prompt and remove the environment's `tools`."
            )
        self._shows_tools = True

    def _options(self, environment: Environment) -> dict[str, Any]:
        tools = getattr(environment, "tools", None)
        return self.template_kwargs if tools is None else {**self.template_kwargs, "tools": tools}


@contextmanager
def _template_errors(what: str) -> Iterator[None]:
    """Adds the template and `what` it renders to a template's error, which names neither."""
    try:
        yield
    except (DataError, TemplateError, TimeoutError) as error:
        raise EpisodeError(
            f"the model's chat template cannot render {what} ({error}): give a model whose template can, or another "
            "environment."
        ) from error


@lru_cache(maxsize=4)
def _line_break_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return tuple(token for token, text in enumerate(texts) if "\n" in text)
