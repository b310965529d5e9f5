"""Loads the user's own Python: `--task FILE.py:NAME` and `--reward FILE.py:function`.

A file is imported under its own name, so that worker processes which it starts can import it again. A file whose name
belongs to another module gets a longer one. Its folder goes to the end of `sys.path`, so that it can import what lies
beside it.
"""

import hashlib
import importlib.util
import inspect
import sys
import traceback
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from autolayer.core.config import Config
from autolayer.core.errors import AutolayerError, ConfigError, DataError, RewardError, UnknownNameError, did_you_mean
from autolayer.tasks.agent.tool_environment import task_of_class
from autolayer.tasks.base import Task
from autolayer.tasks.rewards import said, show
from autolayer.tasks.user_code import keeping_process_state

_DIGEST = "__autolayer_digest__"
"""Attribute of an imported file: the hash of its content."""


def is_reference(text: str) -> bool:
    """Returns True if a `--task` names a file rather than a built-in task."""
    return text.endswith(".py") or text.rpartition(":")[0].endswith(".py")


def parse_reference(option: str, text: str) -> tuple[Path, str]:
    """Splits FILE.py:NAME into path and name, and checks that the file is there. Imports nothing."""
    wanted = "function" if option == "--reward" else "NAME"
    file, _, name = text.rpartition(":")  # from the right: C:\tasks.py:NAME
    if not file.endswith(".py") or not name.isidentifier():
        example = text if text.endswith(".py") else "path/to/file.py"
        raise ConfigError(f"{option} {text} is not of the form FILE.py:{wanted}: write {example}:{wanted}.")
    path = Path(file)
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else f"does not exist (looked for {path.absolute()})"
        raise ConfigError(f"{option} {text}: the file {file} {reason}: give the path of a Python file.")
    return path, name


def load_custom_task(config: Config, *, chat: bool) -> Task:
    """Loads the task of `--task FILE.py:NAME`.

    NAME is a `Task`, or a function or class that makes one. It may take `config` (the run's `Config`) and `chat`
    (whether the model has a chat template). Or it is a class that follows TRL's `environment_factory` and says in a
    class method `rows()` which episodes there are (autolayer/tasks/agent/tool_environment.py shows one).
    """
    path, name = parse_reference("--task", config.task)
    value = _attribute("--task", path, name)
    if inspect.isclass(value) and hasattr(value, "reset"):
        if not hasattr(value, "rows"):
            raise DataError(
                f"--task {config.task} is an environment that does not say which episodes there are: give it a class "
                "method rows() that returns a list of rows with a 'prompt', or name a function that returns "
                "environment_task(...)."
            )
        value = partial(task_of_class, value)
    if not isinstance(value, Task) and callable(value):
        value = _make(value, config.task, {"config": config, "chat": chat})
    if not isinstance(value, Task):
        raise DataError(
            f"--task {config.task} is {show(value)}, a {type(value).__name__}: it must be an "
            "autolayer.tasks.base.Task, or a function that returns one."
        )
    return value


def load_reward(reference: str) -> Callable[..., Any]:
    """Loads the function of `--reward FILE.py:function`."""
    path, name = parse_reference("--reward", reference)
    function = _attribute("--reward", path, name)
    if inspect.isclass(function) or not callable(function):
        raise RewardError(f"--reward {reference} is {show(function)}: it must be a function in TRL's signature.")
    return function


def _make(factory: Callable[..., Any], reference: str, offered: dict[str, Any]) -> Any:
    """Calls the factory with those of the offered arguments that its parameters name."""
    parameters = inspect.signature(factory).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if missing := [p.name for p in required if p.name not in offered]:
        raise DataError(f"--task {reference} asks for {', '.join(missing)}: it can take config and chat, or nothing.")
    try:
        return factory(**{p.name: offered[p.name] for p in parameters if p.name in offered})
    except AutolayerError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise DataError(f"--task {reference} raised {said(error)}{_where(error)}.") from error


def _attribute(option: str, path: Path, name: str) -> Any:
    module = _import(option, path)
    if hasattr(module, name):
        return getattr(module, name)
    names = [
        key
        for key, value in vars(module).items()
        if isinstance(value, Task) or getattr(value, "__module__", None) == module.__name__
    ]
    raise UnknownNameError(
        f"{option}: {path} has no '{name}'.{did_you_mean(name, names)} It has: {', '.join(names) or 'nothing to use'}."
    )


def _import(option: str, path: Path) -> types.ModuleType:
    """Imports a file once. A file that changed becomes another module."""
    file = path.resolve()
    if (folder := str(file.parent)) not in sys.path:
        sys.path.append(folder)
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:10]
    name = file.stem if _is_free(file, digest) else f"autolayer_custom_{file.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, "a path that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before running it: dataclasses and pickle look there
    setattr(module, _DIGEST, digest)
    try:
        with keeping_process_state():
            spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        del sys.modules[name]
        raise ConfigError(
            f"{option}: importing {path} failed with {said(error)}{_where(error)}. Mend that file."
        ) from error
    return module


def _is_free(path: Path, digest: str) -> bool:
    """Returns True if `import NAME` finds this very file, which worker processes need to unpickle its functions."""
    if path.stem in sys.modules:
        return getattr(sys.modules[path.stem], _DIGEST, None) == digest
    try:
        spec = importlib.util.find_spec(path.stem)
    except (ImportError, ValueError):  # a name such as `a.b`
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path


def _where(error: BaseException) -> str:
    """Returns ' (file:line)' of the innermost frame, or '' for a syntax error, which names its own line."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    return "" if isinstance(error, SyntaxError) or not frames else f" ({frames[-1].filename}:{frames[-1].lineno})"
