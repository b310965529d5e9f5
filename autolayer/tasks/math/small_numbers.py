"""Generates `math:sums`, `math:larger` and `math:format`: small numbers, for small pretrained models.

`math:sums` has two lines, such as `3 + 4 = 7` and `6 * 9 =`. In `math:larger` three examples show that the larger of
two numbers is wanted. In `math:format` a chat model gives a sum in the form of its earlier reply, such as `= 12`.
"""

from autolayer.core.errors import DataError
from autolayer.tasks.base import Task
from autolayer.tasks.few_tokens import Problem, few_token_task, lines, turns
from autolayer.tasks.generated import without_special_tokens

SIGNS = (" =", " is")
FORMS = ("= {}", "x = {}", "-> {}")


def load_sums(*, chat: bool) -> Task:
    """Loads sums, differences and products; every model reads them as plain text."""
    return few_token_task(
        "math:sums",
        _problems(),
        lambda problem, examples, rng: lines(problem, examples, rng.choice(SIGNS)),
        max_new_tokens=4,
        stop="\n",
        is_well_formed=is_number,
    )


def load_larger(*, chat: bool) -> Task:
    """Loads pairs of numbers, the larger of which is the answer; every model reads them as plain text."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100) if a != b]
    problems = [Problem(f"{min(pair)} {max(pair)}", f"{pair[0]}, {pair[1]}", str(max(pair))) for pair in pairs]
    return few_token_task(
        "math:larger",
        problems,
        lambda problem, examples, rng: lines(problem, examples, " ->"),
        examples=3,
        max_new_tokens=4,
        stop="\n",
        is_well_formed=is_number,
    )


def load_format(*, chat: bool) -> Task:
    """Loads sums whose answer has to have the form of the assistant's earlier reply.

    Raises:
        DataError: The model has no chat template.
    """
    check_chat("math:format", chat)
    problems = [problem for problem in _problems() if "+" in problem.question and int(problem.answer) < 20]
    return few_token_task(
        "math:format",
        problems,
        lambda problem, examples, rng: turns("Answer with the number only.", problem, examples, rng.choice(FORMS)),
        max_new_tokens=6,
    )


def is_number(completion: str) -> bool:
    """Returns True if the text is a number, right or wrong."""
    return without_special_tokens(completion).isdecimal()


def check_chat(task: str, chat: bool) -> None:
    """Refuses a task that consists of messages for a model without a chat template."""
    if not chat:
        raise DataError(
            f"the prompts of '{task}' are messages, and the model has no chat template to turn them into text: take "
            "the chat version of the model, or another task."
        )


def _problems() -> list[Problem]:
    pairs = [(a, b) for a in range(2, 21) for b in range(2, 21)]
    found = [Problem(f"{min(a, b)} + {max(a, b)}", f"{a} + {b}", str(a + b)) for a, b in pairs]
    found += [Problem(f"{a} - {b}", f"{a} - {b}", str(a - b)) for a, b in pairs if a >= b]
    return found + [
        Problem(f"{min(a, b)} * {max(a, b)}", f"{a} * {b}", str(a * b)) for a, b in pairs if max(a, b) <= 12
    ]
