"""Short limits, a program that only lives, and the check that a sandbox still answers."""

from autolayer.tasks.code.sandbox.jobs import Calls, Limits
from autolayer.tasks.code.sandbox.pool import Sandbox

QUICK, SHORT = Limits(seconds=1, wall_seconds=3), Limits(seconds=1, wall_seconds=1.2)
LIVES = [Calls(program="f = lambda: 1", calls=[("f", [])])]


def assert_alive(box: Sandbox) -> None:
    assert box.run(LIVES)[0].values == (1,)
