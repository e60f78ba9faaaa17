"""Language modelling on real text, with unigram and bigram baselines.

The text is read once (`corpora`) and split by document. The training documents train a byte-level BPE tokenizer
(Sennrich et al. 2016, arXiv 1508.07909; bytes as in GPT-2), which encodes all documents.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy

from mesascope.tasks import corpora
from mesascope.tasks.base import Batch, Task
from mesascope.tasks.corpora import Corpus

Split = Literal["train", "validation"]

NUM_BYTES = 256
DOCUMENT_END = "\n\n"  # appended to every document
_PSEUDOCOUNT = 0.1  # ours: negligible for a token with a hundred occurrences
_DISCOUNT = 0.75  # Church & Gale 1991, measured on 44 million words for all but the rarest pairs


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
        if not self.tokenizer and self.vocab_size <= NUM_BYTES:
            raise ValueError(
                f"vocab_size must be at least {NUM_BYTES + 1}, all bytes and one pair, but got {self.vocab_size}"
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
        return Batch(
            inputs=tokens[:, :-1],
            targets=tokens[:, 1:],
            weight=torch.ones(n, self.length),
            latents={"next token": tokens[:, 1:], "document": document, "start": start},
        )

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

        Existing complete files are used as they are, without reading the source again; files of an interrupted call are
        overwritten.

        Args:
            folder: cache directory.
            say: receives one line if a fallback source replaces a Hub dataset.

        Returns:
            The task, which reads from the directory.

        Raises:
            ValueError: the text cannot be read or is too short, or the directory holds a text of another recipe.
        """
        task = replace(self, cache_dir=str(cache_dir))
        if not corpora.has_saved_corpus(cache_dir):
            tokenized = _tokenize_source(self)
            tokenized.check_length(self.length)
            corpora.save_corpus(cache_dir, tokenized.corpus, tokenized.tokenizer.to_str(), self.source_recipe)
            _load_tokenized.cache_clear()  # a text loaded from this folder before is outdated
        task._tokenized_text.check_length(self.length)
        if notice := task.corpus.fallback_notice:
            log(notice)
        return task

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
    def _tokenized_text(self) -> "_TokenizedCorpus":
        """The tokenized text, shared by tasks of all lengths and splits."""
        return _load_tokenized(replace(self, length=2, split="train", cache_dir=""), self.cache_dir)


@dataclass(frozen=True, eq=False)
class TokenStream:
    """A sequence of tokens from consecutive documents.

    Attributes:
        tokens: int32.
        document: index, in the whole corpus, of the document of each token; int32.
    """

    tokens: Int[Tensor, " token"]
    document: Int[Tensor, " token"]


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


@dataclass(frozen=True, eq=False)
class _TokenizedCorpus:
    """A corpus with its tokenizer."""

    corpus: Corpus
    tokenizer: Tokenizer
    task: TextTask

    @cached_property
    def split_streams(self) -> dict[Split, TokenStream]:
        """The tokens of each split; every document is encoded separately."""
        held_out = _select_held_out(self.corpus.documents, self.task.held_out)
        numbers = range(len(self.corpus.documents))
        return {
            "train": self._encode_documents([number for number in numbers if number not in held_out]),
            "validation": self._encode_documents(sorted(held_out)),
        }

    @cached_property
    def digest(self) -> str:
        """A hash of the documents and the tokenizer."""
        return corpora.corpus_digest(self.corpus, self.tokenizer.to_str())

    @cached_property
    def ngram_counts(self) -> "_NgramCounts":
        """The n-gram counts of the training split."""
        return _count_ngrams(self.split_streams["train"].tokens.long(), self.task.vocab_size)

    def check_length(self, length: int) -> None:
        """Raise ValueError if a split is too short for two different windows."""
        for name, stream in self.split_streams.items():
            if len(stream.tokens) < length + 2:
                raise ValueError(
                    f"the {name} split must have at least {length + 2} tokens for length={length}, but "
                    f"{self.corpus.source_description} has {len(stream.tokens)}; give more text, or a smaller length"
                )

    def _encode_documents(self, indices: list[int]) -> TokenStream:
        texts = [self.corpus.documents[number] + DOCUMENT_END for number in indices]
        ids = [found.ids for found in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        document = torch.tensor(indices, dtype=torch.int32)
        return TokenStream(
            tokens=torch.cat([torch.tensor(each, dtype=torch.int32) for each in ids]),
            document=document.repeat_interleave(torch.tensor([len(each) for each in ids])),
        )


@dataclass(frozen=True, eq=False)
class _NgramCounts:
    """Token and token-pair counts.

    Attributes:
        unigram: probability of each token.
        first: first token of each distinct pair, sorted.
        second: second token of each distinct pair.
        count: count of each distinct pair.
    """

    unigram: Float[Tensor, " token"]
    first: Int[Tensor, " pair"]
    second: Int[Tensor, " pair"]
    count: Float[Tensor, " pair"]

    def bigram_log_probabilities(self, inputs: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_out"]:
        """Return log-probabilities of the next token; only rows of tokens in ``inputs`` are computed."""
        tokens, row = inputs.unique(return_inverse=True)
        selected = torch.isin(self.first, tokens)
        cells = torch.searchsorted(tokens, self.first[selected]), self.second[selected]
        table = torch.zeros(len(tokens), len(self.unigram)).index_put(cells, self.count[selected])
        total = table.sum(1, keepdim=True)
        discounted = _DISCOUNT * (table > 0).sum(1, keepdim=True)
        conditional = ((table - _DISCOUNT).clamp_min(0) + discounted * self.unigram) / total.clamp_min(1)
        return torch.where(total > 0, conditional, self.unigram).log()[row]


@lru_cache(maxsize=4)
def _load_tokenized(task: TextTask, cache_dir: str) -> _TokenizedCorpus:
    """Load the text from its folder, or build it in memory."""
    if cache_dir:  # a separate argument of the cache, because the task's comparison ignores it
        corpus, tokenizer = corpora.load_saved_corpus(Path(cache_dir), task.source_recipe)
        return _TokenizedCorpus(corpus, Tokenizer.from_str(tokenizer), task)
    opened = _tokenize_source(task)
    if opened.corpus.fallback_notice:
        warnings.warn(opened.corpus.fallback_notice, stacklevel=2)
    return opened


def _tokenize_source(task: TextTask) -> _TokenizedCorpus:
    """Read the source, and load or train the tokenizer."""
    corpus = corpora.load_corpus(task.source, task.max_characters, task.fallback)
    held_out = _select_held_out(corpus.documents, task.held_out)
    if task.tokenizer:
        return _TokenizedCorpus(corpus, _load_tokenizer(task.tokenizer, task.vocab_size), task)
    training_texts = [text + DOCUMENT_END for number, text in enumerate(corpus.documents) if number not in held_out]
    return _TokenizedCorpus(corpus, train_byte_pair_tokenizer(training_texts, task.vocab_size), task)


def _select_held_out(documents: Sequence[str], fraction: float) -> set[int]:
    """Select the indices of the held-out documents, by document hash."""
    if len(documents) < 2:
        raise ValueError(
            "a text must have at least two documents, one of them held out, but has 1; give more text, or a file "
            "instead of a folder, because files are split into pieces"
        )
    # By hash rather than by a random permutation, so that no library version changes the split.
    order = sorted(range(len(documents)), key=lambda number: sha256(documents[number].encode()).digest())
    return set(order[: min(max(round(fraction * len(order)), 1), len(order) - 1)])


def _load_tokenizer(name: str, vocab_size: int) -> Tokenizer:
    path = Path(name).expanduser()
    try:
        tokenizer = (
            Tokenizer.from_file(str(path))
            if path.is_file()
            else _load_pretrained_tokenizer(str(path) if path.exists() else name)
        )
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(
            f"a tokenizer must be a folder, a tokenizer.json or a name on the Hub, but {name} cannot be opened: "
            f"{corpora.first_error_line(error)}; check the name and the network"
        ) from error
    size = 1 + max(tokenizer.get_vocab().values())
    if size > vocab_size:
        raise ValueError(
            f"vocab_size must be at least {size}, the tokens of {name}, but is {vocab_size}; set vocab_size={size}"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _load_pretrained_tokenizer(name_or_path: str) -> Tokenizer:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # imported here, because it takes seconds

    with corpora.silence_hub_logs():
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"it is a {type(tokenizer).__name__}, which has no tokenizer.json")
    return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())


def _count_ngrams(tokens: Int[Tensor, " token"], vocab_size: int) -> _NgramCounts:
    single = torch.bincount(tokens, minlength=vocab_size).double() + _PSEUDOCOUNT
    pairs, count = (tokens[:-1] * vocab_size + tokens[1:]).unique(return_counts=True)
    return _NgramCounts(
        unigram=(single / single.sum()).float(),
        first=pairs // vocab_size,
        second=pairs % vocab_size,
        count=count.float(),
    )
