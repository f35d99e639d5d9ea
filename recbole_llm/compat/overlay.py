"""A module as it is, but for some names."""

import types
from typing import Any


class Overlay(types.ModuleType):
    """Stands in for a module where it is read under a name of its own, such as ``np`` in one module of RecBole."""

    def __init__(self, module: types.ModuleType, **replaced: Any) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(replaced)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
