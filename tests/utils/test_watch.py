"""A process that waits for a killed one where it hears no error, as with NCCL, ends within seconds with a sentence."""

import signal
import subprocess
import sys
import time

import pytest
from several_processes import environments

SOON = 20  # seconds: two by itself, ten after an error of another, and what a busy machine takes
SCRIPT = """
import os, signal, time
from recbole_llm.utils.processes import going_on, joined, meet
with joined() as own, going_on(lambda: "ask for help"):
    meet()
    if own.rank == {ends}:
        {how}
    {others}
"""
KILLED, FAILS, DEAF = "os.kill(os.getpid(), signal.SIGKILL)", "raise RuntimeError('no memory')", "time.sleep(300)"


def run(count, ends, how, others=DEAF):
    """Return exit codes, what was printed and what was said on stderr, by rank, and seconds after the chosen one's."""
    script = SCRIPT.format(ends=ends, how=how, others=others)
    path = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(path for path in sys.path if path)}
    with environments(count) as found:
        children = [
            subprocess.Popen(
                [sys.executable, "-c", script],
                env={**environment, **path},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for environment in found
        ]
        try:
            children[ends].wait(timeout=60)
            begun = time.monotonic()
            said = [child.communicate(timeout=60) for child in children]
        finally:
            for child in children:
                child.kill()
    return [child.returncode for child in children], *zip(*said, strict=True), time.monotonic() - begun


@pytest.mark.parametrize(("count", "ends"), [(2, 0), (2, 1), (3, 1)])
def test_a_deaf_process_ends_when_another_was_killed(count, ends):
    codes, _, said, seconds = run(count, ends, KILLED)
    assert seconds < SOON
    assert codes == [-signal.SIGKILL if rank == ends else 1 for rank in range(count)]
    # One of them says it for all.
    assert "".join(said) == f"error: another of the {count} processes of this run ended; ask for help\n"


def test_a_deaf_process_ends_when_another_failed_which_says_why():
    codes, _, said, seconds = run(2, 1, FAILS)
    assert seconds < SOON
    assert codes == [1, 1]
    assert said[0] == ""
    assert "no memory" in said[1]


def test_processes_that_are_done_end_in_order():
    assert run(3, 0, "pass", others="print('done')")[:3] == ([0] * 3, ("done\n",) * 3, ("",) * 3)


def test_one_that_is_done_long_before_the_others_disturbs_nobody():
    late = "from recbole_llm.utils import watch; watch._SECONDS_FOR_OTHERS = 0.2; time.sleep(2 if own.rank else 0)"
    assert run(3, 0, "pass", others=f"{late}; print('done')")[:3] == ([0] * 3, ("done\n",) * 3, ("",) * 3)
