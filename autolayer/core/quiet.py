"""Silences libraries while they work for autolayer, which reports progress and problems itself."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(*names: str, category: type[Warning] = Warning) -> Iterator[None]:
    """Silences the logs of libraries below errors, and warnings of a category, while the block runs."""
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
