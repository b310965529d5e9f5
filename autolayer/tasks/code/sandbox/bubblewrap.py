"""The command that starts the sandbox: bubblewrap, and what can be seen inside.

Inside are the system's libraries, the Python installation without its site-packages, a few modules of this folder, and
an empty /tmp. All but /tmp is read-only, and the paths and the host's name tell nothing about the machine. There is no
home folder, no /etc, /proc or /sys, no device but three harmless ones, no network, no other process and none of our
environment variables. So neither the project's tests nor the answers of a data set are there.
"""

import glob
import os
import platform
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_MODULES = ("child.py", "confine.py", "fork_server.py", "judge.py", "protocol.py")
_PACKAGE = "autolayer/tasks/code/sandbox"
_INSIDE, _PYTHON = "/inside", "/inside/python"
ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": "/nonexistent", "LD_LIBRARY_PATH": f"{_PYTHON}/lib"}


def bubblewrap() -> list[str] | None:
    """Returns the command of a sandbox, or None if the machine has no bubblewrap. Only a trial tells if it works."""
    tool = shutil.which("bwrap") if platform.system() == "Linux" else None
    if tool is None:
        return None
    is_root = os.geteuid() == 0
    account = [] if is_root else ["--unshare-user", "--uid", "0", "--gid", "0"]
    spaces = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--hostname", "sandbox"]
    targets = _targets()
    # Parents are made first. bwrap would copy their permissions from outside, which may be root's alone.
    parents = {str(parent) for target in targets.values() for parent in Path(target).parents} - {"/"}
    view = [part for path in sorted(parents, key=len) for part in ("--perms", "0755", "--dir", path)]
    for path, target in targets.items():
        view += ["--dev-bind" if path in _DEVICES else "--ro-bind", path, target]
    for folder in _hidden(targets):
        view += ["--tmpfs", folder, "--remount-ro", folder]
    view += ["--dir", "/tmp", "--remount-ro", "/", "--chdir", "/"]
    python = f"{_PYTHON}/bin/{os.path.basename(_interpreter())}"
    started = _python(python, _INSIDE, "root" if is_root else "user")
    return [tool, *account, *spaces, "--as-pid-1", "--cap-add", "ALL", *view, "--", *started]


def bare() -> list[str]:
    """Returns the command of a fork server without a sandbox: an ordinary process that sets limits and nothing else."""
    return _python(_interpreter(), str(HERE).removesuffix(f"/{_PACKAGE}"), "bare")


def _python(python: str, root: str, mode: str) -> list[str]:
    """Returns the command of the fork server. Its parent packages are empty: theirs would import far too much."""
    code = (
        "import sys, types\n"
        f"parts = {_PACKAGE!r}.split('/')\n"
        "for n in range(1, len(parts) + 1):\n"
        "    module = sys.modules['.'.join(parts[:n])] = types.ModuleType('.'.join(parts[:n]))\n"
        f"    module.__path__ = ['/'.join([{root!r}, *parts[:n]])]\n"
        f"from autolayer.tasks.code.sandbox import fork_server\nfork_server.main({mode!r})"
    )
    return [python, "-I", "-S", "-B", "-X", "utf8", "-c", code]


def _interpreter() -> str:
    # The base installation's Python, because a virtual environment is not visible inside.
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _targets() -> dict[str, str]:
    """Returns the files and folders that are visible inside, and where. The path of a Python may have a user's name."""
    targets = {path: path for path in (*_LIBRARIES, *_DEVICES)}
    targets |= {f"{HERE}/{name}": f"{_INSIDE}/{_PACKAGE}/{name}" for name in _MODULES}
    targets |= {f"{sys.base_prefix}/{name}": f"{_PYTHON}/{name}" for name in ("lib", "lib64")}
    targets |= {_interpreter(): f"{_PYTHON}/bin/{os.path.basename(_interpreter())}"}
    return {path: target for path, target in targets.items() if os.path.exists(path)}


def _hidden(targets: dict[str, str]) -> list[str]:
    """Returns folders inside that must be empty: installed packages, and this one above all."""
    hidden = set()
    for path, target in targets.items():
        found = {str(HERE.parents[2]), os.path.expanduser("~"), os.getcwd()}
        for pattern in ("site-packages", "python*/site-packages", "python*/dist-packages"):
            found |= {folder for depth in ("", "lib*/") for folder in glob.glob(f"{path}/{depth}{pattern}")}
        below = [folder for folder in found if folder.startswith(f"{path}/") and os.path.isdir(folder)]
        hidden |= {target + folder.removeprefix(path) for folder in below}
    return sorted(hidden)
