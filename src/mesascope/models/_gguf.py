"""Faster loading of GGUF files, without progress bars."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import numpy as np


@contextmanager
def parse_gguf_once() -> Iterator[None]:
    """Parse each GGUF file only once inside the context.

    transformers parses it separately for configuration, weights and tokenizer, and builds the table of tensor names for
    every module; both results are cached here, because they are only read. Data are exposed as a plain array over the
    mapped file: slicing a memmap creates a memmap for each vocabulary entry, which takes several times as long.
    """
    import gguf  # an optional dependency

    class Reader(gguf.GGUFReader):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    reader, table = lru_cache(maxsize=1)(Reader), lru_cache(maxsize=1)(gguf.get_tensor_name_map)
    with (
        patch.object(gguf, "GGUFReader", reader),
        patch.object(gguf, "get_tensor_name_map", table),
        patch("transformers.modeling_gguf_pytorch_utils.tqdm", _without_progress_bar),
    ):
        yield


def _without_progress_bar(iterable: Any, **_: Any) -> Any:
    return iterable
