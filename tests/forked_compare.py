"""The verb ``compare`` in a process of its own, whose runs are forked from it instead of started anew.

A run then costs a fraction of a second. It is a process all the same: it is ended alone or with the comparison.
"""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from child_runs import SERVER


def compare(
    folder: Path, arguments: Sequence[str], end: tuple[str, str, int] | None = None, by: int = signal.SIGKILL
) -> tuple[int, str, str]:
    """Run ``compare`` in `folder` and return its exit code (-9 if it was ended), stdout and stderr.

    Args:
        folder: the working folder.
        arguments: of compare.
        end: (model, who, step): at this optimiser step of the model end the ``run``, the ``comparison``, or ``both``.
        by: the signal that ends them.
    """
    out, error = folder / "compare.out", folder / "compare.err"
    child = SERVER.Process(target=_child, args=(str(folder), list(arguments), end, by, str(out), str(error)))
    child.start()
    child.join(timeout=240)
    assert child.exitcode is not None, "the comparison hangs"
    return child.exitcode, out.read_text(), error.read_text()


def _child(folder: str, arguments: list[str], end: Any, by: int, out: str, error: str) -> None:
    os.chdir(folder)
    os.environ["RECBOLE_LLM_CACHE"] = str(Path(folder) / "cache")
    for path, stream in ((out, sys.stdout), (error, sys.stderr)):
        with Path(path).open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    import torch

    from recbole_llm.comparison import child_runs

    torch.set_num_threads(1)
    child_runs.start_run = lambda run, log, lock, environment: _forked_run(run, log, end, by)
    os._exit(_main(["compare", *arguments]))


def _main(arguments: list[str]) -> int:
    from recbole_llm.cli import main as cli

    try:
        code = cli.main(arguments)
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _forked_run(arguments: Sequence[str], log: Path, end: Any, by: int) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        with log.open("ab") as file:
            os.dup2(file.fileno(), sys.stdout.fileno())
            os.dup2(file.fileno(), sys.stderr.fileno())
        if end is not None and any(end[0] in argument for argument in arguments):
            _end_at(end[1], end[2], by)
        os._exit(_main(["run", *arguments]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _end_at(who: str, step: int, by: int) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    left = [step]
    comparison = os.getppid()

    def count(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            if who in ("comparison", "both"):
                os.kill(comparison, by)
            if who in ("run", "both"):
                os.kill(os.getpid(), by)

    register_optimizer_step_post_hook(count)
