"""Faster and safer loading of GGUF files, without progress bars."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from mesascope.models._weight_files import StoredWeights


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

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            # an array that claims more items than the file has bytes would be read for ever: the end reads as empty
            if raw_type == gguf.GGUFValueType.ARRAY:
                length = int(self._get(orig_offs + 4, np.uint64)[0])
                if length > len(self.data) - orig_offs:
                    raise ValueError(f"an array has {length} items, but the file ends before")
            return super()._get_field_parts(orig_offs, raw_type)

    reader, table = lru_cache(maxsize=1)(Reader), lru_cache(maxsize=1)(gguf.get_tensor_name_map)
    with (
        patch.object(gguf, "GGUFReader", reader),
        patch.object(gguf, "get_tensor_name_map", table),
        patch("transformers.modeling_gguf_pytorch_utils.tqdm", _without_progress_bar),
    ):
        yield


def _without_progress_bar(iterable: Any, **_: Any) -> Any:
    return iterable


def read_gguf_weights(file: Path) -> StoredWeights:
    """Read the sizes of the tensors of a GGUF file, inside :func:`parse_gguf_once`.

    Args:
        file: The file.

    Returns:
        The sizes.
    """
    import gguf  # an optional dependency

    tensors = gguf.GGUFReader(str(file)).tensors
    return StoredWeights(
        tensors=len(tensors),
        elements=sum(int(tensor.n_elements) for tensor in tensors),
        num_bytes=file.stat().st_size,
    )


def has_gguf_tokenizer(file: Path) -> bool:
    """Return whether a GGUF file contains a tokenizer, inside :func:`parse_gguf_once`.

    Args:
        file: The file.
    """
    import gguf  # an optional dependency

    return "tokenizer.ggml.tokens" in gguf.GGUFReader(str(file)).fields
