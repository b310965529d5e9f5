"""Silences transformers while models are loaded, converted and checked."""

from collections.abc import Iterator
from contextlib import contextmanager

from autolayer.core.quiet import quiet


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences the logs, warnings and progress bars of transformers and the Hub; their failures still raise."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with quiet("transformers", "huggingface_hub"):
            yield
    finally:
        if bars:
            logging.enable_progress_bar()
