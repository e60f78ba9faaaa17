"""Language modelling on real text, with unigram and bigram baselines.

The text is read once (`corpora`) and split by document. The training documents train a byte-level BPE tokenizer
(Sennrich et al. 2016, arXiv 1508.07909; bytes as in GPT-2), which encodes all documents.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from mesascope.argument_types import validate_arguments, validate_fields
from mesascope.tasks import corpora
from mesascope.tasks._text.tokenized import DOCUMENT_END, Split, TokenizedCorpus, TokenStream, select_held_out
from mesascope.tasks._text.tokenizers import load_tokenizer, train_byte_pair_tokenizer
from mesascope.tasks.base import Batch, Task
from mesascope.tasks.corpora import Corpus

NUM_BYTES = 256


@final
@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """Next-token prediction on windows of real text.

    Attributes:
        source: ``"prose"``, Python's own reference manual; a UTF-8 file; a folder of .txt files; or a dataset of the
            Hub, ``"hub:NAME"`` or ``"hub:NAME:CONFIG"``, such as ``"hub:Salesforce/wikitext:wikitext-103-raw-v1"``.
        fallback: source to use if a Hub dataset cannot be reached; with ``None`` this is an error.
        tokenizer: a folder, a tokenizer.json or a name on the Hub; by default a byte-level tokenizer is trained on the
            training documents.
        vocab_size: vocabulary size of the model; a tokenizer trained on a short text, or a given one, may have fewer
            tokens.
        length: number of input positions.
        max_characters: maximum number of characters that are read from the source.
        held_out: fraction of the documents that is held out for validation, at least one document.
        split: the documents that are sampled, train or validation.
        cache_dir: directory in which `prepare` stored text and tokenizer; if empty, both are built in memory, once per
            process.

    >>> batch = TextTask(length=8).sample(2, torch.Generator().manual_seed(0))
    >>> batch.inputs.shape, batch.targets.shape, sorted(batch.categorical_latents)
    (torch.Size([2, 8]), torch.Size([2, 8]), ['document', 'next token'])
    """

    source: str = corpora.PROSE
    fallback: str | None = None
    tokenizer: str = ""
    vocab_size: int = 512
    length: int = 64
    max_characters: int = 2_000_000
    held_out: float = 0.1
    split: Split = "train"
    cache_dir: str = field(default="", repr=False, compare=False)  # moving a run does not change it

    def __post_init__(self) -> None:
        """Validate the fields."""
        validate_fields(self)
        if not self.tokenizer and self.vocab_size <= NUM_BYTES:
            raise ValueError(
                f"vocab_size must be at least {NUM_BYTES + 1} (all bytes and one merge), but got {self.vocab_size}"
            )
        if self.length < 2:
            raise ValueError(f"length must be at least 2, but got {self.length}")
        if self.max_characters < 1:
            raise ValueError(f"max_characters must be at least 1, but got {self.max_characters}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, but got {self.held_out}")
        if self.split not in ("train", "validation"):
            raise ValueError(f"split must be train or validation, but got {self.split!r}")
        if self.fallback is not None and self.fallback.startswith(corpora.HUB):
            raise ValueError(
                f"fallback must be a local source, but got {self.fallback!r}; give a file, a folder or prose"
            )

    @validate_arguments
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw windows that start at random positions of the split; documents are joined by an empty line.

        Args:
            n: number of windows.
            generator: source of randomness.

        Returns:
            The batch, with the latents "next token" and "document" (index in the corpus) of every target, and "start",
            the index of the first input in the split.

        Raises:
            ValueError: the text cannot be read or is too short.
        """
        stream = self.token_stream
        start = torch.randint(len(stream.tokens) - self.length, (n,), generator=generator)
        index = start[:, None] + torch.arange(self.length + 1)
        tokens, document = stream.tokens[index].long(), stream.document[index[:, 1:]].long()
        latents = {"next token": tokens[:, 1:], "document": document, "start": start}
        return Batch(inputs=tokens[:, :-1], targets=tokens[:, 1:], weight=torch.ones(n, self.length), latents=latents)

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Compute the cross-entropy of the next token, in nats.

        Args:
            prediction: logits.
            batch: the sequences that were predicted.

        Returns:
            The cross-entropy, (batch, pos).
        """
        return cross_entropy(prediction.flatten(0, 1), batch.targets.flatten(), reduction="none").view_as(batch.targets)

    def baselines(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Compute unigram and bigram log-probabilities from counts in the training split.

        unigram: (c(b) + 0.1) / (N + 0.1 V). bigram: absolute discounting (Ney et al. 1994), (c(a b) - 0.75 + 0.75 k(a)
        unigram(b)) / c(a), where k(a) is the number of distinct tokens that follow a; -0.75 applies only where c(a b) >
        0, and unigram(b) is used where a was never followed by a token.

        Args:
            batch: the sequences to predict.

        Returns:
            Log-probabilities by the name of the baseline.
        """
        counts, inputs = self._tokenized_text.ngram_counts, batch.inputs.cpu()
        predictions = {
            "unigram": counts.unigram.log().expand(*inputs.shape, -1),
            "bigram": counts.bigram_log_probabilities(inputs),
        }
        return {name: prediction.to(batch.inputs.device) for name, prediction in predictions.items()}

    def validation_task(self) -> "TextTask":
        """Return the same text with the held-out documents."""
        return replace(self, split="validation")

    def prepare(self, cache_dir: Path, log: Callable[[str], None]) -> "TextTask":
        """Store text and tokenizer in a directory, as corpus.jsonl, tokenizer.json and source.json.

        Complete files are used without reading the source again; those of an interrupted call are overwritten.

        Args:
            cache_dir: directory, from which the returned task reads.
            log: receives one line if a fallback source replaces a Hub dataset.

        Returns:
            The task.

        Raises:
            ValueError: the text cannot be read or is too short, or the directory holds a text of another recipe.
        """
        task = replace(self, cache_dir=str(cache_dir))
        if not corpora.has_saved_corpus(cache_dir):
            self._save_text(cache_dir)
        task._tokenized_text.check_length(self.length)
        if notice := task.corpus.fallback_notice:
            log(notice)
        return task

    def sample_unprepared(self, n: int, generator: torch.Generator) -> Batch:
        """Draw random tokens below `vocab_size` in the shape of windows, without reading the text."""
        tokens = torch.randint(self.vocab_size, (n, self.length + 1), generator=generator)
        return Batch(inputs=tokens[:, :-1], targets=tokens[:, 1:], weight=torch.ones(n, self.length))

    def _save_text(self, cache_dir: Path) -> None:
        tokenized = _tokenize_source(self)
        tokenized.check_length(self.length)
        corpora.save_corpus(cache_dir, tokenized.corpus, tokenized.tokenizer.to_str(), self.source_recipe)
        _load_tokenized.cache_clear()  # a text loaded from this folder before is outdated

    @property
    def corpus(self) -> Corpus:
        """The documents and their source."""
        return self._tokenized_text.corpus

    def decode_token(self, token: int) -> str:
        """Decode a token to text.

        Bytes that are not a complete character are shown as �, the null character as ␀.

        Args:
            token: token index.

        Returns:
            The text of the token.
        """
        return self._tokenized_text.tokenizer.decode([token], skip_special_tokens=False).replace("\0", "␀")

    @property
    def token_digest(self) -> str:
        """A hash of the documents and the tokenizer."""
        return self._tokenized_text.digest

    @property
    def source_recipe(self) -> dict[str, str | int | float | None]:
        """The fields that determine text and tokenizer, by name."""
        return {
            "source": self.source,
            "fallback": self.fallback,
            "tokenizer": self.tokenizer,
            "vocab_size": self.vocab_size,
            "max_characters": self.max_characters,
            "held_out": self.held_out,
        }

    @property
    def token_stream(self) -> "TokenStream":
        """The concatenated tokens of the documents of this split."""
        opened = self._tokenized_text
        opened.check_length(self.length)
        return opened.split_streams[self.split]

    @property
    def _tokenized_text(self) -> "TokenizedCorpus":
        """The tokenized text, shared by tasks of all lengths and splits."""
        return _load_tokenized(replace(self, length=2, split="train", cache_dir=""), self.cache_dir)


@lru_cache(maxsize=4)
def _load_tokenized(task: TextTask, cache_dir: str) -> TokenizedCorpus:
    """Load the text from its folder, or build it in memory."""
    if cache_dir:  # a separate argument of the cache, because the task's comparison ignores it
        corpus, tokenizer = corpora.load_saved_corpus(Path(cache_dir), task.source_recipe)
        return TokenizedCorpus(corpus, Tokenizer.from_str(tokenizer), task.held_out, task.vocab_size)
    opened = _tokenize_source(task)
    if opened.corpus.fallback_notice:
        warnings.warn(opened.corpus.fallback_notice, stacklevel=2)
    return opened


def _tokenize_source(task: TextTask) -> TokenizedCorpus:
    """Read the source, and load or train the tokenizer."""
    corpus = corpora.load_corpus(task.source, task.max_characters, task.fallback)
    held_out = select_held_out(corpus.documents, task.held_out)
    if task.tokenizer:
        tokenizer = load_tokenizer(task.tokenizer, task.vocab_size)
    else:
        training = [text + DOCUMENT_END for number, text in enumerate(corpus.documents) if number not in held_out]
        tokenizer = train_byte_pair_tokenizer(training, task.vocab_size)
    return TokenizedCorpus(corpus, tokenizer, task.held_out, task.vocab_size)
