"""Attention over short sequences in one pass over memory, for training on a processor.

Products of small matrices keep a processor waiting: at 20 positions, splitting heads, two batched products and a
softmax take longer than all linear maps of a layer. The same in one small kernel (``attention.cpp``) is compiled for
one width of heads and one length where there is a C++ compiler, in half a second, and kept in the user's cache. Where
there is none, or where it does not fit, models train by the plain path,
:func:`mesascope.models.layers.eager_attention_forward`, with the same numbers but for rounding. Nothing but training
takes it: what is opened runs as it is written.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder

NAME = "mesascope_fused"
LONGEST = 64  # positions: beyond, products are large enough for a library
WIDTH = 8  # numbers in a vector: a head has a multiple of them
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC")
BETTER = (("-march=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())  # the first that a compiler knows


class Kernel:
    """The compiled functions for one width of heads and one length."""

    def __init__(self, library: ctypes.CDLL, length: int) -> None:
        self.kept = -(-length // WIDTH) * WIDTH  # a row of weights, as it is kept
        self.forward, self.backward = library.forward, library.backward
        rest = (ctypes.c_long, ctypes.c_long, ctypes.c_float, ctypes.c_int)  # batch, heads, scaling, threads
        self.forward.argtypes, self.forward.restype = (*[ctypes.c_void_p] * 5, *rest), None
        self.backward.argtypes, self.backward.restype = (*[ctypes.c_void_p] * 8, *rest), None


@contextmanager
def fused(model: Decoder, length: int) -> Iterator[bool]:
    """Inside, the model attends by the kernel if that fits it and can be compiled; gives whether it does."""
    config = model.config
    fits = _fits(config, length) and model.device.type == "cpu" and model.dtype == torch.float32
    if not fits or kernel(config.hidden_size // config.num_attention_heads, length) is None:
        yield False
        return
    before = config._attn_implementation_internal
    config._attn_implementation_internal = NAME
    try:
        yield True
    finally:
        config._attn_implementation_internal = before


def _fits(config: DecoderConfig, length: int) -> bool:
    """Whether a decoder's attention is what the kernel computes."""
    heads = config.num_attention_heads
    return (
        config.attention == "softmax"
        and config.visible == "past"
        and config.num_key_value_heads == heads
        and config.hidden_size // heads % WIDTH == 0
        and length <= LONGEST
    )


@cache
def kernel(d_head: int, length: int) -> Kernel | None:
    """The kernel of this size, compiled at its first use on this machine; ``None`` where that cannot be done."""
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        return None
    source = resources.files("mesascope.models") / "attention.cpp"
    sizes = (f"-DD={d_head}", f"-DL={length}")
    text = source.read_text(encoding="utf-8")
    what = "\0".join((text, compiler, *FLAGS, *map(str, BETTER), *sizes, _processor()))
    place = _cache() / f"attention-{hashlib.sha256(what.encode()).hexdigest()[:32]}.so"
    try:
        if not place.exists():
            _make(place, compiler, source, sizes)
        try:
            return Kernel(ctypes.CDLL(str(place)), length)
        except (OSError, AttributeError):  # damaged, or another's: made anew
            _make(place, compiler, source, sizes)
            return Kernel(ctypes.CDLL(str(place)), length)
    except (OSError, AttributeError, subprocess.CalledProcessError):  # no place, no success, or nothing to load
        return None


def _make(place: Path, compiler: str, source: Traversable, sizes: Sequence[str]) -> None:
    """Compile into a file that is whole as soon as it is there.

    Raises:
        CalledProcessError: the compiler fails.
        OSError: there is no compiler, or no room.
    """
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with resources.as_file(source) as file, tempfile.TemporaryDirectory(dir=place.parent) as folder:
        _compile(compiler, [*sizes, str(file), "-o", f"{folder}/kernel.so"])
        os.replace(f"{folder}/kernel.so", place)


def _compile(compiler: str, words: list[str]) -> None:
    """Run the compiler, for this very processor and with threads if it can.

    Raises:
        CalledProcessError: it fails in every way.
        OSError: it cannot be run.
    """
    *attempts, last = ([compiler, *FLAGS, *more, *words] for more in BETTER)
    for command in attempts:
        if not subprocess.run(command, capture_output=True, check=False).returncode:
            return
    subprocess.run(last, capture_output=True, check=True)


def _cache() -> Path:
    """Where compiled kernels are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mesascope"


def _processor() -> str:
    """What a kernel that is compiled for this processor must not be used without."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


class _Attention(torch.autograd.Function):
    """Causal softmax attention; heads lie side by side in the last axis."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "batch pos width"],
        key: Float[Tensor, "batch pos width"],
        value: Float[Tensor, "batch pos width"],
        heads: int,
        scaling: float,
    ) -> Float[Tensor, "batch pos width"]:
        """What all heads mix."""
        query, key, value = (one.contiguous() for one in (query, key, value))
        batch, length, width = query.shape
        compiled = kernel(width // heads, length)
        assert compiled is not None
        weights, mixed = query.new_empty(batch, heads, length, compiled.kept), torch.empty_like(query)
        pointers = (one.data_ptr() for one in (query, key, value, weights, mixed))
        compiled.forward(*pointers, batch, heads, scaling, torch.get_num_threads())
        ctx.save_for_backward(query, key, value, weights)
        ctx.rest = compiled, batch, heads, scaling
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator hides the names
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The gradients of queries, keys and values."""
        given = gradients[0].contiguous()  # named, so that it lives as long as its address is used
        compiled, batch, heads, scaling = ctx.rest
        found = [torch.empty_like(given) for _ in range(3)]
        pointers = (one.data_ptr() for one in (*ctx.saved_tensors, given, *found))
        compiled.backward(*pointers, batch, heads, scaling, torch.get_num_threads())
        return *found, None, None


def fused_attention_forward(
    module: nn.Module,
    query: Float[Tensor, "batch head pos d_head"],
    key: Float[Tensor, "batch head pos d_head"],
    value: Float[Tensor, "batch head pos d_head"],
    attention_mask: None,
    scaling: float,
    **_: object,
) -> tuple[Float[Tensor, "batch pos head d_head"], None]:
    """Causal softmax attention as transformers dispatches it; gives no weights."""
    heads, d_head = query.shape[1], query.shape[3]
    flat = (one.transpose(1, 2).flatten(2) for one in (query, key, value))
    return _Attention.apply(*flat, heads, scaling).unflatten(-1, (heads, d_head)), None


AttentionInterface.register(NAME, fused_attention_forward)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # the kernel is causal by itself
