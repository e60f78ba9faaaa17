"""Loading of the tokenizer of a model."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mesascope.models._gguf import has_gguf_tokenizer
from mesascope.models._weight_files import read_json_object
from mesascope.models.load_errors import BrokenModelError, describe_error, is_panic, silence_panics

_FILES = ("tokenizer*", "vocab.*", "merges.txt", "spiece.model", "sentencepiece*.model", "*.tiktoken", "tekken.json")
_JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load_model_tokenizer(
    location: str, folder: Path, vocab_size: int | None, revision: str, options: dict[str, Any]
) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a model; checkpoints of a training may have it in the folder above.

    Args:
        location: The folder or Hub name.
        folder: The folder with the files of the model.
        vocab_size: The number of tokens of the model; a tokenizer of the folder above must not have more.
        revision: The revision of a Hub name.
        options: Options for transformers.

    Returns:
        The tokenizer, or None if there is none or if it has special tokens only.

    Raises:
        BrokenModelError: There is a tokenizer, but it cannot be opened; the message names its file.
    """
    if "gguf_file" in options and not has_gguf_tokenizer(folder / options["gguf_file"]):
        return None
    if "gguf_file" in options or _has_tokenizer(folder):
        return _open_tokenizer(location, folder, {"revision": revision, **options})
    if not Path(location).is_dir():
        return _open_hub_tokenizer(location, folder, {"revision": revision, **options})
    if _has_tokenizer(folder.absolute().parent):
        tokenizer = _open_tokenizer(str(folder.absolute().parent), folder.absolute().parent, options)
        return tokenizer if tokenizer is not None and len(tokenizer) <= (vocab_size or 0) else None
    return None


def _open_hub_tokenizer(location: str, folder: Path, options: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    """Download and open a tokenizer; if no file of one arrives, there is none."""
    try:
        return _open_tokenizer(location, folder, options)
    except BrokenModelError:
        if _has_tokenizer(folder):
            raise
        return None


def _has_tokenizer(folder: Path) -> bool:
    return any(file.is_file() for pattern in _FILES for file in folder.glob(pattern))


def _open_tokenizer(location: str, folder: Path, options: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    try:
        with silence_panics():
            tokenizer = AutoTokenizer.from_pretrained(location, **options)
            if not isinstance(tokenizer.model_max_length, int | float):
                raise BrokenModelError(f"model_max_length must be a number, but is {tokenizer.model_max_length!r}")
            return tokenizer if len(tokenizer) > len(tokenizer.all_special_ids) else None
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        file = options["gguf_file"] if "gguf_file" in options else _find_broken_file(folder)
        raise BrokenModelError(f"{file} is not a usable tokenizer: {describe_error(error)}") from error


def _find_broken_file(folder: Path) -> str:
    """Return the name of the first file that cannot be parsed."""
    for name in _JSON_FILES:
        if (folder / name).is_file():
            try:
                read_json_object(folder / name)
            except BrokenModelError:
                return name
    if (folder / "tokenizer.json").is_file():
        try:
            with silence_panics():
                Tokenizer.from_file(str(folder / "tokenizer.json"))
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            return "tokenizer.json"
    return "tokenizer_config.json" if (folder / "tokenizer_config.json").is_file() else "the tokenizer"
