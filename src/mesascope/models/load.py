"""Loading of checkpoints and of pretrained causal language models; pickled weights are never read."""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from hashlib import sha256
from importlib.util import find_spec
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from mesascope.models._gguf import parse_gguf_once
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder

_HUB_HINT = "; check the name and the network, and log in with `hf auth login` where access must be granted"
_READ_ERRORS = (OSError, ValueError, SafetensorError, struct.error, IndexError)  # raised for missing or truncated files


class ModelNotFound(ValueError):  # noqa: N818  named for the condition
    """No loadable model exists under a name; the message says what was expected."""


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> Decoder:
    """Load a decoder checkpoint of a run, in evaluation mode.

    Args:
        path: the folder, such as ``models/seed=0/step=100``.
        device: device of the model.

    Returns:
        The decoder.

    Raises:
        ModelNotFound: there is no decoder, or its weights do not match the architecture exactly.
    """
    if not (Path(path) / "config.json").is_file():
        raise ModelNotFound(f"a checkpoint must be a folder with config.json, but {path} has none; give another folder")
    model, loading_info = _read_decoder(path, DecoderConfig.from_pretrained(path))
    _check_weights_match(str(path), loading_info, ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval().to(device)


def _read_decoder(path: Path | str, config: DecoderConfig) -> Any:
    """Return the decoder and which of its weights were not found."""
    try:
        with silence_transformers():
            return Decoder.from_pretrained(
                path, config=config, use_safetensors=True, output_loading_info=True, local_files_only=True
            )
    except _READ_ERRORS as error:
        raise ModelNotFound(
            f"a checkpoint must have a complete model.safetensors, but {path} does not: {_first_line(error)}"
        ) from error


def load_pretrained(
    name: Path | str,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    revision: str = "main",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a causal language model and its tokenizer, in evaluation mode.

    Args:
        name: a Hub name, a folder, or a ``.gguf`` file.
        dtype: type of the weights in memory; ``"auto"`` for the type in which they are stored.
        device: device of the model.
        revision: branch, tag or commit of a Hub name; some repositories have one revision per training step.

    Returns:
        The model, and its tokenizer (``None`` if there is none).

    Raises:
        ModelNotFound: the model does not exist, has no safetensors or GGUF weights, or weights are missing.
    """
    location, options = _resolve_location(str(name))
    local = Path(location).is_dir()
    with silence_transformers() if local else _silence_hub_retries(), parse_gguf_once() if options else nullcontext():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                location,
                revision=revision,
                dtype=dtype,
                output_loading_info=True,
                **options,
                **_weight_format_options(options),
            )
        except _READ_ERRORS as error:
            raise ModelNotFound(
                "a model must be a Hugging Face name, a folder with safetensors, or a .gguf file, "
                f"but {name} cannot be opened: {_first_line(error).rstrip('.')}{'' if local else _HUB_HINT}"
            ) from error
        model, loading_info = loaded
        _check_weights_match(str(name), loading_info, ("missing_keys", "mismatched_keys"))
        return model.eval().to(device), _load_tokenizer(location, revision, options)


def weights_fingerprint(name: Path | str, model: PreTrainedModel | None = None) -> str:
    """Return an identifier of a model's weights: the commit of a Hub name, or a hash of file sizes and dates.

    Args:
        name: the name or path from which the model was loaded.
        model: the loaded model, which knows its commit.

    Returns:
        The identifier; empty if it is unknown.
    """
    path = Path(name).expanduser()
    if not path.exists():
        return str(getattr(model and model.config, "_commit_hash", None) or "")
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors*")) + sorted(path.glob("*.json"))
    file_stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return sha256(repr(file_stats).encode()).hexdigest()[:16]


def make_untrained_factory(model: PreTrainedModel) -> Callable[[int], PreTrainedModel]:
    """Return a factory of randomly initialised models of the same architecture.

    The factory keeps the configuration only, so that the model can be freed before another one is built.

    Args:
        model: any model of transformers, or a decoder.

    Returns:
        A function from a seed to a model, initialised as in the authors' training code.
    """
    kind, config, dtype, device = type(model), deepcopy(model.config), model.dtype, model.device
    kernel = model.config._attn_implementation

    def build_untrained(seed: int) -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = kind._from_config(config, dtype=dtype, attn_implementation=kernel)
        return made.eval().to(device)  # pyright: ignore[reportArgumentType] transformers wraps torch's method

    return build_untrained


@contextmanager
def _silence_hub_retries() -> Iterator[None]:
    """Silence the message of every attempt to reach the Hub; the last failure is raised."""
    logger = getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Disable progress bars and log messages of transformers inside the context."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _resolve_location(name: str) -> tuple[str, dict[str, Any]]:
    """Return the path or name to pass to transformers, and the option that names a GGUF file."""
    path = Path(name).expanduser()
    if path.suffix.lower() != ".gguf":
        if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
            raise ModelNotFound(f"the path of a model must exist, but {name} does not exist; check the path")
        return (str(path) if path.exists() else name), {}
    if not path.is_file():
        raise ModelNotFound(f"a .gguf file must exist, but {name} does not exist; check the path")
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if missing:
        raise ModelNotFound(
            f"loading {path.name} needs {' and '.join(missing)}, which is not installed; pip install 'mesascope[gguf]'"
        )
    return str(path.parent), {"gguf_file": path.name}


def _weight_format_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the option that excludes pickled weights."""
    return {} if options else {"use_safetensors": True}


def _load_tokenizer(location: str, revision: str, options: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a model, or return None if there is none or if it has special tokens only."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=revision, **options)
    except (OSError, ValueError):
        return None
    return tokenizer if len(tokenizer) > len(tokenizer.all_special_ids) else None


def _check_weights_match(name: str, loading_info: dict[str, Any], kinds: tuple[str, ...]) -> None:
    """Raise ModelNotFound if weights of the given kinds (missing, unexpected, mismatched) exist."""
    # Missing weights would be random. Unexpected weights are an error only in our own checkpoints; published ones may
    # contain buffers or heads that the class does not use.
    for kind in kinds:
        if loading_info.get(kind):
            keys = sorted(map(str, loading_info[kind]))
            raise ModelNotFound(
                f"the weights of {name} must match the model exactly, but it has {len(keys)} "
                f"{kind.replace('_', ' ')}, such as {keys[0]}; get the complete model"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
