"""RecBole-LLM: language-model recommenders inside RecBole 1.2.1.

What is listed in `__all__` is the public interface; each name is imported when it is first used, so that importing the
package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_llm.comparison.compare import compare_models as compare
    from recbole_llm.hyper_search.search import tune
    from recbole_llm.inference.recommender import Recommender
    from recbole_llm.quick_start.run import load, pretrain, run

__version__ = "0.3.0"
__all__ = ["Recommender", "__version__", "compare", "load", "pretrain", "run", "tune"]

_HOMES = {
    "Recommender": ("inference.recommender", "Recommender"),
    "compare": ("comparison.compare", "compare_models"),
    "load": ("quick_start.run", "load"),
    "pretrain": ("quick_start.run", "pretrain"),
    "run": ("quick_start.run", "run"),
    "tune": ("hyper_search.search", "tune"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
