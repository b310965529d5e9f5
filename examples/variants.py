"""Built-in tasks with another reward: for `--task examples/variants.py:NAME`.

autolayer pick --model Qwen/Qwen3-1.7B --task examples/variants.py:code_share
autolayer pick --model tiny --task examples/variants.py:house_dense --algorithm gigpo
"""

from autolayer.core.config import Config
from autolayer.tasks import Task
from autolayer.tasks.agent.house_task import load_house
from autolayer.tasks.agent.keys_task import load_keys
from autolayer.tasks.code.code_task import load_code


def code_share(config: Config, chat: bool) -> Task:
    """DeepCoder, where a program earns the share of the tests that it passes."""
    return load_code(chat=chat, allow_unsandboxed=config.allow_unsandboxed, share=True)


def house_dense(chat: bool) -> Task:
    """agent:house, where holding the right object is rewarded too."""
    return load_house(chat=chat, dense=True)


def keys_dense(chat: bool) -> Task:
    """agent:keys, where a door that has to be opened is rewarded too."""
    return load_keys(chat=chat, dense=True)
