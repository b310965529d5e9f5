"""Finding the sandbox of this machine, and refusing to do without one."""

from __future__ import annotations

import atexit
import logging
import os
import platform
import threading
from collections.abc import Sequence

from autolayer.core.errors import SandboxError
from autolayer.tasks.code import launch
from autolayer.tasks.code.jobs import Calls
from autolayer.tasks.code.launch import Launcher
from autolayer.tasks.code.limits import Limits
from autolayer.tasks.code.sandbox import Failure, Sandbox, Worker

logger = logging.getLogger(__name__)

NUM_VARIABLES = 4  # that `child` sets, and no other
TRIAL_SECONDS = 40.0  # on a machine that is busy; it takes a tenth of one

_TRIAL = """
import os, socket
def look(folder):
    try:
        socket.socket()
    except OSError:
        return [os.path.exists(folder), len(os.environ)]
    return "a socket could be opened"
"""
_open: dict[bool, Sandbox] = {}
_open_lock = threading.Lock()


def open_sandbox(*, allow_unsandboxed: bool = False) -> Sandbox:
    """This process's sandbox: the first way that works here, found out once by a trial.

    Args:
        allow_unsandboxed: Where there is no sandbox, run programs in a child with limits and nothing else.

    Raises:
        SandboxError: There is none, and that is not allowed.
    """
    with _open_lock:
        found = _open.get(allow_unsandboxed)
        # After a fork the parent's is left alone: its pipes cannot be shared.
        if found is None or found.owner != os.getpid():
            found = _open[allow_unsandboxed] = Sandbox(_choose(allow_unsandboxed))
            atexit.register(found.close)
        return found


def _choose(allow_unsandboxed: bool) -> Launcher:
    tried = []
    for launcher in launch.sandboxes():
        if (problem := trial(launcher)) is None:
            return launcher
        tried.append(f"{launcher.name} ({problem})")
    names = {launcher.name for launcher in launch.sandboxes()}
    tried += [f"{tool} (not installed)" for tool in launch.TOOLS if tool not in names]
    if allow_unsandboxed and platform.system() != "Windows":
        logger.warning(
            "programs that the model writes run WITHOUT a sandbox: as you, with your files and your network, under "
            "limits of time and memory alone. Tried: %s.", "; ".join(tried),
        )  # fmt: skip
        return launch.bare()
    raise SandboxError(_refusal(tried))


def trial(launcher: Launcher) -> str | None:
    """What is wrong with a launcher, by running a trivial program in it; None if nothing is."""
    worker = None
    try:
        worker = Worker(launcher)
        job = Calls(program=_TRIAL, calls=[("look", [str(launch.HERE)])])
        (outcome,) = worker.ask([job], Limits(wall_seconds=TRIAL_SECONDS))
    except Failure as failure:
        return str(failure)
    finally:
        if worker is not None:
            worker.close()
    if outcome.reason == "ok" and outcome.values == ([False, NUM_VARIABLES],):
        return None
    return f"a trial program was not shut in: {outcome.reason}, {outcome.values}"


def _refusal(tried: Sequence[str]) -> str:
    what = (
        "this task runs programs that the model writes, and there is no sandbox for them here. "
        f"Tried: {'; '.join(tried)}. "
    )
    if platform.system() == "Windows":
        return what + "Windows has none that works: use WSL2 or a Linux machine."
    if platform.system() != "Linux":
        return what + "Use Linux, or accept the risk with --allow-unsandboxed."
    return what + (
        "Install bubblewrap (`apt install bubblewrap`, `dnf install bubblewrap`) and let users make namespaces "
        "(`sysctl kernel.unprivileged_userns_clone=1`; on Ubuntu 24.04 "
        "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`; in Docker `--security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined --cap-add SYS_ADMIN`). Or accept the risk with --allow-unsandboxed, on a "
        "machine that has nothing to lose."
    )
