"""The sandbox that is not there, or fails: refused with what was tried, and done without only where that is allowed."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from sandbox_helpers import LIVES

from autolayer.core.errors import SandboxError
from autolayer.tasks.code.sandbox import bubblewrap, pool
from autolayer.tasks.code.sandbox.jobs import Limits
from autolayer.tasks.code.sandbox.open_sandbox import open_sandbox
from autolayer.tasks.code.sandbox.pool import Sandbox

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there is none on Windows, which is refused")


def test_a_sandbox_that_dies_is_an_error_and_no_zero(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Sandbox(box.command, 1)
    fresh.run(LIVES)
    server = fresh._servers.get()
    assert server.process is not None
    server.process.kill()
    fresh._servers.put(server)
    assert fresh.run(LIVES)[0].values == (1,), "once may have been an accident"
    monkeypatch.setattr(pool, "GRACE_SECONDS", 0.0)
    with pytest.raises(SandboxError, match="failed twice.*no answer in"):
        fresh.run(LIVES, Limits(wall_seconds=0.0))
    fresh.close()


@pytest.fixture
def _nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autolayer.tasks.code.sandbox.open_sandbox._open", {})


@pytest.mark.usefixtures("_nothing_open")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([sys.executable, "-c", "import sys; sys.exit('no namespaces for you')"], "no namespaces for you"),
        (["/nonexistent/bwrap"], "No such file"),
        (None, "bubblewrap is not installed"),
    ],
)
def test_without_a_sandbox_it_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, command: list[str] | None, words: str
) -> None:
    monkeypatch.setattr(bubblewrap, "bubblewrap", lambda: command)
    with pytest.raises(SandboxError, match=f"{words}.*--allow-unsandboxed"):
        open_sandbox()


@pytest.mark.usefixtures("_nothing_open")
def test_a_command_that_isolates_nothing_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "bubblewrap", bubblewrap.bare)
    with pytest.raises(SandboxError, match="was not isolated"):
        open_sandbox()


@pytest.mark.usefixtures("_nothing_open")
def test_it_runs_unsandboxed_only_where_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bubblewrap, "bubblewrap", lambda: None)
    opened = open_sandbox(allow_unsandboxed=True)
    assert opened.command == bubblewrap.bare() and opened.run(LIVES)[0].values == (1,)
    open_sandbox(allow_unsandboxed=True)
    assert caplog.text.count("WITHOUT a sandbox") == 1, "once is enough"
    with pytest.raises(SandboxError):
        open_sandbox()


@pytest.mark.parametrize(("system", "words"), [("Windows", "WSL2"), ("Darwin", "Use Linux, or accept the risk")])
@pytest.mark.usefixtures("_nothing_open")
def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch, system: str, words: str) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    with pytest.raises(SandboxError, match=words):
        open_sandbox()


def test_a_working_sandbox_goes_before_the_permission_to_do_without(box: Sandbox) -> None:
    assert open_sandbox(allow_unsandboxed=True).command == bubblewrap.bubblewrap()


def test_an_ordinary_account_has_a_sandbox_too(box: Sandbox) -> None:
    """As root the sandbox is made in another way than for everybody else: both are tried where root runs the tests."""
    if os.geteuid() != 0:
        pytest.skip("the other tests ran as an ordinary account")
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None:
        pytest.skip("an ordinary account cannot reach this Python")
    code = (
        "import json, sys, types\n"
        "for name in ('autolayer', 'autolayer.core', 'autolayer.tasks', 'autolayer.tasks.code'):\n"
        "    module = sys.modules[name] = types.ModuleType(name)  # the real one needs packages of the environment\n"
        "    module.__path__ = [sys.argv[1] + '/' + name.replace('.', '/')]\n"
        "from autolayer.tasks.code.sandbox import bubblewrap, jobs, open_sandbox, pool\n"
        "problem = open_sandbox.missing_sandbox()\n"
        "box = pool.Sandbox(bubblewrap.bubblewrap(), 1)\n"
        "bomb = 'import os, time\\ndef f(n=0):\\n    try:\\n        while n < 99:\\n            n += 1\\n"
        "            if os.fork() == 0: time.sleep(9)\\n    except OSError: pass\\n    return n'\n"
        "done = box.run([jobs.Calls(program=bomb, calls=[('f', [])])]); box.close()\n"
        "print(json.dumps([problem, done[0].values[0]]))"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        shutil.copytree(bubblewrap.HERE.parents[2], Path(folder, "autolayer"), ignore=shutil.ignore_patterns("data"))
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        done = subprocess.run(
            [python, "-B", "-c", code, folder],
            user=12345, group=12345, extra_groups=[], cwd="/", capture_output=True, text=True,
        )  # fmt: skip
    if "No permissions to create new namespace" in done.stdout:
        pytest.skip(f"this machine makes none for ordinary accounts: {done.stdout}")
    problem, num = json.loads(done.stdout or "[]") or (done.stderr, 99)
    assert problem is None and num < 10
