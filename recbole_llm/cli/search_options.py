"""The options of `recommend` and `serve` that say how the best items are searched for."""

from typing import TYPE_CHECKING, Any

from recbole_llm.cli.arguments import one_of, whole
from recbole_llm.errors import SettingError, require_share
from recbole_llm.utils.packages import require_faiss
from recbole_llm.utils.values import parse_value

if TYPE_CHECKING:
    from recbole_llm.inference.approximate_search import ApproximateSearch

SEARCHES = ("exact", "approximate")
_OWN = ("min_recall", "nprobe")


def add_search(group: Any) -> None:
    """Add ``--search`` and the options of an approximate search."""
    group.add_argument(
        "--search",
        type=one_of("search", SEARCHES),
        metavar="NAME",
        help="exact, or approximate: by an index of the item vectors, for a large catalogue; the scores of what is "
        "found are exact (default: exact)",
    )
    group.add_argument(
        "--min_recall",
        type=_share,
        metavar="FLOAT",
        help="the least share of the exact best items that an approximate search must find of a sample of users "
        "(default: 0.99)",
    )
    group.add_argument(
        "--nprobe",
        type=whole("nprobe", 1),
        metavar="INT",
        help="how many lists of its index an approximate search reads (default: as few as reach min_recall)",
    )


def search_of(given: dict[str, Any], k: int) -> "ApproximateSearch | None":
    """Return the approximate search that is asked for, None for an exact one.

    Args:
        given: the verb's options.
        k: for how many items the recall is measured.

    Raises:
        SettingError: for options of an approximate search without one, and a missing package.
    """
    if given.get("search", "exact") == "exact":
        for name in (*_OWN, "search_k"):
            if name in given:
                raise SettingError(f"--{name} is of an approximate search: give --search=approximate, too")
        return None
    require_faiss()  # before the minutes in which a large model is loaded
    from recbole_llm.inference.approximate_search import ApproximateSearch

    return ApproximateSearch(k, **{name: given[name] for name in (*_OWN, "exclude_seen") if name in given})


def _share(text: str) -> float:
    value = parse_value(text)
    require_share("min_recall", value)
    return float(value)
