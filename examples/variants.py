"""A built-in task with another reward.

autolayer pick --model Qwen/Qwen3-1.7B --task examples/variants.py:code_share
"""

from autolayer.core.config import Config
from autolayer.tasks import Task
from autolayer.tasks.code.code_task import load_code


def code_share(config: Config, chat: bool) -> Task:
    """DeepCoder, where a program earns the share of the tests that it passes."""
    return load_code(chat=chat, allow_unsandboxed=config.allow_unsandboxed, share=True)
