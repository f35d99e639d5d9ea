"""What RecBole 1.2.1 needs on today's numpy and torch. Each repair names the line of RecBole that it repairs.

Nothing happens at import: `alias_numpy_names` runs when a Config is built, at the moment RecBole itself does it.
"""

import numpy as np

_ALIASES = {
    "bool": np.bool_,
    "int": np.int_,
    "float": np.float64,
    "complex": np.complex128,
    "object": np.object_,
    "str": np.str_,
    "long": np.int_,
    "unicode": np.str_,
}


def alias_numpy_names() -> None:
    """Set the names that RecBole reads from numpy after a Config is built, such as ``np.float``.

    Repairs `recbole/config/configurator.py:629` (`Config.compatibility_settings` reads ``np.float_``, ``np.complex_``
    and ``np.unicode_``, which numpy 2 no longer has). `recbole/data/interaction.py:31`,
    `recbole/data/dataset/dataset.py:652`, `recbole/evaluator/metrics.py:90` and others read the aliases later.
    """
    for name, value in _ALIASES.items():
        setattr(np, name, value)
