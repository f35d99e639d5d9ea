"""Packages that are not installed with this one, but with one of its extras."""

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
