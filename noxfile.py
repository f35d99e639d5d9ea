"""Runs of the tests in environments other than .venv: the lower bounds of setup.cfg, and every Python that it names.

Both sessions take a part of the tests, too::

    nox -s lower_bounds
    nox -s python-3.13 -- tests/trainer
"""

import configparser
import re
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

nox.options.sessions = ["lower_bounds"]
_CONFIG = configparser.ConfigParser()
_CONFIG.read(Path(__file__).with_name("setup.cfg"), encoding="utf-8")
_PYTHONS = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", _CONFIG["metadata"]["classifiers"], re.MULTILINE)


def pinned() -> dict[str, str]:
    """Return the version of each package in constraints.txt."""
    lines = Path(__file__).with_name("constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def lower_bounds_of_setup_cfg() -> dict[str, str]:
    """Return the lowest version that setup.cfg admits of each package that a run needs."""
    extras = _CONFIG["options.extras_require"]
    texts = (_CONFIG["options"]["install_requires"], extras["ann"], extras["tune"], extras["serve"])
    requirements = [Requirement(line) for text in texts for line in text.splitlines() if line]
    return {canonicalize_name(requirement.name): _lowest(requirement) for requirement in requirements}


def _lowest(requirement: Requirement) -> str:
    return next(bound.version for bound in requirement.specifier if bound.operator in (">=", "=="))


def _install(session: nox.Session, versions: dict[str, str]) -> None:
    # As the Makefile does: torch first with what its platform needs, then the rest, of which nothing is resolved.
    session.install(f"torch=={versions['torch']}")
    session.install("--no-deps", *(f"{name}=={version}" for name, version in versions.items()))
    session.install("--no-deps", "--no-build-isolation", "--editable", ".")


def _run_tests(session: nox.Session) -> None:
    which = ("-m", "not slow and not gpu and not network", "--timeout=300", "--numprocesses=2")
    session.run("python", "-m", "pytest", *which, *session.posargs, env={"TQDM_DISABLE": "1"})


@nox.session(python=_PYTHONS[0])
def lower_bounds(session: nox.Session) -> None:
    """The tests with the lowest version of each package that setup.cfg admits; what only develops stays pinned."""
    lowest = lower_bounds_of_setup_cfg()
    _install(session, {**pinned(), **lowest})
    # What an older version needs and the pinned one does not (huggingface_hub 1: httpx); RecBole would bring ray.
    session.install(*(f"{name}=={version}" for name, version in lowest.items() if name != "recbole"))
    _run_tests(session)


@nox.session(python=_PYTHONS)
def python(session: nox.Session) -> None:
    """The tests on each Python that the classifiers name, with the pinned versions."""
    _install(session, pinned())
    _run_tests(session)
