"""Compilation and loading of the kernel of the fused attention sublayer, one library per size."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

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
    library_path = _library_path(compiler, source, sizes)
    try:
        return _load_or_build(library_path, compiler, source, sizes)
    except (OSError, AttributeError, ValueError, subprocess.CalledProcessError):
        return None  # the cache is not writable, compilation failed, or the library cannot be loaded


def _library_path(compiler: str, source: Traversable, sizes: Sequence[str]) -> Path:
    """Return the path in the cache, whose name depends on all that determines the library."""
    text = source.read_text(encoding="utf-8")
    identity = "\0".join((text, compiler, *COMPILER_FLAGS, *map(str, OPTIONAL_FLAGS), *sizes, _processor_features()))
    return _cache_dir() / f"attention-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.so"


def _load_or_build(library_path: Path, compiler: str, source: Traversable, sizes: Sequence[str]) -> FusedKernel:
    if not library_path.exists():
        _build_library(library_path, compiler, source, sizes)
    try:
        return FusedKernel(ctypes.CDLL(str(library_path)))
    except (OSError, AttributeError, ValueError):  # a damaged or foreign file: compile again
        _build_library(library_path, compiler, source, sizes)
        return FusedKernel(ctypes.CDLL(str(library_path)))


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
