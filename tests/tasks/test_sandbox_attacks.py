"""The sandbox under attack: what a program must not reach, use up or leave behind.

Every attack on the machine that does no harm is run without a sandbox too, where it succeeds: else it would prove
nothing.
"""

import errno
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from sandbox_helpers import LIVES, QUICK, SHORT, assert_alive

from autolayer.tasks.code.code_task import SMALL
from autolayer.tasks.code.sandbox.jobs import Calls, Judged, Limits, Outcome, Script
from autolayer.tasks.code.sandbox.pool import Sandbox

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there is none on Windows, which is refused")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A secret, files and processes of the host that a program could attack."""
    secret = secrets.token_hex(16)
    folder = tmp_path_factory.mktemp("host")
    (folder / "secret").write_text(secret)
    with tempfile.NamedTemporaryFile("w", prefix=".autolayer-test-", dir=Path.home()) as home_file:
        home_file.write(secret)
        home_file.flush()
        code = f"import os, time; os.environ['TOKEN'] = {secret!r}; print('ready', flush=True); time.sleep(600)"
        victim = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "TOKEN": secret}, stdout=subprocess.PIPE, text=True
        )
        assert victim.stdout is not None and victim.stdout.readline() == "ready\n"
        tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
        tcp.bind(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        tcp.listen()
        path, name = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        path.bind(str(folder / "socket"))
        path.listen()
        if sys.platform == "linux":
            name.bind(f"\0autolayer-{secret}")
            name.listen()
        yield SimpleNamespace(
            secret=secret,
            folder=str(folder),
            home_file=home_file.name,
            package_file=str(SMALL),
            test_file=__file__,
            pid=victim.pid,
            tcp=tcp.getsockname()[1],
            udp=udp.getsockname()[1],
        )
        victim.kill()
        victim.wait()
        for opened in (tcp, udp, path, name):
            opened.close()


# Attacks on the machine: each returns whether it had success. `host` is a dictionary of the fields above.


HARMLESS = {
    "read a file in the temporary folder": "return open(host['folder'] + '/secret').read() == host['secret']",
    "read a file in the home folder": "return open(host['home_file']).read() == host['secret']",
    "read the answers of the shipped problems": "return 'solution' in open(host['package_file']).read()",
    "read the project's tests": "return 'def ' in open(host['test_file']).read()",
    "read the environment of another process": """
        for pid in filter(str.isdigit, os.listdir('/proc')):
            try:
                if host['secret'] in open(f'/proc/{pid}/environ').read():
                    return True
            except OSError:
                continue
        return False""",
    "write outside the scratch folder": """
        open(host['folder'] + '/written', 'w').write('x')
        return True""",
    "write through a link out of the scratch folder": """
        os.symlink(host['folder'], 'way_out')
        open('way_out/linked', 'w').write('x')
        return True""",
    "write into the Python installation": """
        place = os.path.dirname(os.__file__) + '/autolayer_attack.py'
        open(place, 'w').write('x')
        os.remove(place)
        return True""",
    "connect by TCP": "return socket.create_connection(('127.0.0.1', host['tcp']), 2) is not None",
    "send by UDP": "return socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', host['udp'])) == 1",
    "connect to a socket with a path": """
        return socket.socket(socket.AF_UNIX).connect(host['folder'] + '/socket') is None""",
    "connect to an abstract socket": """
        return socket.socket(socket.AF_UNIX).connect('\\0autolayer-' + host['secret']) is None""",
    "open a socket to the hypervisor": "return socket.socket(40, socket.SOCK_STREAM) is not None",
    "resolve a name": "return bool(socket.getaddrinfo('localhost', 80))",
    "signal another process": "return os.kill(host['pid'], 0) is None",
    "change the limits of another process": """
        return resource.prlimit(host['pid'], resource.RLIMIT_CORE, (0, 0)) is not None""",
    "trace another process": "return ctypes.CDLL(None).ptrace(0x4206, host['pid'], None, None) == 0",
    "read the memory of another process": """
        memory = open(f"/proc/{host['pid']}/mem", 'rb', 0)
        for line in open(f"/proc/{host['pid']}/maps"):
            first, last = (int(part, 16) for part in line.split()[0].split('-'))
            if '[heap]' in line:
                memory.seek(first)
                return host['secret'].encode() in memory.read(last - first)
        return False""",
    "hold memory that no limit counts": "return os.memfd_create('bomb') > 0",
    "make namespaces of its own": "return ctypes.CDLL(None).unshare(0x10000000) == 0",
    "see the processes of the machine": "return len(list(filter(str.isdigit, os.listdir('/proc')))) > 3",
}  # fmt: skip
NEED_LINUX = {"connect to an abstract socket", "open a socket to the hypervisor", "trace another process", "see the pro"
              "cesses of the machine", "hold memory that no limit counts", "make namespaces of its own",
              "read the memory of another process", "read the environment of another process",
              "change the limits of another process"}  # fmt: skip
MAY_FAIL_ANYWHERE = {"open a socket to the hypervisor", "make namespaces of its own", "trace another process",
                     "read the memory of another process", "write into the Python installation"}  # fmt: skip
"""Returns what some machines forbid to everybody, so that the control proves nothing there."""

HEADER = "import ctypes, os, resource, socket, sys, time\n"


def attack(opened: Sandbox, body: str, host: SimpleNamespace) -> Outcome:
    lines = "\n".join("    " + line.removeprefix("        ") for line in body.strip("\n").splitlines())
    call = ("attack", [{**vars(host)}])
    return opened.run([Calls(program=f"{HEADER}def attack(host):\n{lines}\n", calls=[call])], QUICK)[0]


@pytest.mark.parametrize("name", HARMLESS)
def test_an_attack_on_the_machine_fails(box: Sandbox, host: SimpleNamespace, name: str) -> None:
    outcome = attack(box, HARMLESS[name], host)
    assert outcome.values and outcome.values[0] is not True, outcome
    assert not {"written", "linked"} & set(os.listdir(host.folder))


@pytest.mark.parametrize("name", HARMLESS)
def test_the_same_attack_succeeds_without_a_sandbox(no_box: Sandbox, host: SimpleNamespace, name: str) -> None:
    if name in NEED_LINUX and sys.platform != "linux":
        pytest.skip("there is no such thing on this system")
    outcome = attack(no_box, HARMLESS[name], host)
    for left in ("written", "linked"):
        Path(host.folder, left).unlink(missing_ok=True)
    if outcome.values[:1] != (True,) and name in MAY_FAIL_ANYWHERE:
        pytest.skip(f"this machine forbids it to everybody: {outcome}")
    assert outcome.values == (True,), outcome


def test_no_variable_of_ours_is_inside(box: Sandbox, monkeypatch: pytest.MonkeyPatch, host: SimpleNamespace) -> None:
    monkeypatch.setenv("HF_TOKEN", host.secret)
    fresh = Sandbox(box.command, 1)
    (outcome,) = fresh.run([Calls(program="import os\ndef f(): return dict(os.environ)", calls=[("f", [])])])
    fresh.close()
    assert host.secret not in str(outcome.values) and set(outcome.values[0]) == {"HOME", "TMPDIR", "PATH", "LANG"}


def test_what_is_visible_inside(box: Sandbox) -> None:
    look = "import os\ndef f(p): return sorted(os.listdir(p))"
    (outcome,) = box.run([Calls(program=look, calls=[("f", ["/"]), ("f", ["/dev"]), ("f", ["/tmp"])])])
    root, devices, scratch = outcome.values
    assert not {"proc", "sys", "var", "srv", "mnt", "run"} & set(root)
    assert devices == ["null", "urandom", "zero"] and scratch == []


# Attacks on what there is enough of.


def test_a_fork_bomb_goes_nowhere(box: Sandbox) -> None:
    bomb = """
import os, time
def bomb():
    num = 0
    while num < 500:
        try:
            if os.fork() == 0:
                time.sleep(60)
        except OSError:
            break
        num += 1
    return num
"""
    (outcome,) = box.run([Calls(program=bomb, calls=[("bomb", [])])], QUICK)
    assert outcome.values and outcome.values[0] < 2 * QUICK.processes + 4
    assert_alive(box)
    explosion = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    start = time.monotonic()
    # The machine may be the first to have had enough, and kill for memory what used too little time.
    assert box.run([Script(program=explosion, stdin="")], QUICK)[0].reason in ("timeout", "memory")
    assert time.monotonic() - start < 3 * QUICK.wall_seconds
    assert_alive(box)


def test_a_memory_bomb_is_named(box: Sandbox) -> None:
    bombs = ["x = []\nwhile True:\n    x.append(bytearray(1 << 20))", "x = bytearray(1 << 40)"]
    outcomes = box.run([Script(program=bomb, stdin="") for bomb in bombs])
    assert [outcome.reason for outcome in outcomes] == ["memory", "memory"]
    assert_alive(box)


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "9 ** 9 ** 9",
        "import signal, time\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(600)",
        "import os, time\nos.setsid() if os.fork() == 0 else 0\ntime.sleep(600)",
    ],
)
def test_what_never_ends_is_ended(box: Sandbox, program: str) -> None:
    start = time.monotonic()
    jobs = [Script(program=program, stdin=""), Judged(program=program, tests=["assert f()"], functions=["f"])]
    assert [outcome.reason for outcome in box.run(jobs, SHORT)] == ["timeout", "timeout"]
    assert time.monotonic() - start < 8 * SHORT.wall_seconds
    assert_alive(box)


def test_hanging_up_and_staying_is_ended_too(box: Sandbox) -> None:
    program = "import os, time\nos.closerange(0, 10)\ntime.sleep(600)"
    jobs = [Script(program=program, stdin=""), Judged(program=program, tests=["assert f()"], functions=["f"])]
    script, judged = box.run(jobs, SHORT)
    assert script.reason == "timeout" and judged.passed == () and judged.reason == "crash"


def test_a_flood_of_output_is_cut(box: Sandbox) -> None:
    flood = "import os\nwhile True: os.write(1, b'x' * 65536)"
    answers = "def f(): return 'x' * 10**7"
    jobs = [Script(program=flood, stdin=""), Calls(program=answers, calls=[("f", [])])]
    outcomes = box.run(jobs, Limits(output=1 << 20))
    assert [outcome.reason for outcome in outcomes] == ["output", "output"]
    assert len(outcomes[0].stdout) < 2 << 20
    assert_alive(box)


FILL = """
import os
def big():
    with open('big', 'wb') as file:
        try:
            for _ in range(64): file.write(bytes(1 << 20)); file.flush()
        except OSError:
            pass
    return os.path.getsize('big')
def total():
    written = 0
    try:
        for i in range(64):
            with open(f'part{i}', 'wb') as file: written += file.write(bytes(1 << 20))
    except OSError:
        pass
    for i in range(64): os.path.exists(f'part{i}') and os.remove(f'part{i}')
    return written
def many():
    for i in range(100_000):
        try: open(f'f{i}', 'w').close()
        except OSError: return i
    return i
def descriptors():
    opened = []
    try:
        while True: opened.append(os.open('/dev/null', 0))
    except OSError:
        return len(opened)
"""


def test_disk_and_descriptors_are_limited(box: Sandbox) -> None:
    names = ("big", "total", "many", "descriptors")
    outcomes = box.run([Calls(program=FILL, calls=[(name, [])]) for name in names])
    big, total, many, descriptors = (outcome.values[0] for outcome in outcomes)
    limits = Limits()
    assert big <= limits.output and total <= limits.scratch + (1 << 20)
    assert many <= limits.files and descriptors < limits.open_files


@pytest.mark.parametrize("target", ["os.getppid()", "-1", "1", "0"])
def test_killing_everything_in_sight_ends_only_oneself(box: Sandbox, target: str) -> None:
    program = f"import os\ndef f(): os.kill({target}, 9); return True"
    outcomes = box.run([Calls(program=program, calls=[("f", [])]), *LIVES])
    assert outcomes[1].values == (1,), "the next program of the batch is not harmed"
    outcomes = box.run([Judged(program=program, tests=["assert f() == 5"], functions=["f"]), *LIVES])
    assert not any(outcomes[0].passed) and outcomes[1].values == (1,)


DAEMON = """
import os, time
def leave():
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            for i in range(10):
                try: os.close(i)
                except OSError: pass
            time.sleep(600)
        os._exit(0)
    os.waitpid(pid, 0)
    return True
"""


def test_a_daemon_does_not_outlive_its_program(box: Sandbox) -> None:
    fresh = Sandbox(box.command, 1)
    assert fresh.run([Calls(program=DAEMON, calls=[("leave", [])])])[0].values == (True,)
    server = fresh._servers.get()
    fresh._servers.put(server)
    assert server.process is not None
    deadline = time.monotonic() + 5
    while len(left := psutil.Process(server.process.pid).children(recursive=True)) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(left) == 1, "the fork server"
    fresh.close()
    left[0].wait(5)


def test_a_daemon_does_outlive_it_without_a_sandbox(no_box: Sandbox) -> None:
    report = DAEMON.replace("time.sleep(600)", "time.sleep(3)").replace(
        "if os.fork() == 0:\n", "if os.fork() == 0:\n            open(PLACE, 'w').write(str(os.getpid()))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "pid")
        no_box.run([Calls(program=f"PLACE = {str(place)!r}\n{report}", calls=[("leave", [])])])
        deadline = time.monotonic() + 5
        while not (place.exists() and place.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert psutil.pid_exists(int(place.read_text()))


def test_nothing_passes_from_one_program_to_the_next(box: Sandbox) -> None:
    leave = "import builtins, os\nbuiltins.sum = abs\ndef f(): return open('left', 'w').write('x')"
    look = "import os\ndef f(): return os.listdir('.'), sum([1])"
    jobs = [Calls(program=program, calls=[("f", [])]) for program in (leave, look, leave, look)]
    assert [outcome.values[0] for outcome in box.run(jobs)] == [1, [[], 1], 1, [[], 1]]


LEAVE_IN_METADATA = """
import os
def f():
    for place in (".", "/dev/null", "/dev/zero", "/dev/urandom", os.__file__, __import__("json").__file__):
        for change in (
            lambda: os.setxattr(place, "user.leak", b"secret"), lambda: os.utime(place), lambda: os.chmod(place, 0o700),
            lambda: os.utime(place, ns=(12345, 67890)), lambda: open(os.path.join(place, "left"), "w").close(),
            lambda: os.remove(os.path.join(place, "left")),
        ):
            try: change()
            except OSError: pass
    return 1
"""
LOOK_AT_METADATA = """
import json, os, time
START = time.time()
def f():
    states = [os.stat(place) for place in ("/dev/null", "/dev/zero", "/dev/urandom", os.__file__, json.__file__, "/")]
    here = os.stat(".")
    old = START - max(here.st_mtime, here.st_ctime, here.st_atime)
    return [os.listdir("."), os.listxattr("."), here.st_mode, here.st_size, here.st_ino], old < 1, str(states)
"""


def test_nothing_passes_by_the_metadata_of_files(box: Sandbox) -> None:
    """A new scratch folder has times of its own; no other place can be changed."""
    fresh = Sandbox(box.command, 1)
    jobs = [Calls(program=program, calls=[("f", [])]) for program in (LOOK_AT_METADATA, LEAVE_IN_METADATA) * 2]
    before, left, after, _ = (outcome.values[0] for outcome in fresh.run(jobs))
    fresh.close()
    assert left == 1 and before == after and before[1] is True


def test_the_names_of_the_host_are_not_shown(box: Sandbox) -> None:
    look = """
import os, platform, sys, sysconfig, traceback
def f():
    try:
        open("nothing")
    except OSError:
        error = traceback.format_exc()
    shown = os.uname().nodename, platform.node(), os.getcwd(), error, dict(os.environ)
    return str([shown, sys.argv, sys.orig_argv, sys.path, sys.prefix, sys.executable, os.__file__,
                [getattr(module, "__file__", None) for module in sys.modules.values()]])
"""
    shown = box.run([Calls(program=look, calls=[("f", [])])])[0].values[0]
    own = {os.uname().nodename, str(Path.home()), sys.base_prefix, str(Path(__file__).parents[2])}
    assert not [name for name in own - {"/", "/usr"} if f"'{name}'" in shown or f"{name}/" in shown], shown


@pytest.mark.parametrize("call", ["io_setup", "inotify_init", "timer_create", "statmount"])
def test_calls_that_use_up_or_show_the_machine_fail(box: Sandbox, call: str) -> None:
    from autolayer.tasks.code.sandbox import confine

    column = list(confine._ARCHITECTURES).index(os.uname().machine)
    program = f"""
import ctypes
def f():
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall({confine._DENIED[call][column]}, 1, ctypes.byref(ctypes.c_ulong(0)), 0, 0)
    return ctypes.get_errno()
"""
    assert box.run([Calls(program=program, calls=[("f", [])])])[0].values == (errno.EPERM,)
