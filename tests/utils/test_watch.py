"""A process that waits for a killed one where it hears no error, as with NCCL, ends within seconds with a sentence."""

import os
import signal
import subprocess
import sys
import time

import pytest
from child_runs import SERVER, print_to
from several_processes import environments

from recbole_llm.utils import watch
from recbole_llm.utils.processes import going_on, joined, meet

SOON = 20  # seconds: two by itself, ten after an error of another, and what a busy machine takes
FASTER = 3  # than in use, one waits here for another that failed


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def fails():
    raise RuntimeError("no memory")


def deaf():
    time.sleep(300)


def late():
    watch._SECONDS_FOR_OTHERS = 0.2
    time.sleep(2 if os.environ["RANK"] != "0" else 0)
    print("done")


def nothing():
    pass


def process_of(ends, how, others):
    """Meet the others; then the process of this rank does one thing, and goes on like the others with another."""
    watch._SECONDS_TO_END[watch._FAILED] /= FASTER
    with joined() as own, going_on(lambda: "ask for help"):
        meet()
        if own.rank == ends:
            time.sleep(0.5)  # until the others, on a busy machine, have met too
            how()
        others()


def forked_process_of(environment, files, *what):
    os.environ.update(environment)
    print_to(*files)
    process_of(*what)


def run(folder, count, ends, how, others=deaf):
    """Return exit codes, what was printed and what was said on stderr, by rank, and seconds after the chosen one's."""
    files = [(str(folder / f"{rank}.out"), str(folder / f"{rank}.err")) for rank in range(count)]
    with environments(count) as found:
        children = [
            SERVER.Process(target=forked_process_of, args=(environment, own, ends, how, others))
            for environment, own in zip(found, files, strict=True)
        ]
        for child in children:
            child.start()
        try:
            children[ends].join(timeout=60)
            begun = time.monotonic()
            for child in children:
                child.join(timeout=60)
            seconds = time.monotonic() - begun
        finally:
            for child in children:
                child.kill()
    printed, said = ([(folder / f"{rank}.{end}").read_text() for rank in range(count)] for end in ("out", "err"))
    return [child.exitcode for child in children], printed, said, seconds


@pytest.mark.parametrize(("count", "ends"), [(2, 0), (2, 1), (3, 1)])
def test_a_deaf_process_ends_when_another_was_killed(tmp_path, count, ends):
    codes, _, said, seconds = run(tmp_path, count, ends, killed)
    assert seconds < SOON
    assert codes == [-signal.SIGKILL if rank == ends else 1 for rank in range(count)]
    # One of them says it for all.
    assert "".join(said) == f"error: another of the {count} processes of this run ended; ask for help\n"


def test_a_deaf_process_ends_when_another_failed_which_says_why(tmp_path):
    codes, _, said, seconds = run(tmp_path, 2, 1, fails)
    in_use = watch._SECONDS_TO_END[watch._FAILED]
    assert seconds - in_use / FASTER + in_use < SOON
    assert codes == [1, 1]
    assert said[0] == ""
    assert "no memory" in said[1]


def test_processes_that_are_done_end_in_order():
    """Interpreters of their own, which also end in order."""
    code = (
        "from recbole_llm.utils.processes import going_on, joined, meet\n"
        "with joined(), going_on(lambda: 'ask for help'):\n    meet()\n    print('done')"
    )
    path = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code]
    with environments(3) as found:
        children = [
            subprocess.Popen(
                command, env={**environment, **path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for environment in found
        ]
        try:
            said = [child.communicate(timeout=60) for child in children]
        finally:
            for child in children:
                child.kill()
    assert [child.returncode for child in children] == [0] * 3
    assert said == [("done\n", "")] * 3


def test_one_that_is_done_long_before_the_others_disturbs_nobody(tmp_path):
    assert run(tmp_path, 3, 0, nothing, others=late)[:3] == ([0] * 3, ["done\n"] * 3, [""] * 3)
