"""A fused attention sublayer for training on short sequences on a CPU.

On a CPU small matrix products are bound by memory: at 20 positions, splitting heads, two batched products and a softmax
take longer than all linear layers. One kernel (``attention.cpp``) computes norm, projections, attention and residual
sum sequence by sequence, so that intermediate values stay in the processor's cache. It is compiled once per size, in
seconds, if a C++ compiler is available, and stored in the user's cache directory. Without a compiler, or for
configurations that the kernel does not support, models train with :class:`mesascope.models.layers.DecoderBlock`, which
computes the same numbers up to rounding. The kernel is used in training only, never when activations are captured.
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
from mesascope.models.layers import FUSED_SUBLAYERS, DecoderBlock
from mesascope.models.transformer import Decoder

FUSED_ATTENTION = "mesascope_fused"
MAX_FUSED_POSITIONS, MAX_FUSED_WIDTH = (
    64,
    256,
)  # positions, d_model: beyond these, matrix products of a library are as fast
VECTOR_WIDTH = 8  # floats in a SIMD vector; the width of a head must be a multiple
COMPILER_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC")
KERNEL_CONSTANTS = (
    "PARTS_OF_SUMS",
    "NUMBERS_IN_A_PART",
    "NUMBERS_IN_A_ROW",
)  # constants exported by the compiled kernel
OPTIONAL_FLAGS = (("-march=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())  # tried in this order


class FusedKernel:
    """The compiled functions for one size.

    Attributes:
        num_parts: number of partial sums of the parameter gradients.
        part_size: number of floats in each partial sum.
        weights_stride: row stride of the stored attention weights, in floats.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        sizes = (ctypes.c_long.in_dll(library, name).value for name in KERNEL_CONSTANTS)
        self.num_parts, self.part_size, self.weights_stride = sizes
        self.forward, self.backward = library.forward, library.backward
        rest = (ctypes.c_long, ctypes.c_float, ctypes.c_float, ctypes.c_int)  # batch, scaling, epsilon, threads
        for function in (self.forward, self.backward):
            function.argtypes, function.restype = (*[ctypes.c_void_p] * 11, *rest), None


@dataclass(frozen=True, kw_only=True)
class KernelSize:
    """Compile-time constants of a kernel, by their names in the C++ source.

    Attributes:
        H: number of heads.
        D: width of a head.
        L: number of positions.
        NORM: 0 for no norm, 1 for LayerNorm, 2 for RMSNorm.
    """

    H: int
    D: int
    L: int
    NORM: int


@contextmanager
def fused_attention(model: Decoder, length: int) -> Iterator[bool]:
    """Run the attention of a model with the fused kernel inside the context, if it is supported and can be compiled.

    Args:
        model: the decoder.
        length: number of positions.

    Yields:
        True if the kernel is used.
    """
    config = model.config
    supported = _is_supported(config, length) and model.device.type == "cpu" and model.dtype == torch.float32
    if (
        not supported or _has_hooks(model) or load_kernel(_kernel_size(model.layers[0], length)) is None
    ):  # all blocks have one size
        yield False
        return
    previous = config._attn_implementation_internal
    config._attn_implementation_internal = FUSED_ATTENTION
    try:
        yield True
    finally:
        config._attn_implementation_internal = previous


def _is_supported(config: DecoderConfig, length: int) -> bool:
    """Return True if the kernel supports the configuration."""
    heads = config.num_attention_heads
    return (
        config.attention == "softmax"
        and config.mask == "causal"
        and config.norm_position != "output"
        and config.positions != "rotary"
        and config.num_key_value_heads == heads
        and config.hidden_size // heads % VECTOR_WIDTH == 0
        and config.hidden_size <= MAX_FUSED_WIDTH
        and length <= MAX_FUSED_POSITIONS
    )


def _has_hooks(model: Decoder) -> bool:
    """Return True if a module has forward hooks, which the kernel would not call."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _kernel_size(block: nn.Module, length: int) -> KernelSize:
    assert isinstance(block, DecoderBlock)
    attention = block.attention
    heads = attention.q_proj.out_features // attention.head_dim
    return KernelSize(H=heads, D=attention.head_dim, L=length, NORM=_norm_parameters(block)[0])


def _norm_parameters(block: DecoderBlock) -> tuple[int, Tensor | None, Tensor | None, float]:
    """Return the norm before the projections: its kind as in `KernelSize.NORM`, gain, shift and epsilon."""
    norm = block.attention_norm
    if block.post or isinstance(norm, nn.Identity):
        return 0, None, None, 0.0
    if isinstance(norm, nn.LayerNorm):
        return 1, norm.weight, norm.bias, norm.eps
    assert isinstance(norm, nn.RMSNorm)
    assert norm.eps is not None
    return 2, norm.weight, None, norm.eps


@cache
def load_kernel(size: KernelSize) -> FusedKernel | None:
    """Load the kernel of a size, and compile it on first use.

    Args:
        size: compile-time constants.

    Returns:
        The kernel, or ``None`` if it cannot be compiled or loaded.
    """
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        return None
    source = resources.files("mesascope.models") / "attention.cpp"
    sizes = [f"-D{name}={value}" for name, value in asdict(size).items()]
    text = source.read_text(encoding="utf-8")
    identity = "\0".join((text, compiler, *COMPILER_FLAGS, *map(str, OPTIONAL_FLAGS), *sizes, _processor_features()))
    library_path = _cache_dir() / f"attention-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.so"
    try:
        if not library_path.exists():
            _build_library(library_path, compiler, source, sizes)
        try:
            return FusedKernel(ctypes.CDLL(str(library_path)))
        except (OSError, AttributeError, ValueError):  # a damaged or foreign file: compile again
            _build_library(library_path, compiler, source, sizes)
            return FusedKernel(ctypes.CDLL(str(library_path)))
    except (
        OSError,
        AttributeError,
        ValueError,
        subprocess.CalledProcessError,
    ):  # the cache is not writable, compilation failed, or the library cannot be loaded
        return None


def _build_library(library_path: Path, compiler: str, source: Traversable, sizes: Sequence[str]) -> None:
    """Compile to a temporary file and rename it, so that no incomplete library is ever visible.

    Raises:
        CalledProcessError: the compiler fails.
        OSError: there is no compiler, or the cache is not writable.
    """
    library_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with resources.as_file(source) as file, tempfile.TemporaryDirectory(dir=library_path.parent) as folder:
        _run_compiler(compiler, [*sizes, str(file), "-o", f"{folder}/kernel.so"])
        os.replace(f"{folder}/kernel.so", library_path)


def _run_compiler(compiler: str, arguments: list[str]) -> None:
    """Run the compiler with the first set of optional flags that it supports.

    Raises:
        CalledProcessError: it fails with every set of flags.
        OSError: it cannot be run.
    """
    *attempts, last = ([compiler, *COMPILER_FLAGS, *more, *arguments] for more in OPTIONAL_FLAGS)
    for command in attempts:
        if not subprocess.run(command, capture_output=True, check=False).returncode:
            return
    subprocess.run(last, capture_output=True, check=True)


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mesascope"


def _processor_features() -> str:
    """Return the processor features that a natively compiled kernel depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


class _FusedSublayer(torch.autograd.Function):
    """The autograd function x + out(attention(projections(norm(x)))), with query, key and value projections stacked."""

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
        size: KernelSize,
        scaling: float,
        eps: float,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the residual stream after the sublayer."""
        x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        compiled = load_kernel(size)
        assert compiled is not None
        (batch, length, width), rest = x.shape, (len(x), scaling, eps)
        qkv, mixed = x.new_empty(batch, length, 3 * width), torch.empty_like(y)
        weights = x.new_empty(batch, size.H, length, compiled.weights_stride)
        maps_transposed, out_transposed = maps.T.contiguous(), out.T.contiguous()
        arguments = x, gain, shift, maps_transposed, biases, out_transposed, out_bias
        compiled.forward(*map(_data_pointer, (*arguments, qkv, weights, mixed, y)), *rest, torch.get_num_threads())
        ctx.save_for_backward(x, gain, shift, maps, out, qkv, weights, mixed)
        ctx.rest = compiled, rest
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator hides the parameter names
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of the residual stream and the parameters."""
        grad_output = gradients[0].contiguous()  # bound to a name, so that its memory stays alive while the kernel runs
        (compiled, rest), (x, gain, shift, *_) = ctx.rest, ctx.saved_tensors
        grad_x, parts = torch.empty_like(x), x.new_zeros(compiled.num_parts, compiled.part_size)
        pointers = map(_data_pointer, (*ctx.saved_tensors, grad_output, grad_x, parts))
        compiled.backward(*pointers, *rest, torch.get_num_threads())
        width = x.shape[-1]
        sizes = (3 * width * width, 3 * width, width * width, width, width, width)
        maps, biases, out, out_bias, grad_gain, grad_shift = parts.sum(0).split(sizes)
        grad_projections = maps.unflatten(0, (-1, width)), biases, out.unflatten(0, (-1, width)), out_bias
        return (
            grad_x,
            None if gain is None else grad_gain,
            None if shift is None else grad_shift,
            *grad_projections,
            None,
            None,
            None,
        )


def _data_pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def run_fused_sublayer(
    block: DecoderBlock, x: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    """Compute the residual stream after the attention sublayer, before any post-norm.

    Args:
        block: the block whose attention is computed.
        x: residual stream.

    Returns:
        The residual stream with the attention output added.
    """
    (_, gain, shift, eps), attention = _norm_parameters(block), block.attention
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    return _FusedSublayer.apply(
        x,
        gain,
        shift,
        torch.cat([each.weight for each in projections]),
        torch.cat([each.bias for each in projections]),
        attention.o_proj.weight,
        attention.o_proj.bias,
        _kernel_size(block, x.shape[1]),
        attention.scaling,
        eps,
    )


FUSED_SUBLAYERS[FUSED_ATTENTION] = run_fused_sublayer
AttentionMaskInterface.register(FUSED_ATTENTION, lambda *_, **__: None)  # the kernel applies the causal mask itself
