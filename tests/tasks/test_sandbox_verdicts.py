"""The results of the sandbox: values, reasons, and verdicts that a program must not forge.

Every forged verdict fools a naive grader, which runs the tests in the program's own process.
"""

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from sandbox_helpers import QUICK, assert_alive

from autolayer.tasks.code.sandbox import pool
from autolayer.tasks.code.sandbox.jobs import Calls, Failed, Judged, Script
from autolayer.tasks.code.sandbox.pool import Sandbox

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there is none on Windows, which is refused")


# Values and reasons.


def test_values_of_calls_come_back_as_json(box: Sandbox) -> None:
    values = [None, True, 3, -(1 << 3000), 2.5, float("inf"), "é\ud800", [1, [2]], {"a": {"3": None}}]
    (outcome,) = box.run([Calls(program="f = lambda x: x", calls=[("f", [value]) for value in values])])
    assert outcome.values == tuple(values) and [type(v) for v in outcome.values] == [type(v) for v in values]
    program = "f = lambda: ((1, 2), {1: 2})\ng = lambda: {1}\nh = lambda: 10**5000"
    (outcome,) = box.run([Calls(program=program, calls=[("f", []), ("g", []), ("h", [])])])
    assert outcome.values == ([[1, 2], {"1": 2}], Failed("TypeError"), Failed("ValueError"))


def test_tests_see_plain_values_as_they_are(box: Sandbox) -> None:
    values = [None, True, 3, -(1 << 3000), 1 << 20_000, 2.5, "é\ud800", b"\xff", (1, [2]), {1, 2}, {"a": {3: None}},
              frozenset({1}), 1j, range(3)]  # fmt: skip
    setup = f"VALUES = {[value for value in values if value != 1 << 20_000]!r} + [1 << 20_000, float('inf')]"
    test = "for x in VALUES: assert f(x) == x and type(f(x)) is type(x) and f(x=x) == x"
    job = Judged(program="f = lambda x: x", tests=[test], functions=["f"], setup=setup)
    assert box.run([job])[0].passed == (True,)


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


@pytest.mark.parametrize("raised", ["StopIteration", "StopAsyncIteration", "GeneratorExit", "SystemExit", "IndexError"])
@pytest.mark.parametrize(
    "test",
    [
        "assert all(map(lambda p: f(p[0]) == p[1], PAIRS))",
        "assert all(x == y for x, y in zip(map(f, [1, 2]), [1, 4]))",
        "for x, y in zip(map(f, [1, 2]), [1, 4]): assert x == y",
        "assert not [x for x in map(f, [1, 2]) if x not in (1, 4)]",
        "for x in iter(lambda: f(2), 4): assert False",
    ],
)
def test_an_exception_of_the_program_ends_no_loop_of_the_tests(box: Sandbox, raised: str, test: str) -> None:
    jobs = [
        Judged(program=program, tests=[test], functions=["f"], setup="PAIRS = [(1, 1), (2, 4)]")
        for program in (f"def f(x): raise {raised}", "f = lambda x: x * x")
    ]
    assert [outcome.passed for outcome in box.run(jobs)] == [(False,), (True,)]


def test_a_check_that_is_never_called_is_not_passed(box: Sandbox) -> None:
    check = "def check(candidate):\n    assert candidate(2) == 4\n"
    program = "def f(x): return x * x"
    jobs = [Judged(program=program, tests=[test], functions=["f"]) for test in (check, check + "check(f)")]
    assert [outcome.passed for outcome in box.run(jobs)] == [(False,), (True,)]


def test_a_test_that_catches_everything_does_not_hide_the_end_of_the_program(box: Sandbox) -> None:
    test = "try:\n    f(1)\nexcept:\n    pass\nassert True"
    (outcome,) = box.run([Judged(program="import os\nf = lambda x: os._exit(0)", tests=[test], functions=["f"])])
    assert outcome.passed == () and outcome.reason == "crash"


# Forged answers, and errors in between.


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
    lines = [json.dumps([kind, payload]) for kind in KINDS for payload in PAYLOADS]
    lines += ["", "{", "[]", "null", '{"value": }', '["failed", {}]', '{"error": 3}', "[[[[]]]]"]
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
        patched.setattr(pool, "_outcome", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            box.run(jobs)
    assert [outcome.values for outcome in box.run(jobs)] == [(index,) for index in range(8)]


def test_integers_with_equal_hashes_cost_the_program_and_not_us(box: Sandbox) -> None:
    """A set of them takes time that grows with the square: only a process with a limit makes one."""
    header = "import os, struct\nitems = [b'%d' % (index * (2**61 - 1)) for index in range(120_000)]\n"
    pairs = "line = b'[null, {%s}]' % b', '.join(b'\"%s\": 1' % item for item in items)\nos.write(3, line)\nos._exit(0)"
    a_set = "line = b'[null, [\"set\", [%s]]]' % b', '.join(items)\nos.write(3, struct.pack('!i', len(line)) + line)"
    start = time.process_time()
    called, judged = box.run(
        [
            Calls(program=header + pairs, calls=[("f", [])]),
            Judged(program=header + a_set, tests=["assert f() is not None"], functions=["f"]),
        ],
        QUICK,
    )
    assert time.process_time() - start < 1.0
    assert len(called.values[0]) == 120_000
    assert judged.reason == "timeout" and judged.passed == ()


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
    "    for text in (b'[true, true, true, true]', b'true\\n', b'all passed\\n'):\n"
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
        Calls(program="import os\nos.write(3, b'[null, 1]\\n' * 9)\nf = lambda x: 7", calls=[("f", [1])] * 2),
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
    """Runs unsandboxed, where a process can read all of itself. The marks are put together only while it looks."""
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
