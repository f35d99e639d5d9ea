"""Packages that are not installed with this one: those of its extras, and those that are not to be noticed."""

import contextlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec

from recbole_llm.errors import SettingError


def require_package(package: str, what: str, extra: str) -> None:
    """Refuse to go on without a package.

    Args:
        package: its name in an import.
        what: what needs it.
        extra: of `recbole-llm`, with which it comes.

    Raises:
        SettingError: if it is not installed.
    """
    if find_spec(package) is None:
        raise SettingError(f"{what} needs the package '{package}': pip install 'recbole-llm[{extra}]'")


def require_faiss() -> None:
    """Refuse an approximate search if its package is not installed. Raises SettingError."""
    require_package("faiss", "search=approximate", "ann")


@contextlib.contextmanager
def hidden_package(package: str) -> Iterator[None]:
    """Let imports inside find that a package is not installed; afterwards it is what it was, imported or not.

    Args:
        package: its name in an import, without a dot. Imports of it by other threads fail meanwhile, too.
    """
    before = {package: sys.modules[package]} if package in sys.modules else {}
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules.update(before)
