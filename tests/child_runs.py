"""Runs in processes of their own, some of which end themselves by SIGKILL at a chosen moment.

The processes are forked from one that has imported everything, so each costs a fraction of a second.
"""

import faulthandler
import io
import os
import resource
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest


class _Forked(ForkServerProcess):
    """A process of the server, which finds what lies beside this file: Python 3.11 does not tell it `sys.path`."""

    def start(self) -> None:
        beside = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", beside.rstrip(os.pathsep))
            super().start()


class _Server(ForkServerContext):
    Process = _Forked


SERVER = _Server()
SERVER.set_forkserver_preload(
    [
        "child_runs",
        "recbole_llm.model.sequential_recommender.st2si.model",
        "torch.utils.tensorboard",
        "recbole_llm.comparison.compare",
        "recbole_llm.quick_start.run",
        "recbole_llm.hyper_search.search",
        "recbole_llm.prepare",
        "recbole_llm.stages.pretraining",
        "recbole_llm.cli.compare",
        "recbole_llm.cli.run",
        "transformers.models.llama.modeling_llama",
        "transformers.models.opt.modeling_opt",
        "forked_ahead",
    ]
)


def command_line(
    folder: Path,
    arguments: Sequence[str],
    kill: tuple[str, int] | None = None,
    largest_file: int | None = None,
    by: int = signal.SIGKILL,
) -> tuple[int, str, str]:
    """Run the command line in `folder` and return its exit code (-9 if it was killed), stdout and stderr.

    Args:
        folder: the working folder, with the cache in it.
        arguments: of the command line.
        kill: (moment, n): end the process when the moment comes for the n-th time:

            * step: after an optimiser step
            * fail: after an optimiser step, by an error of this process alone
            * weights: in the middle of writing the weights
            * between: after the weights are written, before the state to resume from
            * state: in the middle of writing the state to resume from
            * result: after all is done, before result.json
            * unstored: never; IDLEAdapter has no room to store what its language model says

        largest_file: bytes beyond which the system refuses to let a file grow.
        by: the signal that ends the process.
    """
    child = process(folder, arguments, kill, largest_file, by)
    child.join(timeout=240)
    assert child.exitcode is not None, "the run hangs"
    return child.exitcode, (folder / "child.out").read_text(), (folder / "child.err").read_text()


def process(
    folder: Path,
    arguments: Sequence[str],
    kill: tuple[str, int] | None = None,
    largest_file: int | None = None,
    by: int = signal.SIGKILL,
    name: str = "child",
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Start the command line in `folder`, as `command_line` does, and return its process.

    What it prints goes to `<name>.out` and `<name>.err` in the folder.
    """
    out, error = folder / f"{name}.out", folder / f"{name}.err"
    child = SERVER.Process(
        target=_child,
        args=(str(folder), list(arguments), kill, largest_file, by, str(out), str(error), dict(environment or {})),
    )
    child.start()
    return child


def start_conversion(cache: Path, name: str) -> Any:
    """Start to resolve the packaged SmolLM2 with this cache, and return the process.

    It prints the folder, the sha256 of its weights and the names of its files to `<name>.out` in `cache`; what is
    logged goes to `<name>.err`.
    """
    files = (str(cache / f"{name}.out"), str(cache / f"{name}.err"))
    child = SERVER.Process(target=_convert, args=(str(cache), *files), daemon=True)
    child.start()
    return child


def _convert(cache: str, out: str, error: str) -> None:
    os.environ.update(RECBOLE_LLM_CACHE=cache)
    print_to(out, error)
    import hashlib
    import logging

    import huggingface_hub.constants

    from recbole_llm.backbone.resolve import resolve

    huggingface_hub.constants.HF_HUB_OFFLINE = True  # the environment was read before
    logging.basicConfig(level=logging.INFO)
    found = resolve("smollm2-135m")
    whole = sorted(file.name for file in found.folder.iterdir())
    print(found.folder, hashlib.sha256((found.folder / "model.safetensors").read_bytes()).hexdigest(), whole)


def print_to(out: str, error: str) -> None:
    for path, stream in ((out, sys.stdout), (error, sys.stderr)):
        with Path(path).open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())


def _child(
    folder: str,
    arguments: list[str],
    kill: tuple[str, int] | None,
    largest_file: int | None,
    by: int,
    out: str,
    error: str,
    environment: dict[str, str],
) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    os.environ["RECBOLE_LLM_CACHE"] = str(Path(folder) / "cache")
    print_to(out, error)
    faulthandler.enable()  # an abort tells where a process that hangs has got to
    import torch

    from recbole_llm.cli import main as cli

    torch.set_num_threads(1)
    if kill is not None:
        _kill_at(*kill, by)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        code = cli.main(arguments)
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _kill_at(moment: str, count: int, by: int) -> None:
    import torch

    from recbole_llm.runs import checkpoint, result

    left = [count]

    def now() -> bool:
        left[0] -= 1
        return left[0] == 0

    def end() -> None:
        os.kill(os.getpid(), by)

    def write_half(path: Any, content: bytes) -> None:
        Path(path).write_bytes(content[: len(content) // 2])
        end()

    real_save_file, real_save, real_resume = checkpoint.save_file, torch.save, checkpoint.save_resume

    def save_file(tensors: Any, path: Any, metadata: Any) -> None:
        real_save_file(tensors, path, metadata)
        if now():
            write_half(path, Path(path).read_bytes())

    def save(state: Any, file: Any) -> None:
        if not now():
            return real_save(state, file)
        whole = io.BytesIO()
        real_save(state, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        end()

    def save_resume(*arguments: Any) -> None:
        if now():
            end()
        real_resume(*arguments)

    match moment:
        case "step":
            from torch.optim.optimizer import register_optimizer_step_post_hook

            register_optimizer_step_post_hook(lambda *_: end() if now() else None)
        case "fail":
            from torch.optim.optimizer import register_optimizer_step_post_hook

            from recbole_llm.errors import DataError

            def fail(*_: Any) -> None:
                if now():
                    raise DataError("the titles of this process are gone")

            register_optimizer_step_post_hook(fail)
        case "weights":
            checkpoint.save_file = save_file
        case "state":
            torch.save = save
        case "between":
            checkpoint.save_resume = save_resume
        case "unstored":
            from recbole_llm.model.sequential_recommender.idleadapter import trainer

            trainer._HOST_BYTES = 0
        case "result":
            result.write_json = lambda *_: end()
        case _:
            raise ValueError(moment)
