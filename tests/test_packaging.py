"""The built distributions hold everything and run elsewhere; the pinned versions are complete and within the bounds."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from recbole_llm import __version__

ROOT = Path(__file__).resolve().parents[1]
# Asked for by RecBole and the packaged language models, imported by nothing here.
LEFT_OUT = {"ray", "plotly", "sentence-transformers", "llm", "llama-cpp-python"}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The sdist, and the wheel that is built from it; a copy is built, since an old build folder would leak into it."""
    folder = tmp_path_factory.mktemp("build")
    kept = ("recbole_llm", "properties", "dataset_configs", "tests")
    for name in kept:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, folder / "source")
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        str(folder / "dist"),
        str(folder / "source"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def site(distributions, tmp_path_factory):
    """A folder into which the wheel is installed."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*pip, str(distributions[1])], check=True, capture_output=True, timeout=120)
    return folder


def run_elsewhere(site, cwd, *arguments):
    env = {**os.environ, "PYTHONPATH": str(site), "RECBOLE_LLM_CACHE": str(cwd / "cache"), "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def shipped_files():
    return [
        path.relative_to(ROOT).as_posix()
        for folder in ("properties", "dataset_configs")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file()
    ]


def test_the_wheel_holds_all_code_and_settings(distributions):
    names = set(zipfile.ZipFile(distributions[1]).namelist())
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recbole_llm").rglob("*.py")}
    code |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "recbole_llm/report").glob("page.*")}
    assert len(shipped_files()) > 15
    expected = code | {f"recbole_llm/{name}" for name in shipped_files()}
    assert not expected - names
    others = {name for name in names - expected if ".dist-info/" not in name}
    assert others <= {"recbole_llm/py.typed"}, "only the package belongs into the wheel"


def test_the_wheel_tells_what_it_is(distributions):
    archive = zipfile.ZipFile(distributions[1])
    info = f"recbole_llm-{__version__}.dist-info"
    text = archive.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in text
    assert "\nRequires-Python: >=3.11\n" in text
    assert "\nLicense-Expression: MIT\n" in text
    assert 'Requires-Dist: recbole==1.2.1; python_version < "3.12"' in text
    assert f"{info}/licenses/LICENSE" in archive.namelist()


def test_the_sdist_holds_what_a_build_and_a_test_need(distributions):
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"setup.cfg", "setup.py", "pyproject.toml", "LICENSE", "Makefile", "constraints.txt", "run_recbole_llm.py"}
    needed |= {"CITATION.cff", "noxfile.py", "tests/test_packaging.py"}
    assert not (needed | set(shipped_files())) - names


def test_the_installed_wheel_runs_a_model_to_the_end(site, tmp_path):
    code = (
        "import sys, recbole_llm; print(recbole_llm.__file__); "
        "from recbole_llm.cli.main import main; code = main(); "
        "assert 'transformers.modeling_utils' not in sys.modules, 'seconds, for a model without a language model'; "
        "raise SystemExit(code)"
    )
    out = run_elsewhere(site, tmp_path, "-c", code, "--model=Pop", "--dataset=ml-100k", "--show_progress=False")
    lines = out.strip().splitlines()
    assert Path(lines[0]) == site / "recbole_llm" / "__init__.py"
    result = json.loads((tmp_path / lines[-1]).read_text(encoding="utf-8"))
    assert result["model"] == "Pop" and 0 < result["test"]["ndcg@10"] < 1
    assert result["settings"]["repeatable"] == "auto", "the wheel's own properties are not read"


def test_the_installed_command_reports(site, tmp_path):
    out = run_elsewhere(site, tmp_path, str(site / "bin" / "recbole-llm"), "doctor")
    assert f"RecBole-LLM {__version__} in {site / 'recbole_llm'}" in out
    assert "smollm2-135m     package" in out
    assert "Scientific       not here" in out
    assert re.search(r"^  recbole +1\.2\.1$", out, re.MULTILINE)


def classifiers():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser["metadata"]["classifiers"].split("\n")


def test_every_place_names_the_same_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
    newest = re.search(r"^## \[(.+)\]$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest and newest[1] == __version__


@pytest.mark.skipif(not (ROOT / ".github").exists(), reason="a distribution has no workflow")
def test_each_python_that_is_claimed_is_tested():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    tested = workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
    claimed = [text.rpartition(" ")[2] for text in classifiers() if re.search(r":: 3\.\d+$", text)]
    assert tested == claimed
    commands = [step["run"] for step in workflow["jobs"]["tests"]["steps"] if "run" in step]
    assert [command.split()[:2] for command in commands] == [["make", "test"], ["make", "run"]]


def pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def required():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    return [Requirement(line) for text in texts for line in text.split("\n") if line]


def test_the_pinned_versions_are_within_the_bounds():
    versions = pinned()
    for requirement in required():
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} does not admit the pinned {version}"
    assert "+" not in versions["torch"], "a local tag ties the set to one build"


def test_the_pinned_set_is_complete():
    versions = pinned()
    for name in versions:
        if name == "torch":  # its own differ by platform; the Makefile lets pip choose them
            continue
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed = canonicalize_name(requirement.name)
                assert needed in versions or needed in LEFT_OUT, f"{name} needs {needed}, which is not pinned"
                if needed in versions:
                    assert requirement.specifier.contains(versions[needed], prereleases=True), f"{name}: {requirement}"
