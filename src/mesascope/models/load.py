"""Opening models: our own checkpoints, and any causal language model of transformers; never a pickle."""

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

from mesascope.models.config import DecoderConfig
from mesascope.models.gguf import read_once
from mesascope.models.transformer import Decoder

_HUB = "; check the name and the network, and log in with `hf auth login` where access must be granted"
_BROKEN = (OSError, ValueError, SafetensorError, struct.error, IndexError)  # what a missing or torn file raises


class ModelNotFound(ValueError):  # noqa: N818  it says what happened
    """No model that can be opened is under this name; one line says what was looked for."""


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> Decoder:
    """Open one of our decoders as a run saved it, ready to be looked at.

    Args:
        path: the folder, such as ``models/seed=0/step=100``.
        device: where to put it.

    Raises:
        ModelNotFound: there is no decoder, or its weights are not exactly those the decoder has.
    """
    if not (Path(path) / "config.json").is_file():
        raise ModelNotFound(f"a checkpoint must be a folder with config.json, but {path} has none; give another folder")
    config = DecoderConfig.from_pretrained(path)
    try:
        with quiet():
            loaded: Any = Decoder.from_pretrained(
                path, config=config, use_safetensors=True, output_loading_info=True, local_files_only=True
            )
    except _BROKEN as error:
        raise ModelNotFound(
            f"a checkpoint must hold model.safetensors, whole, but {path} does not: {_line(error)}"
        ) from error
    model, found = loaded
    _refuse_other_weights(str(path), found, ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval().to(device)


def load_pretrained(
    name: Path | str,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    revision: str = "main",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Open a causal language model and its tokenizer, ready to be looked at.

    Args:
        name: a Hub name, a folder, or a ``.gguf`` file.
        dtype: of the weights in memory; ``"auto"`` for as they are stored.
        device: where to put it.
        revision: of a Hub name: a branch, tag or commit; some authors name training steps so.

    Returns:
        The model in evaluation mode, and its tokenizer (``None`` where there is none).

    Raises:
        ModelNotFound: nothing is there, it has no safetensors or GGUF weights, or weights are missing.
    """
    place, options = _place(str(name))
    local = Path(place).is_dir()
    with quiet() if local else _without_retries(), read_once() if options else nullcontext():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place, revision=revision, dtype=dtype, output_loading_info=True, **options, **_weights(options)
            )
        except _BROKEN as error:
            raise ModelNotFound(
                "a model must be a Hugging Face name, a folder with safetensors, or a .gguf file, "
                f"but {name} cannot be opened: {_line(error).rstrip('.')}{'' if local else _HUB}"
            ) from error
        model, found = loaded
        _refuse_other_weights(str(name), found, ("missing_keys", "mismatched_keys"))
        return model.eval().to(device), _tokenizer(place, revision, options)


def fingerprint(name: Path | str, model: PreTrainedModel | None = None) -> str:
    """What differs where a model's weights differ: the commit of a Hub name, else sizes and dates of its files.

    Args:
        name: what was opened.
        model: the model that was opened, which knows its commit.
    """
    path = Path(name).expanduser()
    if not path.exists():
        return str(getattr(model and model.config, "_commit_hash", None) or "")
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors*")) + sorted(path.glob("*.json"))
    told = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return sha256(repr(told).encode()).hexdigest()[:16]


def untrained(model: PreTrainedModel) -> Callable[[int], PreTrainedModel]:
    """A maker of models of the same architecture with random weights, as their authors would begin to train them.

    It keeps the configuration alone, so that the model itself can leave the memory before another is made.

    Args:
        model: any model of transformers, or one of ours.
    """
    kind, config, dtype, device = type(model), deepcopy(model.config), model.dtype, model.device
    kernel = model.config._attn_implementation

    def make(seed: int) -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = kind._from_config(config, dtype=dtype, attn_implementation=kernel)
        return made.eval().to(device)  # pyright: ignore[reportArgumentType] transformers wraps torch's method

    return make


@contextmanager
def _without_retries() -> Iterator[None]:
    """No line for every attempt to reach the Hub: the last one is told."""
    logger = getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no reports from transformers inside; as it was before outside."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _place(name: str) -> tuple[str, dict[str, Any]]:
    """What transformers calls the place, and the option that names a GGUF file in it."""
    path = Path(name).expanduser()
    if path.suffix.lower() != ".gguf":
        if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
            raise ModelNotFound(f"a model must be there to be opened, but {name} does not exist; check the path")
        return (str(path) if path.exists() else name), {}
    if not path.is_file():
        raise ModelNotFound(f"a .gguf file must be there to be opened, but {name} does not exist; check the path")
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if missing:
        raise ModelNotFound(
            f"opening {path.name} needs {' and '.join(missing)}, not installed here; pip install 'mesascope[gguf]'"
        )
    return str(path.parent), {"gguf_file": path.name}


def _weights(options: dict[str, Any]) -> dict[str, Any]:
    """Never pickles: where it is not GGUF, it is safetensors."""
    return {} if options else {"use_safetensors": True}


def _tokenizer(place: str, revision: str, options: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside the model, if any; one that was made up without words is none."""
    try:
        found = AutoTokenizer.from_pretrained(place, revision=revision, **options)
    except (OSError, ValueError):
        return None
    return found if len(found) > len(found.all_special_ids) else None


def _refuse_other_weights(name: str, found: dict[str, Any], kinds: tuple[str, ...]) -> None:
    """Raise where the file did not hold the model's weights: what is missing would be random.

    A checkpoint of ours holds nothing else; a published one may carry buffers or heads that this class does not use.
    """
    for kind in kinds:
        if found.get(kind):
            keys = sorted(map(str, found[kind]))
            raise ModelNotFound(
                f"the weights of {name} must be exactly the model's, but it has {len(keys)} "
                f"{kind.replace('_', ' ')}, such as {keys[0]}; get the complete model"
            )


def _line(error: Exception) -> str:
    """The first line of an error."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
