"""The sandbox under attack: what a program must not reach, and verdicts that it must not forge.

Every attack on the machine that does no harm is run without a sandbox too, where it succeeds: else it would prove
nothing. Every forged verdict fools a naive grader, which runs the tests in the program's own process.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from autolayer.errors import SandboxError
from autolayer.tasks.code import launch, opening, sandbox
from autolayer.tasks.code.code_task import SMALL
from autolayer.tasks.code.jobs import Calls, Judged, Script
from autolayer.tasks.code.limits import Failed, Limits, Outcome
from autolayer.tasks.code.opening import open_sandbox, trial
from autolayer.tasks.code.sandbox import Sandbox

QUICK, SHORT = Limits(seconds=1, wall_seconds=3), Limits(seconds=1, wall_seconds=1.2)
TOOLS = [name for name in ("bwrap", "unshare") if shutil.which(name)] or ["any"]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there is none on Windows, which is refused")


@pytest.fixture(scope="module", params=TOOLS)
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox of each kind that this machine should have."""
    problem = "neither bwrap nor unshare is there"
    for launcher in launch.sandboxes():
        if launcher.name == request.param and (problem := trial(launcher) or "") == "":
            opened = Sandbox(launcher, 2)
            yield opened
            return opened.close()
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no attack was tried: {request.param}: {problem}")


@pytest.fixture(scope="module")
def no_box() -> Iterator[Sandbox]:
    """No sandbox at all, as --allow-unsandboxed has it."""
    opened = Sandbox(launch.bare(), 1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """What there is to attack."""
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
"""What some machines forbid to everybody, so that the control proves nothing there."""

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
    fresh = Sandbox(box.launcher, 1)
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

LIVES = [Calls(program="f = lambda: 1", calls=[("f", [])])]


def assert_alive(box: Sandbox) -> None:
    assert box.run(LIVES)[0].values == (1,)


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
    assert box.run([Script(program=explosion, stdin="")], QUICK)[0].reason == "timeout"
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
    assert big <= limits.file_size and total <= limits.scratch + (1 << 20)
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
    fresh = Sandbox(box.launcher, 1)
    assert fresh.run([Calls(program=DAEMON, calls=[("leave", [])])])[0].values == (True,)
    worker = fresh._workers.get()
    fresh._workers.put(worker)
    assert worker is not None
    deadline = time.monotonic() + 5
    while len(left := psutil.Process(worker._process.pid).children(recursive=True)) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(left) == 1, "the zygote"
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
    assert [outcome.values[0] for outcome in box.run(jobs)] == [1, ([], 1), 1, ([], 1)]


def test_nothing_passes_by_the_scratch_folder_itself(box: Sandbox) -> None:
    leave = "import os\ndef f():\n    os.setxattr('.', 'user.leak', b'secret')\n    return 1"
    look = "import os\ndef f(): return os.listxattr('.'), oct(os.stat('.').st_mode)[-3:]"
    jobs = [Calls(program=program, calls=[("f", [])]) for program in (look, leave, look)]
    before, _, after = (outcome.values[0] if outcome.values else None for outcome in box.run(jobs))
    assert before == after == ([], "777")


KINDS = (
    "int",
    "complex",
    "bytes",
    "range",
    "opaque",
    "list",
    "tuple",
    "set",
    "frozenset",
    "iterator",
    "dict",
    7,
)
PAYLOADS = (None, 5, -1.5, "x", "zz", [], [1], [[1, 2]], [[[], 1]], {}, {"a": 1}, [["list", 3]], "\ud800")


def test_whatever_a_program_forges_is_its_own_loss(box: Sandbox) -> None:
    """Lines on the answer pipe that no encoder wrote: no error here, and the next programs' answers are their own."""
    lines = [json.dumps({"value": [kind, payload]}) for kind in KINDS for payload in PAYLOADS]
    lines += ["", "{", "[]", "null", '{"value": }', '{"error": {}}', '{"error": 3}', '{"value": [[[[]]]]}']
    forge = [f"import os\nos.write(3, {line.encode()!r} + b'\\n')\ndef f(x): return x" for line in lines]
    honest = [f"def f(x): return x * {index}" for index in range(len(lines))]
    jobs = [
        Calls(program=program, calls=[("f", [1]), ("f", [2])])
        for pair in zip(forge, honest, strict=True)
        for program in pair
    ]
    outcomes = box.run(jobs)
    assert [outcome.values for outcome in outcomes[1::2]] == [(index, 2 * index) for index in range(len(lines))]


def test_an_error_of_ours_in_the_middle_of_a_batch_shifts_no_answers(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [Calls(program=f"def f(): return {index}", calls=[("f", [])]) for index in range(8)]
    with monkeypatch.context() as patched:
        patched.setattr(sandbox, "outcome_of", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            box.run(jobs)
    assert [outcome.values for outcome in box.run(jobs)] == [(index,) for index in range(8)]


def test_integers_with_equal_hashes_cost_the_program_and_not_us(box: Sandbox) -> None:
    """A set of them takes time that grows with the square, here in a process that no limit watches."""
    items = ", ".join(str(index * (2**61 - 1)) for index in range(5_000))
    forge = f'import os\nos.write(3, b\'{{"value": ["set", [{items}]]}}\\n\')\nos._exit(0)'
    (outcome,) = box.run([Calls(program=forge, calls=[("f", [])])])
    assert outcome.values == ()


# Forged verdicts: f(2) should be 4 and f(5) should be 25. Not one of these programs computes a square.

FORGERIES = {
    "early exit": "raise SystemExit(0)",
    "early os._exit": "import os\nos._exit(0)",
    "fake report": "import os\nos.write(1, b'all passed\\n')\nos._exit(0)",
    "exit when called": "import os\ndef f(x): os._exit(0)",
    "equal to everything": "class Same:\n    __eq__ = lambda *a: True\n    __hash__ = None\ndef f(x): return Same()",
    "an int equal to everything": "class Same(int):\n    __eq__ = lambda *a: True\ndef f(x): return Same(3)",
    "patched hook": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)",
    "exit at an error": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "patched isclose": "import math\nmath.isclose = lambda *a, **k: True\ndef f(x): return 0",
    "patched abs": "import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return 0",
    "tests found by frames": "import sys\ndef f(x):\n    code = sys._getframe(1).f_code.co_consts\n"
    "    return next((c for c in code if type(c) in (int, float) and c == x * x), 0) if x in code else 0",
    "tests found by gc": "import gc, re\ndef f(x):\n    for o in gc.get_objects():\n"
    "        text = str(o.get('TESTS')) if type(o) is dict and 'TESTS' in o else ''\n"
    "        if m := re.search(rf'f\\({x}\\)[ ,=]+(\\d+)', text): return int(m[1])",
    "report on every descriptor": "import os\nfor i in range(1, 30):\n"
    "    for text in (b'[true, true, true, true]', b'{\"value\": true}\\n', b'all passed\\n'):\n"
    "        try: os.write(i, text)\n        except OSError: pass\nos._exit(0)",
}  # fmt: skip
TESTS = [
    "assert f(2) == 4",
    "import math\nassert math.isclose(f(5), 25)",
    "assert abs(f(2) - 4) < 1e-6",
    "assert f(5) == 25",
]


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_verdict_earns_nothing(box: Sandbox, no_box: Sandbox, name: str) -> None:
    tested = Judged(program=FORGERIES[name], tests=TESTS, functions=["f"])
    called = Calls(program=FORGERIES[name], calls=[("f", [2]), ("f", [5])])
    for opened in (box, no_box):
        for_tests, for_calls = opened.run([tested, called], QUICK)
        assert not all(for_tests.passed) or len(for_tests.passed) < len(TESTS), for_tests
        assert for_calls.values != (4, 25)
    assert_alive(box)


@pytest.mark.parametrize("name", FORGERIES)
def test_a_naive_grader_falls_for_it(name: str) -> None:
    grader = (
        f"TESTS = {TESTS!r}\nexec({FORGERIES[name]!r})\nfor t in TESTS[{_fooled(name)}]: exec(t)\nprint('all passed')"
    )
    done = subprocess.run([sys.executable, "-c", grader], capture_output=True, text=True)
    assert done.returncode == 0 or "all passed" in done.stdout, done


def _fooled(name: str) -> str:
    """The tests that a forgery is made for."""
    made_for = {"patched isclose": "1:2", "patched abs": "2:3"}
    by_equality = ("an int equal to everything", "equal to everything", "tests found by gc")
    return made_for.get(name, "::3" if name in by_equality else ":")


def test_values_must_have_the_right_type_and_number(box: Sandbox) -> None:
    jobs = [
        Calls(program="import os\nos.write(3, b'{\"value\": 1}\\n' * 9)\nf = lambda x: 7", calls=[("f", [1])] * 2),
        Calls(program="import os\nos.write(3, b'no json\\n')\nf = lambda x: 7", calls=[("f", [1])]),
        Calls(program="import os\nos.write(3, b'[' * 10**6 + b'\\n')\nf = lambda x: 7", calls=[("f", [1])]),
    ]
    claims, garbage, deep = box.run(jobs)
    assert claims.values == (1, 1), "claims, and no more than were asked for"
    assert garbage.values == () and garbage.reason == "crash" and deep.values == ()


FEW = 12  # copies of a mark that a program makes itself while it looks
MARKS = "'expected-{0}', " * 40
SEARCH = """
def f(part):
    found, mark = [], ("expected-" + part).encode()
    with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb', 0) as memory:
        for line in maps:
            first, last = (int(x, 16) for x in line.split()[0].split('-'))
            if 'rw' in line.split()[1] and last - first < 1 << 28:
                try:
                    memory.seek(first); found.append(memory.read(last - first).count(mark))
                except (OSError, OverflowError):
                    continue
    return sum(found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/mem")
def test_the_expected_values_are_nowhere_in_the_program_s_memory(no_box: Sandbox) -> None:
    """Without a sandbox, where a process can read all of itself. The marks are put together only while it looks."""
    token = secrets.token_hex(8)
    tests = [f"x = f({token!r})\nassert x in ({MARKS.format(token)})", f"assert f({token!r}) < FEW"]
    for _ in range(2):  # what the first left behind would be found by the second
        judged = Judged(program=SEARCH, tests=tests, functions=["f"], setup=f"FEW = {FEW}", run_all=True)
        assert no_box.run([judged])[0].passed == (False, True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/mem")
def test_no_program_finds_another_one_in_its_memory(no_box: Sandbox) -> None:
    token = secrets.token_hex(8)
    search, marked = Calls(program=SEARCH, calls=[("f", [token])]), f"\nx = [{MARKS.format(token)}]\n"
    *_, alone, with_marks = no_box.run(
        [*[Calls(program=f"f = lambda part: 1{marked}", calls=[("f", [""])])] * 3, search,
         Calls(program=SEARCH + marked, calls=[("f", [token])])]
    )  # fmt: skip
    assert alone.values[0] < FEW <= with_marks.values[0], "a mark of its own is found"


# Results and reasons.


def test_plain_values_come_back_as_they_are(box: Sandbox) -> None:
    values = [None, True, 3, -(1 << 3000), 2.5, float("inf"), "é\ud800", b"\xff", (1, [2]), {1, 2}, {"a": {3: None}},
              frozenset({1}), 1j, range(3)]  # fmt: skip
    (outcome,) = box.run([Calls(program="f = lambda x: x", calls=[("f", [value]) for value in values])])
    assert outcome.values == tuple(values) and [type(v) for v in outcome.values] == [type(v) for v in values]


def test_what_is_no_plain_value_equals_nothing(box: Sandbox) -> None:
    program = "import collections\nf = object\ng = lambda: iter([1, 2])\nh = lambda: collections.Counter('aa')"
    tests = ["assert f() != f() and f() is not None", "assert list(g()) == [1, 2]", "assert h() == {'a': 2}"]
    (outcome,) = box.run([Judged(program=program, tests=tests, functions=["f", "g", "h"], run_all=True)])
    assert outcome.passed == (True, True, True)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def f(:", "error"),
        ("raise ValueError", "error"),
        ("import os\nos._exit(3)", "crash"),
        ("import ctypes\nctypes.string_at(0)", "crash"),
        ("import os, signal\nsignal.raise_signal(6)\nos.abort()", "crash"),
        ("x = 'a' * (1 << 40)", "memory"),
        ("while True: pass", "timeout"),
    ],
)
def test_reasons(box: Sandbox, program: str, reason: str) -> None:
    (outcome,) = box.run([Calls(program=program, calls=[("f", [])])], QUICK)
    assert (outcome.reason, outcome.values) == (reason, ())


def test_calls_that_raise_do_not_end_the_others(box: Sandbox) -> None:
    program = "def f(x):\n    if x == 1: raise SystemExit\n    return 6 // x"
    (outcome,) = box.run([Calls(program=program, calls=[("f", [0]), ("f", [1]), ("f", [2]), ("g", [])])])
    assert outcome.values == (Failed("ZeroDivisionError"), Failed("SystemExit"), 3, Failed("NameError"))


def test_tests_may_be_any_python(box: Sandbox) -> None:
    test = """
def check(candidate):
    for n in range(50):
        assert abs(candidate(n) - helper(n)) < 1e-6
    try:
        candidate("x")
    except TypeError:
        pass
    else:
        assert False
check(square)
"""
    setup = "def helper(n): return n * n\ndef square(n): pass"
    jobs = [
        Judged(program=program, tests=[test], functions=["square"], setup=setup)
        for program in (
            "square = lambda n: float(n) ** 2 + 0 * len('') if n != 'x' else n ** 2",
            "square = lambda n: n",
        )
    ]
    assert [outcome.passed for outcome in box.run(jobs)] == [(True,), (False,)]


def test_a_long_input_and_a_thread_with_a_large_stack(box: Sandbox) -> None:
    program = """
import sys, threading
def main():
    sys.setrecursionlimit(10**6)
    def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
    print(len(sys.stdin.read()), depth(20000))
threading.stack_size(1 << 26)
threading.Thread(target=main).start()
"""
    (outcome,) = box.run([Script(program=program, stdin="x" * (1 << 21))])
    assert (outcome.reason, outcome.stdout) == ("ok", f"{1 << 21} 20000\n")


def test_many_threads_may_ask(box: Sandbox) -> None:
    found: dict[int, Any] = {}

    def ask(i: int) -> None:
        jobs = [Calls(program=f"f = lambda: {10 * i + k}", calls=[("f", [])]) for k in range(10)]
        found[i] = [outcome.values[0] for outcome in box.run(jobs)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [10 * i + k for k in range(10)] for i in range(4)}


# The sandbox that is not there, or fails.


def test_a_sandbox_that_dies_is_an_error_and_no_zero(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Sandbox(box.launcher, 1)
    fresh.run(LIVES)
    worker = fresh._workers.get()
    assert worker is not None
    worker._kill()
    fresh._workers.put(worker)
    assert fresh.run(LIVES)[0].values == (1,), "once may have been an accident"
    monkeypatch.setattr(sandbox, "GRACE_SECONDS", 0.0)
    with pytest.raises(SandboxError, match="failed twice.*no answer in"):
        fresh.run(LIVES, Limits(wall_seconds=0.0))
    fresh.close()


@pytest.fixture
def _nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_open", {})


@pytest.mark.usefixtures("_nothing_open")
def test_without_a_sandbox_it_is_refused_with_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = launch.Launcher("bwrap", (sys.executable, "-c", "import sys; sys.exit('no namespaces for you')"))
    missing = launch.Launcher("unshare", ("/nonexistent/unshare",))
    monkeypatch.setattr(launch, "sandboxes", lambda: [broken, missing])
    with pytest.raises(SandboxError) as caught:
        open_sandbox()
    for words in ("bwrap (no namespaces for you)", "unshare (", "No such file", "--allow-unsandboxed"):
        assert words in str(caught.value)


@pytest.mark.usefixtures("_nothing_open")
def test_a_launcher_that_shuts_nothing_in_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "sandboxes", lambda: [launch.Launcher("unshare", launch.bare().command)])
    with pytest.raises(SandboxError, match="was not shut in"):
        open_sandbox()


@pytest.mark.usefixtures("_nothing_open")
def test_it_runs_unsandboxed_only_where_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launch, "sandboxes", list)
    opened = open_sandbox(allow_unsandboxed=True)
    assert not opened.launcher.is_sandbox and opened.run(LIVES)[0].values == (1,)
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
    assert open_sandbox(allow_unsandboxed=True).launcher.is_sandbox


def test_an_ordinary_account_has_a_sandbox_too(box: Sandbox) -> None:
    """As root the sandbox is made in another way than for everybody else: both are tried where root runs the tests."""
    if os.geteuid() != 0:
        pytest.skip("the other tests ran as an ordinary account")
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None:
        pytest.skip("an ordinary account cannot reach this Python")
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from autolayer.tasks.code import jobs, launch, opening, sandbox\n"
        "(launcher,) = [l for l in launch.sandboxes() if l.name == sys.argv[2]]\n"
        "problem = opening.trial(launcher)\n"
        "box = sandbox.Sandbox(launcher, 1)\n"
        "bomb = 'import os, time\\ndef f(n=0):\\n    try:\\n        while n < 99:\\n            n += 1\\n"
        "            if os.fork() == 0: time.sleep(9)\\n    except OSError: pass\\n    return n'\n"
        "done = box.run([jobs.Calls(program=bomb, calls=[('f', [])])]); box.close()\n"
        "print(json.dumps([problem, done[0].values[0]]))"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        shutil.copytree(launch.HERE.parents[1], Path(folder, "autolayer"), ignore=shutil.ignore_patterns("data"))
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        done = subprocess.run(
            [python, "-B", "-c", code, folder, box.launcher.name],
            user=12345, group=12345, extra_groups=[], cwd="/", capture_output=True, text=True,
        )  # fmt: skip
    if "unshare failed" in done.stdout or "No permissions to create new namespace" in done.stdout:
        pytest.skip(f"this machine makes none for ordinary accounts: {done.stdout}")
    problem, num = json.loads(done.stdout or "[]") or (done.stderr, 99)
    assert problem is None and num < 10
