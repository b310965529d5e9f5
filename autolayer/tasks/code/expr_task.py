"""Loads `code:expr`, the generated problems of `expr`, judged in the sandbox."""

from collections.abc import Callable, Sequence
from typing import Any

from autolayer.tasks.base import Row, Task
from autolayer.tasks.code import expr
from autolayer.tasks.code.sandbox.jobs import Calls, Limits
from autolayer.tasks.code.sandbox.opening import open_sandbox
from autolayer.tasks.generated import without_special_tokens
from autolayer.tasks.rewards import text_of

SIZES = {"train": 2048, "probe": 256, "select": 256, "eval": 512}
INSTRUCTION = "Complete the line with a Python expression; reply with the expression only."
EXPRESSION_LIMITS = Limits(seconds=1, wall_seconds=4, memory=256 << 20, processes=1, output=1 << 16)


def load_expr(*, chat: bool, allow_unsandboxed: bool = False) -> Task:
    """Loads the task. The packaged base models read plain text; a chat model gets each line as a message.

    Raises:
        SandboxError: There is no sandbox, and that is not allowed.
    """
    return Task(
        name="code:expr",
        splits={split: _rows(split, num, chat) for split, num in SIZES.items()},
        reward=make_expr_reward(allow_unsandboxed=allow_unsandboxed),
        max_new_tokens=16,
        is_well_formed=expr.is_short_expression,
        num_eval=512,
    )


def make_expr_reward(*, allow_unsandboxed: bool = False) -> Callable[..., list[float]]:
    """Makes the reward: 1.0 for an expression that has the required value for all arguments, else 0.0."""
    open_sandbox(allow_unsandboxed=allow_unsandboxed)

    def expr_reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        names: Sequence[str],
        inputs: Sequence[Sequence[Sequence[int]]],
        outputs: Sequence[Sequence[int]],
        **_: Any,
    ) -> list[float]:
        texts = [text_of(completion) for completion in completions]
        # A group often agrees on one expression: each is run once for its prompt.
        jobs: dict[tuple[str, str], Calls] = {}
        keys = []
        for text, variables, pairs in zip(texts, names, inputs, strict=True):
            program = f"def f({variables}): return (\n{without_special_tokens(text)}\n)"
            keys.append((program, repr(pairs)) if expr.is_short_expression(text) else None)
            if keys[-1]:
                jobs.setdefault(keys[-1], Calls(program=program, calls=[("f", pair) for pair in pairs]))
        done = (
            open_sandbox(allow_unsandboxed=allow_unsandboxed).run(list(jobs.values()), EXPRESSION_LIMITS)
            if jobs
            else []
        )
        values = {key: outcome.values for key, outcome in zip(jobs, done, strict=True)}
        return [float(key is not None and _are(values[key], wanted)) for key, wanted in zip(keys, outputs, strict=True)]

    return expr_reward


def _are(values: Sequence[Any], wanted: Sequence[int]) -> bool:
    """Returns True if these are the wanted integers. 7.0 and True are not integers."""
    return len(values) == len(wanted) and all(
        type(value) is int and value == other for value, other in zip(values, wanted, strict=True)
    )


def _rows(split: str, num: int, chat: bool) -> list[Row]:
    rows = expr.expr_problems(split, num)
    for row in rows:
        del row["answer"]
        if chat:
            row["prompt"] = [{"role": "user", "content": f"{INSTRUCTION}\n{row['prompt']}"}]
    return rows
