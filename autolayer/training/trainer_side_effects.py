"""Context managers that undo the side effects of TRL's trainer on the process and the model."""

import contextlib
import functools
import random
from collections.abc import Iterator

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from transformers import PreTrainedModel

from autolayer.core.quiet import quiet

quiet_trainer = functools.partial(quiet, "transformers", "trl", "accelerate")
"""A context that silences the warnings of transformers, TRL and accelerate; errors still raise."""


@contextlib.contextmanager
def trainer_side_effects_undone(model: PreTrainedModel) -> Iterator[None]:
    """Restores random state, log levels, and the model's modes and settings after a trainer ran in the block."""
    with keeping_random_state(), keeping_accelerate_state(), without_dropout(model), quiet_trainer():
        yield


@contextlib.contextmanager
def keeping_accelerate_state() -> Iterator[None]:
    """Gives the trainer its own state of accelerate; a caller's `Accelerator` would decide its mixed precision."""
    before = [(state, dict(state)) for state in (AcceleratorState._shared_state, GradientState._shared_state)]
    try:
        AcceleratorState._reset_state()
        yield
    finally:
        for state, values in before:
            state.clear()
            state.update(values)


@contextlib.contextmanager
def keeping_random_state() -> Iterator[None]:
    """Restores the random state of Python, NumPy and torch, which TRL reseeds, when the block ends."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextlib.contextmanager
def without_dropout(model: PreTrainedModel) -> Iterator[None]:
    """Sets every dropout probability to 0 while the block runs, then restores the model's modes and settings.

    With dropout, training would use another policy than generation. TRL disables `nn.Dropout` only, but many models
    keep the probability as a number (`attention_dropout`, OPT's `dropout` and `layerdrop`). Trainers also change the
    settings of the cache and of the end tokens.
    """
    modes = [(module, module.training) for module in model.modules()]
    dropouts = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and ("drop" in name or (name == "p" and isinstance(module, torch.nn.Dropout)))
    ]
    settings = [(held, dict(vars(held))) for held in (model.config, model.generation_config) if held is not None]
    try:
        for module, name, _ in dropouts:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, name, value in dropouts:
            setattr(module, name, value)
        for held, values in settings:
            vars(held).clear()
            vars(held).update(values)
