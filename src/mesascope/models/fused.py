"""The attention sublayer over short sequences in one pass over memory, for training on a processor.

Products of small matrices keep a processor waiting: at 20 positions, splitting heads, two batched products and a
softmax take longer than all linear maps of a layer, and those wait for memory. Norm, maps, attention and residual sum
in one kernel (``attention.cpp``), a sequence at a time, stay in the processor's cache. It is compiled for one size
where there is a C++ compiler, in seconds, and kept in the user's cache. Where there is none, or where it does not fit,
models train by the plain path, :class:`mesascope.models.layers.Block`, with the same numbers but for rounding. Nothing
but training takes it: what is opened runs as it is written.
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
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface

from mesascope.models.config import DecoderConfig
from mesascope.models.layers import SUBLAYERS, Block
from mesascope.models.transformer import Decoder

NAME = "mesascope_fused"
LONGEST, WIDEST = 64, 256  # positions, d_model: beyond, products are large enough for a library
WIDTH = 8  # numbers in a vector: a head has a multiple of them
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC")
KEPT = ("PARTS_OF_SUMS", "NUMBERS_IN_A_PART", "NUMBERS_IN_A_ROW")  # constants that a compiled kernel tells
BETTER = (("-march=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())  # the first that a compiler knows


class Kernel:
    """The compiled functions for one size.

    Attributes:
        parts: that sums of gradients have.
        part: numbers in each.
        kept: numbers in a row of weights of attention, as it is kept.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        sizes = (ctypes.c_long.in_dll(library, name).value for name in KEPT)
        self.parts, self.part, self.kept = sizes
        self.forward, self.backward = library.forward, library.backward
        rest = (ctypes.c_long, ctypes.c_float, ctypes.c_float, ctypes.c_int)  # batch, scaling, epsilon, threads
        for function in (self.forward, self.backward):
            function.argtypes, function.restype = (*[ctypes.c_void_p] * 11, *rest), None


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a kernel is compiled for, by the names that its source has for it."""

    H: int
    D: int
    L: int
    NORM: int


@contextmanager
def fused(model: Decoder, length: int) -> Iterator[bool]:
    """Inside, the model attends by the kernel if that fits it and can be compiled; gives whether it does."""
    config = model.config
    fits = _fits(config, length) and model.device.type == "cpu" and model.dtype == torch.float32
    if not fits or _heard(model) or kernel(_size(model.layers[0], length)) is None:  # blocks are alike
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
        and config.norm_position != "output"
        and config.positions != "rotary"
        and config.num_key_value_heads == heads
        and config.hidden_size // heads % WIDTH == 0
        and config.hidden_size <= WIDEST
        and length <= LONGEST
    )


def _heard(model: Decoder) -> bool:
    """Whether somebody wants to hear what the kernel does not call."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _size(block: nn.Module, length: int) -> Size:
    """What the kernel of a block is compiled for."""
    assert isinstance(block, Block)
    attention = block.attention
    heads = attention.q_proj.out_features // attention.head_dim
    return Size(H=heads, D=attention.head_dim, L=length, NORM=_norm(block)[0])


def _norm(block: Block) -> tuple[int, Tensor | None, Tensor | None, float]:
    """What stands before the maps: its number in the kernel, gain, shift, and what keeps its root from 0."""
    norm = block.attention_norm
    if block.post or isinstance(norm, nn.Identity):
        return 0, None, None, 0.0
    if isinstance(norm, nn.LayerNorm):
        return 1, norm.weight, norm.bias, norm.eps
    assert isinstance(norm, nn.RMSNorm)
    assert norm.eps is not None
    return 2, norm.weight, None, norm.eps


@cache
def kernel(size: Size) -> Kernel | None:
    """The kernel of this size, compiled at its first use on this machine; ``None`` where that cannot be done."""
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        return None
    source = resources.files("mesascope.models") / "attention.cpp"
    sizes = [f"-D{name}={value}" for name, value in asdict(size).items()]
    text = source.read_text(encoding="utf-8")
    what = "\0".join((text, compiler, *FLAGS, *map(str, BETTER), *sizes, _processor()))
    place = _cache() / f"attention-{hashlib.sha256(what.encode()).hexdigest()[:32]}.so"
    try:
        if not place.exists():
            _make(place, compiler, source, sizes)
        try:
            return Kernel(ctypes.CDLL(str(place)))
        except (OSError, AttributeError, ValueError):  # damaged, or another's: made anew
            _make(place, compiler, source, sizes)
            return Kernel(ctypes.CDLL(str(place)))
    except (
        OSError,
        AttributeError,
        ValueError,
        subprocess.CalledProcessError,
    ):  # no place, no success, nothing to load
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


class _Sublayer(torch.autograd.Function):
    """x + out(attend(maps(norm(x)))), where the maps of queries, keys and values are one."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "batch pos d_model"],
        gain: Float[Tensor, "d_model"] | None,
        shift: Float[Tensor, "d_model"] | None,
        maps: Float[Tensor, "three_d_model d_model"],
        biases: Float[Tensor, "three_d_model"],
        out: Float[Tensor, "d_model d_model"],
        out_bias: Float[Tensor, "d_model"],
        size: Size,
        scaling: float,
        eps: float,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The stream after the sublayer."""
        x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        compiled = kernel(size)
        assert compiled is not None
        (batch, length, width), rest = x.shape, (len(x), scaling, eps)
        qkv, mixed = x.new_empty(batch, length, 3 * width), torch.empty_like(y)
        weights = x.new_empty(batch, size.H, length, compiled.kept)
        turned, out_turned = maps.T.contiguous(), out.T.contiguous()
        read = x, gain, shift, turned, biases, out_turned, out_bias
        compiled.forward(*map(_address, (*read, qkv, weights, mixed, y)), *rest, torch.get_num_threads())
        ctx.save_for_backward(x, gain, shift, maps, out, qkv, weights, mixed)
        ctx.rest = compiled, rest
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator hides the names
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The gradients of the stream and of the parameters."""
        given = gradients[0].contiguous()  # named, so that it lives as long as its address is used
        (compiled, rest), (x, gain, shift, *_) = ctx.rest, ctx.saved_tensors
        found, parts = torch.empty_like(x), x.new_zeros(compiled.parts, compiled.part)
        pointers = map(_address, (*ctx.saved_tensors, given, found, parts))
        compiled.backward(*pointers, *rest, torch.get_num_threads())
        width = x.shape[-1]
        sizes = (3 * width * width, 3 * width, width * width, width, width, width)
        maps, biases, out, out_bias, of_gain, of_shift = parts.sum(0).split(sizes)
        own = maps.unflatten(0, (-1, width)), biases, out.unflatten(0, (-1, width)), out_bias
        return found, None if gain is None else of_gain, None if shift is None else of_shift, *own, None, None, None


def _address(tensor: Tensor | None) -> int | None:
    """Where its numbers lie."""
    return None if tensor is None else tensor.data_ptr()


def fused_sublayer(block: Block, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """The stream with what attention writes to it, before a norm that stands behind the sum."""
    (_, gain, shift, eps), attention = _norm(block), block.attention
    reads = attention.q_proj, attention.k_proj, attention.v_proj
    return _Sublayer.apply(
        x,
        gain,
        shift,
        torch.cat([each.weight for each in reads]),
        torch.cat([each.bias for each in reads]),
        attention.o_proj.weight,
        attention.o_proj.bias,
        _size(block, x.shape[1]),
        attention.scaling,
        eps,
    )


SUBLAYERS[NAME] = fused_sublayer
AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # the kernel is causal by itself
