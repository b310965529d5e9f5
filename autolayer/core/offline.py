"""Reads the cache of the Hugging Face Hub at once on a machine without network.

The libraries ask the Hub about every file of a model or data set, also if it is in the cache. Without network each
question is repeated with pauses, which takes minutes in all, and nothing is said.
"""

import functools
import logging
import os
import sys
import threading
from contextlib import suppress

logger = logging.getLogger(__name__)

HUB_SECONDS = 5.0
"""Time in which the Hub has to answer."""


@functools.cache
def check_hub() -> None:
    """Sets HF_HUB_OFFLINE for this process and its children, with a warning, if the Hub does not answer."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _answers(constants.ENDPOINT):
        return
    logger.warning("%s does not answer: offline, models and data sets are read from the cache.", constants.ENDPOINT)
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if (datasets := sys.modules.get("datasets")) is not None:  # it has copied the constant
        datasets.config.HF_HUB_OFFLINE = True


def _answers(endpoint: str) -> bool:
    """Asks in a thread, because looking up a name has no time limit."""
    from huggingface_hub import get_session

    answered = threading.Event()

    def ask() -> None:
        with suppress(Exception):  # its type depends on the network
            get_session().head(endpoint, timeout=HUB_SECONDS)  # with any status
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return answered.is_set()
