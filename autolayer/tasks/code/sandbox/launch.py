"""The command that starts the sandbox: bubblewrap, and what can be seen inside.

Inside are the system's libraries, the Python installation without its site-packages, this folder of the package, and
an empty /tmp. All but /tmp is read-only. There is no home folder, no /etc, /proc or /sys, no device but three harmless
ones, no network, no other process and none of our environment variables. So neither the project's tests nor the answers
of a data set are there.
"""

import glob
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": "/nonexistent"}

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_PACKAGE = "autolayer/tasks/code/sandbox"
_INSIDE = "/inside"


@dataclass(frozen=True)
class Launcher:
    """A command that starts a fork server."""

    command: tuple[str, ...]
    is_sandbox: bool
    """False for an ordinary process with limits and nothing else."""


def bubblewrap() -> Launcher | None:
    """Returns the launcher of a sandbox, or None if the machine has no bubblewrap. Only a trial tells if it works."""
    tool = shutil.which("bwrap") if platform.system() == "Linux" else None
    if tool is None:
        return None
    is_root = os.geteuid() == 0
    account = [] if is_root else ["--unshare-user", "--uid", "0", "--gid", "0"]
    spaces = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--as-pid-1", "--cap-add", "ALL"]
    visible = _visible()
    targets = {path: path for path in (*visible, *_DEVICES)} | {str(HERE): f"{_INSIDE}/{_PACKAGE}"}
    # Parents are made first. bwrap would copy their permissions from outside, which may be root's alone.
    parents = {str(parent) for target in targets.values() for parent in Path(target).parents} - {"/"}
    view = [part for path in sorted(parents, key=len) for part in ("--perms", "0755", "--dir", path)]
    for path, target in targets.items():
        view += ["--dev-bind" if path in _DEVICES else "--ro-bind", path, target]
    view += [part for folder in _hidden(visible) for part in ("--tmpfs", folder, "--remount-ro", folder)]
    view += ["--dir", "/tmp", "--remount-ro", "/", "--chdir", "/"]
    python = _python(_INSIDE, "root" if is_root else "user")
    return Launcher((tool, *account, *spaces, *view, "--", *python), is_sandbox=True)


def bare() -> Launcher:
    """Returns the launcher of a fork server without a sandbox."""
    return Launcher(tuple(_python(str(HERE).removesuffix(f"/{_PACKAGE}"), "bare")), is_sandbox=False)


def _python(root: str, mode: str) -> list[str]:
    """Returns the command of the fork server. Its parent packages are empty: theirs would import far too much."""
    code = (
        "import sys, types\n"
        f"parts = {_PACKAGE!r}.split('/')\n"
        "for n in range(1, len(parts) + 1):\n"
        "    module = sys.modules['.'.join(parts[:n])] = types.ModuleType('.'.join(parts[:n]))\n"
        f"    module.__path__ = ['/'.join([{root!r}, *parts[:n]])]\n"
        f"from autolayer.tasks.code.sandbox import fork_server\nfork_server.main({mode!r})"
    )
    return [_interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", code]


def _interpreter() -> str:
    """Returns the base installation's Python: a virtual environment is not visible inside."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _visible() -> list[str]:
    """Returns the files and folders that are visible inside."""
    standard = str(Path(os.__file__).parent)
    found = {*_LIBRARIES, _interpreter(), standard, os.path.realpath(standard), str(Path(sys.base_prefix) / "lib")}
    visible: list[str] = []
    for path in sorted(found, key=lambda path: (len(path), path)):
        if os.path.exists(path) and not _is_below(path, visible):
            visible.append(path)
    return visible


def _hidden(visible: list[str]) -> list[str]:
    """Returns folders below the visible ones that must not be: installed packages, and this one above all."""
    found = {str(HERE.parents[2]), os.path.expanduser("~"), os.getcwd()}
    for pattern in ("python*/site-packages", "python*/dist-packages"):
        found |= {path for root in visible for depth in ("", "lib*/") for path in glob.glob(f"{root}/{depth}{pattern}")}
    return sorted(folder for folder in found if os.path.isdir(folder) and _is_below(folder, visible))


def _is_below(path: str, folders: list[str]) -> bool:
    return any(path.startswith(f"{folder}/") for folder in folders)
