"""Opens the sandbox of this machine, or refuses to run programs if there is none."""

import atexit
import logging
import os
import platform
import threading

from autolayer.core.errors import SandboxError
from autolayer.tasks.code.sandbox import bubblewrap
from autolayer.tasks.code.sandbox.jobs import Calls, Limits
from autolayer.tasks.code.sandbox.pool import ForkServer, Sandbox, SandboxFailure

logger = logging.getLogger(__name__)

NUM_VARIABLES = 4  # environment variables that child.py sets; a program must see no others
TRIAL_SECONDS = 40.0  # on a busy machine; an idle one takes a tenth of a second

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
    """Returns this process's sandbox, which is tried out when it is first opened.

    On a machine without one, `allow_unsandboxed` runs programs in a child process with limits only.
    """
    with _open_lock:
        found = _open.get(allow_unsandboxed)
        # A forked process opens its own: it cannot share the pipes of its parent.
        if found is None or found.owner != os.getpid():
            found = _open[allow_unsandboxed] = Sandbox(_choose(allow_unsandboxed))
            atexit.register(found.close)
        return found


def missing_sandbox() -> str | None:
    """Returns why this machine has no sandbox, or None if a trial program is isolated."""
    command = bubblewrap.bubblewrap()
    if command is None:
        return "bubblewrap is not installed"
    server = ForkServer(command)
    try:
        job = Calls(program=_TRIAL, calls=[("look", [str(bubblewrap.HERE)])])
        outcome = server.run(job, Limits(wall_seconds=TRIAL_SECONDS))
    except SandboxFailure as failure:
        return str(failure)
    finally:
        server.close()
    if outcome.values == ([False, NUM_VARIABLES],):
        return None
    return f"a trial program was not isolated: {outcome.reason}, {outcome.values}"


def _choose(allow_unsandboxed: bool) -> list[str]:
    problem = missing_sandbox()
    if problem is None and (command := bubblewrap.bubblewrap()):
        return command
    if allow_unsandboxed and platform.system() != "Windows":
        logger.warning(
            "programs that the model writes run WITHOUT a sandbox: as you, with your files and your network, and only "
            "limited in time and memory (%s).", problem,
        )  # fmt: skip
        return bubblewrap.bare()
    raise SandboxError(
        "this task runs programs that the model writes, and this machine has no sandbox for them: "
        f"{problem}. {_advice()}"
    )


def _advice() -> str:
    if platform.system() == "Windows":
        return "Windows has none that works: use WSL2 or a Linux machine."
    if platform.system() != "Linux":
        return "Use Linux, or accept the risk with --allow-unsandboxed."
    return (
        "Install bubblewrap (`apt install bubblewrap`, `dnf install bubblewrap`) and let users make namespaces "
        "(`sysctl kernel.unprivileged_userns_clone=1`; on Ubuntu 24.04 "
        "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`; in Docker `--security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined --cap-add SYS_ADMIN`). Or accept the risk with --allow-unsandboxed, on a "
        "machine that has nothing to lose."
    )
