"""Transformers reads a GGUF file three times, its tokenizer word by word from a memory map: made quicker here."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def quick_reading() -> Iterator[None]:
    """Let transformers read each GGUF file once and from a plain array, while this lasts.

    A slice of `numpy.memmap` costs ten times what one of an array does, and a tokenizer needs a million of them. The
    names of all tensors are also made once, not for every layer again. What is read stays the same.

    One thread at a time does this, others wait.

    Raises:
        ImportError: if the package gguf is not here.
    """
    import gguf  # of use here alone, and not all installations have it

    class Reader(gguf.GGUFReader):
        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._data = np.asarray(mapped)

    with _ONE_AT_A_TIME:
        own = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
        gguf.GGUFReader, gguf.get_tensor_name_map = functools.cache(Reader), functools.cache(gguf.get_tensor_name_map)
        try:
            yield
        finally:
            for name, value in own.items():
                setattr(gguf, name, value)
