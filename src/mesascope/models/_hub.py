"""Files of a model on the Hugging Face Hub, with a time limit for the first answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from transformers.utils import logging
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from mesascope.models._weight_files import INDEX_FILE, WEIGHTS_FILE
from mesascope.models.load_errors import BrokenModelError

LOOKUP_SECONDS = 60.0  # ours: time in which the Hub must answer; downloads of weights may take longer


def find_snapshot(name: str, revision: str) -> Path:
    """Download the config of a Hub name, within a time limit.

    Args:
        name: The name, such as ``openai-community/gpt2``.
        revision: A branch, tag or commit.

    Returns:
        The cached folder of the revision.

    Raises:
        BrokenModelError: The Hub does not answer in time.
        OSError: The name or its config does not exist.
    """
    answers: SimpleQueue[Any] = SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(cached_file(name, "config.json", revision=revision))
        except BaseException as error:  # raised in the calling thread
            answers.put(error)

    Thread(target=look_up, daemon=True).start()
    try:
        answer = answers.get(timeout=LOOKUP_SECONDS)
    except Empty:
        raise BrokenModelError(f"the Hub did not answer within {LOOKUP_SECONDS:g} s") from None
    if isinstance(answer, BaseException):
        raise answer
    return Path(answer).parent


def download_weights(name: str, revision: str) -> None:
    """Download the safetensors of a Hub name to the cache, so that their sizes can be checked.

    Args:
        name: The name.
        revision: A branch, tag or commit.
    """
    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    if cached_file(name, WEIGHTS_FILE, **options) is None:
        index = cached_file(name, INDEX_FILE, **options)
        if index is not None:
            get_checkpoint_shard_files(name, index, revision=revision)


@contextmanager
def silence_hub_retries() -> Iterator[None]:
    """Silence the message of every attempt to reach the Hub, and reports of weights; the last failure is raised."""
    logger = getLogger("huggingface_hub")
    level, verbosity = logger.level, logging.get_verbosity()
    logger.setLevel(ERROR)
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logger.setLevel(level)
