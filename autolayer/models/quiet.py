"""Silences transformers while models are loaded, converted and checked."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences the logs, warnings and progress bars of transformers and the Hub; their failures still raise."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, bars, hub_verbosity = (
        logging.get_verbosity(), logging.is_progress_bar_enabled(), hub_logging.get_verbosity()
    )  # fmt: skip
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        hub_logging.set_verbosity_error()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()
