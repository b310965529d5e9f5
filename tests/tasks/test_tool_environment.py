"""Classes that follow TRL's environment_factory: what a model writes becomes calls, and the end a reward."""

import json
from pathlib import Path
from typing import Any

import pytest

from autolayer.core.config import Config
from autolayer.core.errors import DataError, EpisodeError, RewardError
from autolayer.tasks import SPLITS, load_task
from autolayer.tasks.agent.tool_calls import BadCall, ToolCall, tool_calls
from autolayer.tasks.agent.tool_environment import ToolEnvironment, environment_task, tool_methods
from autolayer.tasks.environment import act, begin, finish

ROWS = [{"prompt": f"Reach {n}.", "target": n} for n in range(400)]


class Counter:
    """Owns its reward, and says when it is finished."""

    limit = 100

    def reset(self, target, **row):
        assert row == {"prompt": f"Reach {target}."}, "TRL passes the prompt too"
        self.target, self.total, self.finished = target, 0, False

    def add(self, number: int) -> str:
        """Adds to the total.

        Args:
            number: How much to add.
        """
        self.total += number
        self.finished = self.total == self.target
        return f"total {self.total}"

    def fail(self) -> str:
        """Never works."""
        raise RuntimeError("out of order")

    def get_reward(self) -> float:
        return float(self.total == self.target)

    @classmethod
    def rows(cls) -> list[dict[str, Any]]:
        return ROWS

    def _hidden(self) -> None: ...


class Notes:
    """Its first observation follows the prompt, a reward function judges it, and everything is asynchronous."""

    async def reset(self, **row):
        self.notes: list[str] = []
        return " Write two notes."

    async def write(self, text: str, times: int = 1) -> int:
        """Keeps a note.

        Args:
            text: The note.
            times: How often.
        """
        self.notes += [text] * times
        return len(self.notes)


def two_notes(completions, environments, target, **kwargs):
    assert completions[0][0]["role"] == "assistant"
    return [float(len(environment.notes) == 2) for environment in environments]


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


# The calls.


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("", []),
        ("The total is 3 (three)", []),
        ("f(1) + g(2)", []),
        (call("add", number=3), [ToolCall("add", {"number": 3})]),
        (f"I add.\n{call('add', number=3)}{call('fail')}", [ToolCall("add", {"number": 3}), ToolCall("fail", {})]),
        (f"<think>{call('fail')}</think>done", []),
        ('<tool_call>{"name": "add", "arguments": "{\\"number\\": 1}"}</tool_call>', [ToolCall("add", {"number": 1})]),
        ('<tool_call>{"name": "add", "parameters": {"number": 1}}</tool_call>', [ToolCall("add", {"number": 1})]),
    ],
)
def test_calls_in_a_text(text: str, calls: list[ToolCall]) -> None:
    assert tool_calls(text) == calls


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{</tool_call>", "<tool_call>[1]</tool_call>", '<tool_call>{"name": "add"', "<tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
    ],
)  # fmt: skip
def test_calls_that_cannot_be_read_are_told_so(text: str) -> None:
    [found] = tool_calls(text)
    assert isinstance(found, BadCall) and "Invalid tool call" in str(found)


# The episode.


def counter(target: int = 5) -> ToolEnvironment:
    environment = ToolEnvironment(Counter)
    assert begin(environment, {"prompt": f"Reach {target}.", "target": target}) == ""
    return environment


def test_an_episode_that_the_object_ends() -> None:
    environment = counter()
    assert act(environment, call("add", number=2)) == ("total 2", 0.0, False)
    assert act(environment, call("add", number=3)) == ("total 5", 1.0, True)
    assert finish(environment) == 0.0, "paid already"


def test_an_episode_that_ends_with_words() -> None:
    environment = counter()
    act(environment, call("add", number=4))
    assert act(environment, "The total is 4.") == ("", 0.0, True)


def test_a_reward_is_due_when_the_turns_are_used_up() -> None:
    environment = ToolEnvironment(Notes, two_notes)
    assert begin(environment, {"prompt": "x", "target": 1}) == " Write two notes."
    assert act(environment, call("write", text="a", times=2)) == ("2", 0.0, False)
    assert finish(environment) == 1.0 and finish(environment) == 0.0


def test_the_same_object_begins_anew() -> None:
    environment = counter()
    act(environment, "stop")
    begin(environment, {"prompt": "Reach 1.", "target": 1})
    assert act(environment, call("add", number=1)).reward == 1.0


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (call("sub", number=1), "Tool sub not found."),
        (call("get_reward"), "Tool get_reward not found."),
        (call("reset", target=0), "Tool reset not found."),
        (call("_hidden"), "Tool _hidden not found."),
        (call("rows"), "Tool rows not found."),
        (call("add"), "missing 1 required positional argument"),
        (call("add", number="a"), "unsupported operand"),
        (call("add", number=1, more=2), "unexpected keyword"),
        (call("fail"), "out of order"),
        ("<tool_call>oops</tool_call>", "Invalid tool call"),
    ],
)
def test_a_bad_call_is_an_observation(action: str, words: str) -> None:
    step = act(counter(), action)
    assert step.observation.startswith("{'error': ") and words in step.observation and not step.done


def test_several_calls_are_one_turn() -> None:
    assert act(counter(), call("add", number=1) + call("add", number=2)).observation == "total 1\ntotal 3"


def test_the_reward_of_the_object_and_of_a_function_are_added() -> None:
    environment = ToolEnvironment(Counter, lambda environments, **kwargs: [0.5])
    begin(environment, {"prompt": "Reach 2.", "target": 2})
    assert act(environment, call("add", number=2)).reward == 1.5


@pytest.mark.parametrize("bad", [None, float("nan"), "1"])
def test_a_reward_that_is_no_number_is_refused(bad: Any) -> None:
    class Odd(Counter):
        def get_reward(self):
            return bad

    environment = ToolEnvironment(Odd)
    begin(environment, {"prompt": "Reach 2.", "target": 2})
    with pytest.raises(EpisodeError, match="finite number"):
        act(environment, "bye")


def test_tools_are_listed_for_the_chat_template() -> None:
    environment = counter()
    assert environment.role == "tool" and list(tool_methods(Counter())) == ["add", "fail"]
    assert environment.tools[0]["function"] == {
        "name": "add",
        "description": "Adds to the total.",
        "parameters": {
            "type": "object",
            "properties": {"number": {"type": "integer", "description": "How much to add."}},
            "required": ["number"],
        },
        "return": {"type": "string"},
    }


# The task.


def test_a_class_becomes_a_task() -> None:
    task = environment_task("count", Counter, ROWS, max_turns=3, max_new_tokens=16, num_eval=20)
    assert sum(len(task.splits[split]) for split in SPLITS) == len(ROWS)
    assert (task.max_turns, task.max_new_tokens, task.num_eval, task.reward) == (3, 16, 20, None)
    assert task.environment is not None
    first, second = task.environment(), task.environment()
    row = task.splits["eval"][0]
    begin(first, row)
    begin(second, row)
    assert act(first, call("add", number=row["target"])).reward == 1.0
    assert act(second, "bye").reward == float(row["target"] == 0), "episodes share nothing"


def test_the_same_prompt_may_lead_to_different_episodes() -> None:
    rows = [{"prompt": "Play.", "target": n} for n in range(100)]
    assert environment_task("notes", Notes, rows, reward=two_notes).splits["eval"]


class NoReset:
    def act(self) -> None: ...


class NoTool:
    def reset(self, **row): ...

    def get_reward(self): ...


class NoReward(Notes): ...


class NoDocstring(Counter):
    def double(self) -> str:
        return ""


class NoHint(Counter):
    def add(self, number):
        """Adds.

        Args:
            number: How much.
        """


class NoRow(Counter):
    def reset(self):
        return None


def broken():
    raise OSError("no display")


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (NoReset, r"NoReset has no reset\(\*\*row\)"),
        (NoTool, "NoTool has no public method besides reset"),
        (NoReward, r"NoReward has no get_reward\(\)"),
        (NoDocstring, r"NoDocstring.double' \(.*cannot be described.*docstring"),
        (NoHint, "NoHint.add'.*type hint"),
        (NoRow, r"cannot be called with the columns of a row \(prompt, target\).*add \*\*row"),
        (broken, "broken.* raised OSError: no display"),
    ],
)
def test_classes_that_cannot_be_used(factory: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        environment_task("count", factory, ROWS)


def test_rows_and_rewards_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match="has no rows"):
        environment_task("count", Counter, [])

    def asks(environments, answer, **kwargs):
        return [0.0]

    with pytest.raises(RewardError, match="missing a required argument: 'answer'"):
        environment_task("notes", Notes, ROWS, reward=asks)


FILE = '''
class Counter:
    """As in autolayer/tasks/agent/tool_environment.py."""

    max_turns = 4

    def reset(self, target, **row):
        self.target, self.total = target, 0

    def add(self, number: int) -> str:
        """Adds to the total.

        Args:
            number: How much to add.
        """
        self.total += number
        return f"total {self.total}"

    def get_reward(self):
        return float(self.total == self.target)

    @classmethod
    def rows(cls):
        return [{"prompt": f"Reach {n}.", "target": n} for n in range(100)]


class WithoutRows:
    def reset(self, **row): ...


class BadRows(Counter):
    @classmethod
    def rows(cls):
        return open("no such file")


def counting():
    from autolayer.tasks.agent.tool_environment import environment_task

    return environment_task("counting", Counter, Counter.rows(), max_turns=2)
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(FILE)
    return tmp_path / "own.py"


def test_a_class_of_ones_own_is_a_task(file: Path) -> None:
    task = load_task(Config(model="m", task=f"{file}:Counter"), chat=False)
    assert (task.name, task.max_turns, task.max_new_tokens) == ("Counter", 4, 512)
    task = load_task(Config(model="m", task=f"{file}:counting"), chat=False)
    assert (task.name, task.max_turns) == ("counting", 2)


def test_a_class_without_rows_is_told_what_to_add(file: Path) -> None:
    with pytest.raises(DataError, match=r"which episodes there are: give it a class method rows\(\)"):
        load_task(Config(model="m", task=f"{file}:WithoutRows"), chat=False)
    with pytest.raises(DataError, match=r"raised FileNotFoundError: .*own.py:\d+"):
        load_task(Config(model="m", task=f"{file}:BadRows"), chat=False)
