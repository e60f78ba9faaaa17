"""Opening a GGUF file in less time, and without a bar of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest.mock import patch


@contextmanager
def read_once() -> Iterator[None]:
    """Inside, transformers parses a GGUF file once, not for configuration, weights and tokenizer each.

    It also builds the table of a model's tensor names once, not for every module. What both give is only read.
    """
    import gguf  # an extra

    reader, table = lru_cache(maxsize=1)(gguf.GGUFReader), lru_cache(maxsize=1)(gguf.get_tensor_name_map)
    with (
        patch.object(gguf, "GGUFReader", reader),
        patch.object(gguf, "get_tensor_name_map", table),
        patch("transformers.modeling_gguf_pytorch_utils.tqdm", _no_bar),
    ):
        yield


def _no_bar(things: Any, **_: Any) -> Any:
    """What tqdm iterates over."""
    return things
