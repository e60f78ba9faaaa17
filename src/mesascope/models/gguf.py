"""Opening a GGUF file in less time, and without a bar of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import numpy as np


@contextmanager
def read_once() -> Iterator[None]:
    """Inside, transformers parses a GGUF file once, not for configuration, weights and tokenizer each.

    It also builds the table of a model's tensor names once, not for every module. What both give is only read. The
    words of a vocabulary are cut from a plain array over the mapped file: of a memmap every cut is a memmap again,
    which takes several times as long.
    """
    import gguf  # an extra

    class Reader(gguf.GGUFReader):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    reader, table = lru_cache(maxsize=1)(Reader), lru_cache(maxsize=1)(gguf.get_tensor_name_map)
    with (
        patch.object(gguf, "GGUFReader", reader),
        patch.object(gguf, "get_tensor_name_map", table),
        patch("transformers.modeling_gguf_pytorch_utils.tqdm", _no_bar),
    ):
        yield


def _no_bar(things: Any, **_: Any) -> Any:
    """What tqdm iterates over."""
    return things
