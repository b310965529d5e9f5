"""Loads `agent:keys`, the generated mazes in the four splits."""

from functools import partial

from autolayer.tasks.agent.keys import MAX_TURNS, Keys, is_keys_action, make_maze
from autolayer.tasks.agent.rows import seeded_rows
from autolayer.tasks.base import Task

SIZES = {"train": 2048, "probe": 256, "select": 256, "eval": 512}
INSTRUCTION = f"""You are in a maze and walk to its exit step by step. Your actions:
go CELL (a neighbouring cell that the ways lead to; a way with a closed door is no way)
take COLOUR (the key of that colour, if it lies in your cell; you can carry all of them)
open COLOUR (the door of that colour, if it is next to your cell and you have its key)
You have {MAX_TURNS} actions. Reply with one action and nothing else. Below you read where to go, which cells have a \
way between them, where the keys are, and what you see now."""


def load_keys(*, chat: bool, dense: bool = False) -> Task:
    """Loads the task. A base model reads plain text; a chat model also gets an explanation of the actions.

    Args:
        chat: Makes the prompts messages.
        dense: Also rewards opening a door that has to be opened.
    """
    return Task(
        name="agent:keys",
        splits=seeded_rows(lambda seed: make_maze(seed).prompt, SIZES, INSTRUCTION if chat else None),
        environment=partial(Keys, dense=dense),
        max_turns=MAX_TURNS,
        max_new_tokens=32 if chat else 8,
        max_context=4096 if chat else 1024,
        is_well_formed=is_keys_action,
        num_eval=256,
    )
