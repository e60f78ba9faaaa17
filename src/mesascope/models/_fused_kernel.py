"""Compilation and loading of the kernel of the fused attention sublayer, one library per size."""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from mesascope.user_cache import find_user_cache

COMPILER_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC")
KERNEL_CONSTANTS = (
    "PARTS_OF_SUMS",
    "NUMBERS_IN_A_PART",
    "NUMBERS_IN_A_ROW",
)  # constants exported by the compiled kernel
HAS_OWNERS = hasattr(os, "geteuid")  # Windows has none: the folder of a user is private there
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
        The kernel, or ``None`` if it cannot be compiled or loaded. A cached library is loaded only if its content is
        what was compiled here and nobody but the user could write it; otherwise it is compiled again.
    """
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        return None
    source = resources.files("mesascope.models") / "attention.cpp"
    sizes = [f"-D{name}={value}" for name, value in asdict(size).items()]
    key = _library_key(compiler, source, sizes)
    try:
        folder = _make_private_folder(find_user_cache())
        cached = None if folder is None else _load_cached(folder, key)
        return cached if cached is not None else _build_kernel(folder, key, compiler, source, sizes)
    except (OSError, AttributeError, ValueError, subprocess.CalledProcessError):
        return None  # no folder is writable, compilation failed, or the library cannot be loaded


def _library_key(compiler: str, source: Traversable, sizes: Sequence[str]) -> str:
    """Return a digest of all that determines the library: source, compiler, flags, size and processor."""
    text = source.read_text(encoding="utf-8")
    identity = "\0".join((text, compiler, *COMPILER_FLAGS, *map(str, OPTIONAL_FLAGS), *sizes, _processor_features()))
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _library_name(key: str, content: bytes) -> str:
    """Return the file name of a library: its key and the digest of both, so that other content is never loaded."""
    return f"attention-{key}-{hashlib.sha256(key.encode() + content).hexdigest()[:32]}.so"


def _load_cached(folder: Path, key: str) -> FusedKernel | None:
    """Load the cached library of a key; files whose content or owner is in doubt are removed, and None is returned."""
    for file in sorted(folder.glob(f"attention-{key}-*.so")):
        try:
            content = file.read_bytes() if _is_private(file.lstat()) else b""
            if _library_name(key, content) == file.name:
                return _load_library(content, folder)
        except (OSError, AttributeError, ValueError):
            pass  # another process has removed it, or the dynamic linker refuses it
        file.unlink(missing_ok=True)
    return None


def _make_private_folder(folder: Path) -> Path | None:
    """Create the cache folder; None if somebody else could write there, or it is not writable."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        parents_safe = all(_is_safe_parent(parent.stat()) for parent in folder.resolve().parents)
        return folder if parents_safe and _is_private(folder.lstat()) and os.access(folder, os.W_OK) else None
    except OSError:
        return None


def _is_private(status: os.stat_result) -> bool:
    """Return whether a file or folder is no link, and belongs to the user, who alone may write it."""
    return _owned_by_user(status) and not stat.S_ISLNK(status.st_mode) and not _writable_by_others(status)


def _is_safe_parent(status: os.stat_result) -> bool:
    """Return whether nobody but the user and root can replace what lies in a folder."""
    return _owned_by_user(status, or_root=True) and (
        not _writable_by_others(status) or bool(status.st_mode & stat.S_ISVTX)
    )


def _owned_by_user(status: os.stat_result, *, or_root: bool = False) -> bool:
    return not HAS_OWNERS or status.st_uid == os.geteuid() or (or_root and status.st_uid == 0)


def _writable_by_others(status: os.stat_result) -> bool:
    return HAS_OWNERS and bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _load_library(content: bytes, folder: Path | None) -> FusedKernel:
    """Load a library from a private copy, so that the bytes that were verified are loaded, and stay what they are."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        file = Path(temporary) / "kernel.so"
        file.write_bytes(content)
        return FusedKernel(ctypes.CDLL(str(file)))  # stays loaded after its file is removed


def _build_kernel(
    folder: Path | None, key: str, compiler: str, source: Traversable, sizes: Sequence[str]
) -> FusedKernel:
    """Compile a library in a private folder, keep it if a cache folder is given, and load it.

    A library is renamed when it is complete. Several processes may compile the same one: each keeps what it built.

    Raises:
        CalledProcessError: the compiler fails.
        OSError: there is no compiler, or the folder is not writable.
    """
    with resources.as_file(source) as file, tempfile.TemporaryDirectory(dir=folder) as temporary:
        library = Path(temporary) / "kernel.so"
        _run_compiler(compiler, [*sizes, str(file), "-o", str(library)])
        content = library.read_bytes()
        if folder is not None:
            library.chmod(0o600)
            library.replace(folder / _library_name(key, content))
    return _load_library(content, folder)


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


def _processor_features() -> str:
    """Return the processor features that a natively compiled kernel depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    unknown = f"{platform.machine()} {platform.processor()} {platform.node()}"  # a library of this machine alone
    return next((line for line in lines if line.startswith(("flags", "Features"))), unknown)
