"""Loads `agent:house`, the generated houses in the four splits."""

from functools import partial

from autolayer.tasks.agent.house import CLOSED, MAX_TURNS, House, is_house_action, make_world
from autolayer.tasks.agent.rows import seeded_rows
from autolayer.tasks.base import Task

SIZES = {"train": 4096, "probe": 512, "select": 512, "eval": 1024}
INSTRUCTION = f"""You are in a house and act in it step by step. Your actions:
go ROOM
open FURNITURE (the one in your room; {", ".join(CLOSED)} are closed at first, and you must open them to see what is \
in them, to take it, or to put something in)
take OBJECT (one that lies in your room; you can carry one thing at a time)
put OBJECT (the one you carry, in or on the furniture of your room)
look
You have {MAX_TURNS} actions. Reply with one action and nothing else. Of the three lines below, the first is your \
task, the second says which furniture stands in which room, the third is what you see now."""


def load_house(*, chat: bool, dense: bool = False) -> Task:
    """Loads the task. The packaged base models read plain text; a chat model also gets an explanation of the actions.

    Args:
        chat: Makes the prompts messages.
        dense: Also rewards holding the right object.
    """
    return Task(
        name="agent:house",
        splits=seeded_rows(lambda seed: make_world(seed).prompt, SIZES, INSTRUCTION if chat else None),
        environment=partial(House, dense=dense),
        max_turns=MAX_TURNS,
        max_new_tokens=32 if chat else 8,
        max_context=2048 if chat else 256,
        is_well_formed=is_house_action,
        num_eval=512,
    )
