"""Opening a GGUF file in less time."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module

SLOW = ("GGUFReader", "get_tensor_name_map")  # of gguf: the first parses the whole file


@contextmanager
def read_once() -> Iterator[None]:
    """Inside, transformers parses a GGUF file once, not for configuration, weights and tokenizer each.

    It also builds the table of a model's tensor names once, not for every module. What both give is only read.
    """
    gguf = import_module("gguf")
    slow = {name: getattr(gguf, name) for name in SLOW}
    for name, make in slow.items():
        setattr(gguf, name, lru_cache(maxsize=1)(make))
    try:
        yield
    finally:
        for name, make in slow.items():
            setattr(gguf, name, make)
