"""Starting the sandbox: which tool of the machine makes it, and what can be seen inside.

Inside are the system's libraries, the Python installation without its site-packages, five files of this package, and an
empty /tmp, all but that read-only. No home folder, no /etc, /proc, /sys or /dev but three harmless devices, no network,
no other process, none of our environment variables. So neither the project's tests nor a data set's answers are there.
"""

from __future__ import annotations

import glob
import json
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSIDE = "/inside"
MODULES = ("child", "confine", "judge", "wire", "zygote")
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": "/nonexistent"}


@dataclass(frozen=True)
class Launcher:
    """One way of starting a zygote."""

    name: str
    """'bwrap', 'unshare', or 'none': a child with limits and nothing else."""
    command: tuple[str, ...]

    @property
    def is_sandbox(self) -> bool:
        return self.name != "none"


def sandboxes() -> list[Launcher]:
    """The ways of this machine, the best first. Whether they work, only a trial can tell."""
    if platform.system() != "Linux":
        return []
    makers = (("bwrap", _bwrap), ("unshare", _unshare))
    return [Launcher(name, tuple(make(path))) for name, make in makers if (path := shutil.which(name))]


def bare() -> Launcher:
    """The zygote as an ordinary process."""
    return Launcher("none", tuple(_python(_interpreter(), str(HERE.parents[2]), "bare", stubs=True)))


def _python(interpreter: str, root: str, mode: str, *, stubs: bool = False) -> list[str]:
    """The zygote's command. Inside, the package's folders hold its five files and make namespace packages."""
    code = f"import sys; sys.path.insert(0, {root!r}); "
    if stubs:  # outside, the real packages would import far more than is needed
        code += (
            "import types\n"
            "for name in ('autolayer', 'autolayer.tasks', 'autolayer.tasks.code'):\n"
            "    module = sys.modules[name] = types.ModuleType(name)\n"
            f"    module.__path__ = [{root!r} + '/' + name.replace('.', '/')]\n"
        )
    code += f"from autolayer.tasks.code import zygote; zygote.main({mode!r})"
    return [interpreter, "-I", "-S", "-B", "-X", "utf8", "-c", code]


def _interpreter() -> str:
    """The base installation's Python: a virtual environment is not visible inside."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _binds() -> tuple[list[str], dict[str, str]]:
    """What is visible inside, and the new names of those that get one."""
    interpreter, standard = _interpreter(), str(Path(os.__file__).parent)
    found = {*LIBRARIES, interpreter, standard, os.path.realpath(standard), str(Path(sys.base_prefix) / "lib")}
    binds: list[str] = []
    for path in sorted(found, key=lambda path: (len(path), path)):
        if os.path.exists(path) and not any(path.startswith(f"{other}/") for other in binds):
            binds.append(path)
    files = {str(HERE / f"{name}.py"): f"{INSIDE}/autolayer/tasks/code/{name}.py" for name in MODULES}
    return [*binds, *files], files


def _hidden(binds: list[str]) -> list[str]:
    """Folders below the visible ones that must not be: installed packages, and this one above all."""
    patterns = ("lib*/python*/site-packages", "lib*/python*/dist-packages", "python*/site-packages",
                "python*/dist-packages")  # fmt: skip
    roots = {path for path in binds if os.path.isdir(path)}
    installed = {found for root in roots for pattern in patterns for found in glob.glob(f"{root}/{pattern}")}
    package = str(HERE.parents[2])
    installed |= {package} if any(package.startswith(f"{root}/") for root in roots) else set()
    homes = {os.path.expanduser("~"), os.getcwd()}
    installed |= {home for home in homes if any(home.startswith(f"{root}/") for root in roots)}
    return sorted(folder for folder in installed if os.path.isdir(folder))


def _mode() -> str:
    return "root" if os.geteuid() == 0 else "user"


def _unshare(tool: str) -> list[str]:
    binds, renamed = _binds()
    plan = {
        "binds": binds,
        "renamed": renamed,
        "devices": list(DEVICES),
        "hidden": _hidden(binds),
        "command": _python(_interpreter(), INSIDE, _mode()),
    }
    account = [] if _mode() == "root" else ["--user", "--map-root-user"]
    spaces = ["--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"]
    python = [_interpreter(), "-I", "-S", "-B", str(HERE / "box.py")]
    return [tool, *account, *spaces, "--", *python, json.dumps(plan)]


def _bwrap(tool: str) -> list[str]:
    binds, renamed = _binds()
    account = [] if _mode() == "root" else ["--unshare-user", "--uid", "0", "--gid", "0"]
    spaces = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--as-pid-1", "--cap-add", "ALL"]
    places = [renamed.get(path, path) for path in (*binds, *DEVICES)]
    parents = {str(parent) for place in places for parent in Path(place).parents} - {"/"}
    # Made first: bwrap would give them the permissions that they have outside, such as root's alone.
    view = [part for path in sorted(parents, key=len) for part in ("--perms", "0755", "--dir", path)]
    view += [part for path in binds for part in ("--ro-bind", path, renamed.get(path, path))]
    view += [part for device in DEVICES for part in ("--dev-bind", device, device)]
    view += [part for folder in _hidden(binds) for part in ("--tmpfs", folder, "--remount-ro", folder)]
    view += ["--dir", "/tmp", "--remount-ro", "/"]
    return [tool, *account, *spaces, *view, "--chdir", "/", "--", *_python(_interpreter(), INSIDE, _mode())]
