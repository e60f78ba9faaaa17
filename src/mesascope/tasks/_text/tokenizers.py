"""Tokenizers: trained on a text, or loaded from a file or the Hub."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mesascope.tasks._text.documents import first_error_line, silence_hub_logs


def train_byte_pair_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer.

    Every text is encoded without loss, and training is deterministic.

    Args:
        documents: the training text.
        vocab_size: maximum number of tokens; fewer if the documents have no further pairs.

    Returns:
        The tokenizer, whose vocabulary contains all bytes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def load_tokenizer(name: str, vocab_size: int) -> Tokenizer:
    """Load a tokenizer from a file, a folder or the Hub.

    Args:
        name: the path, or the name on the Hub.
        vocab_size: maximum number of tokens.

    Returns:
        The tokenizer, without truncation and padding.

    Raises:
        ValueError: it cannot be opened or has too many tokens.
    """
    path = Path(name).expanduser()
    try:
        if path.is_file():
            tokenizer = Tokenizer.from_file(str(path))
        else:
            tokenizer = _load_pretrained_tokenizer(str(path) if path.exists() else name)
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(
            f"a tokenizer must be a folder, a tokenizer.json or a name on the Hub, but {name} cannot be opened: "
            f"{first_error_line(error)}; check the name and the network"
        ) from error
    _check_vocab_size(tokenizer, name, vocab_size)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _check_vocab_size(tokenizer: Tokenizer, name: str, vocab_size: int) -> None:
    size = 1 + max(tokenizer.get_vocab().values())
    if size > vocab_size:
        raise ValueError(
            f"vocab_size must be at least {size}, the vocabulary size of {name}, but is {vocab_size}; set "
            f"vocab_size={size}"
        )


def _load_pretrained_tokenizer(name_or_path: str) -> Tokenizer:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # imported here, because it takes seconds

    with silence_hub_logs():
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"it is a {type(tokenizer).__name__}, which has no tokenizer.json")
    return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
