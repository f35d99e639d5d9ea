"""The names that RecBole reads from numpy and that numpy 2 no longer has, such as ``np.float``.

Repairs `recbole/config/configurator.py:629` (`Config.compatibility_settings` sets them in numpy itself, for the whole
process, from ``np.float_``, ``np.complex_`` and ``np.unicode_``, which are gone, too). Here each module of RecBole that
reads one has an ``np`` with these names; numpy stays as it is. It happens when this module is imported: whatever builds
a Config imports it first, and no call of ours changes anything later.
"""

import types
from typing import Any

import numpy as np
import recbole.data.dataset.dataset  # :652
import recbole.data.interaction  # :31
import recbole.evaluator.metrics  # :90 and others
import recbole.model.abstract_recommender  # :309
import recbole.model.layers  # :932

from recbole_llm.compat.overlay import Overlay

ALIASES = {
    "bool": np.bool_,
    "int": np.int_,
    "float": np.float64,
    "complex": np.complex128,
    "object": np.object_,
    "str": np.str_,
    "long": np.int_,
    "unicode": np.str_,
}


def repair(module: Any) -> None:
    """Give the names to a module of RecBole that reads numpy as ``np``."""
    if isinstance(getattr(module, "np", None), types.ModuleType) and not isinstance(module.np, Overlay):
        module.np = Overlay(np, **ALIASES)


for _module in (
    recbole.data.dataset.dataset,
    recbole.data.interaction,
    recbole.evaluator.metrics,
    recbole.model.abstract_recommender,
    recbole.model.layers,
):
    repair(_module)
