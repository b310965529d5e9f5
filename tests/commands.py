"""Runs the command in processes that are forked from one which has imported its libraries.

The imports take ten seconds of a core, longer than most commands of the tests. A start from nothing is tested where
`subprocess` is called, and with several processes by `launch_helpers.torchrun`.
"""

import atexit
import importlib
import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["autolayer.cli.main", "autolayer.pipeline.pick", "autolayer.training.train_arm", "autolayer.reporting.terminal",
     "transformers.models.qwen3.modeling_qwen3", "alembic.command", "optuna.storages._rdb.models"]
)  # fmt: skip


class Command:
    """A running command, whose output goes to files, so that nobody has to read it in time.

    Args:
        arguments: Those of the command.
        cwd: The working folder.
        env: Variables to add to this process's.
        program: A script in `cwd` that is run instead of `autolayer`.
        file_size: No file may grow beyond it, as on a disk that is full.
    """

    def __init__(
        self, *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, program: str = "",
        file_size: int = resource.RLIM_INFINITY,
    ) -> None:  # fmt: skip
        self._said = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        files = [file.name for file in self._said]
        environment = {**os.environ, **(env or {})}
        given = (program, arguments, str(cwd or Path.cwd()), environment, files, file_size)
        self._process = _FORKS.Process(target=_run, args=given)
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 240) -> int:
        """Returns the exit code; a command that takes longer is killed."""
        self._process.join(timeout)
        if (code := self.returncode) is None:
            self.kill()
            raise subprocess.TimeoutExpired(f"autolayer, process {self.pid}", timeout)
        return code

    def kill(self) -> None:
        """Kills the process, as a machine that fails does."""
        self._process.kill()
        self._process.join()

    def ended(self, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Waits for the end, and returns it with everything that was printed."""
        code = self.wait(timeout)
        out, err = (file.read() for file in self._said)
        return subprocess.CompletedProcess(["autolayer"], code, out, err)


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return Command(*arguments, cwd=cwd).ended()


def _run(
    program: str, arguments: tuple[str, ...], cwd: str, environment: dict[str, str], files: list[str], file_size: int
) -> None:
    """Does in a fork what `python -m autolayer`, or `python program`, does."""
    for number, file in enumerate(files, 1):
        opened = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for name in ("huggingface_hub.constants", "datasets.config"):  # they have read HF_HOME
        importlib.reload(importlib.import_module(name))
    sys.argv = [program or "autolayer", *arguments]
    sys.path.insert(0, str(Path(program).resolve().parent if program else Path.cwd()))
    try:
        runpy.run_path(program, run_name="__main__") if program else runpy.run_module("autolayer", run_name="__main__")
    except Exception:
        traceback.print_exc()
        raise
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves without them
