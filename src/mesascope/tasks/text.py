"""Language modelling on real text, with the two predictors that count words can be held against.

The text is read once (`corpora`), some of its documents are held out, and the rest trains a byte-level tokenizer
by which everything is spelled (Sennrich et al. 2016, arXiv 1508.07909; bytes as in GPT-2).
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

BYTES = 256
END = "\n\n"  # follows every document
_PSEUDO = 0.1  # counts added to each token's; ours: as good as none for a token that was seen a hundred times
_DISCOUNT = 0.75  # Church & Gale 1991 found it in 44 million words, for all but the rarest pairs


@final
@dataclass(frozen=True, kw_only=True)
class Text(Task):
    """Real text, cut into windows: predict the next token.

    Attributes:
        source: ``"prose"``, Python's own reference manual; a UTF-8 file; a folder of .txt files; or a dataset of
            the Hub, ``"hub:NAME"`` or ``"hub:NAME:CONFIG"``, such as ``"hub:Salesforce/wikitext:wikitext-103-raw-v1"``.
        instead: the source that stands in for one of the Hub that cannot be reached; ``None`` refuses to go on.
        tokenizer: a folder, a tokenizer.json, or a name on the Hub; by default a byte-level one is trained on the
            training documents.
        vocabulary: its tokens; the model's vocabulary. A short text may give fewer, a given tokenizer may have fewer.
        length: tokens read per sequence.
        characters: how many are taken from the source at most.
        held_out: the share of the documents that is kept for validation, at least one.
        split: which documents are sampled.
        folder: where `prepared` has put text and tokenizer; empty where they are made in memory, once per process.

    >>> batch = Text(length=8).sample(2, torch.Generator().manual_seed(0))
    >>> batch.inputs.shape, batch.targets.shape, sorted(batch.labels)
    (torch.Size([2, 8]), torch.Size([2, 8]), ['document', 'next token'])
    """

    source: str = corpora.PROSE
    instead: str | None = None
    tokenizer: str = ""
    vocabulary: int = 512
    length: int = 64
    characters: int = 2_000_000
    held_out: float = 0.1
    split: Split = "train"
    folder: str = field(default="", repr=False, compare=False)  # a moved run is the same run

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        if not self.tokenizer and self.vocabulary <= BYTES:
            raise ValueError(f"vocabulary must be {BYTES + 1} or more, all bytes and a pair, but got {self.vocabulary}")
        if self.length < 2:
            raise ValueError(f"length must be 2 or more, but got {self.length}")
        if self.characters < 1:
            raise ValueError(f"characters must be 1 or more, but got {self.characters}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie inside (0, 1), but got {self.held_out}")
        if self.split not in ("train", "validation"):
            raise ValueError(f"split must be train or validation, but got {self.split!r}")
        if self.instead is not None and self.instead.startswith(corpora.HUB):
            raise ValueError(
                f"instead must be on this machine, but got {self.instead!r}; name a file, a folder or prose"
            )

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` windows that begin anywhere in the split; documents follow one another, an empty line between.

        Latents: "next token" and "document" (its number in the corpus) at every target, and "start", the place of the
        first input in the split.

        Raises:
            ValueError: the text cannot be read, or is too short.
        """
        stream = self.stream
        start = torch.randint(len(stream.tokens) - self.length, (n,), generator=generator)
        place = start[:, None] + torch.arange(self.length + 1)
        tokens, document = stream.tokens[place].long(), stream.document[place[:, 1:]].long()
        return Batch(
            inputs=tokens[:, :-1],
            targets=tokens[:, 1:],
            weight=torch.ones(n, self.length),
            latents={"next token": tokens[:, 1:], "document": document, "start": start},
        )

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Cross-entropy of the next token, in nats; the prediction holds logits."""
        return cross_entropy(prediction.flatten(0, 1), batch.targets.flatten(), reduction="none").view_as(batch.targets)

    def oracles(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Log-probabilities from counts in the training split: of the token alone, and given the one before it.

        unigram: (c(b) + 0.1) / (N + 0.1 V). bigram: absolute discounting (Ney et al. 1994), (c(a b) - 0.75 + 0.75 k(a)
        unigram(b)) / c(a), where k(a) is how many tokens follow a; -0.75 only where c(a b) > 0, and unigram(b) where
        a was never followed by anything.
        """
        counts, inputs = self._opened.counts, batch.inputs.cpu()
        found = {"unigram": counts.unigram.log().expand(*inputs.shape, -1), "bigram": counts.bigram(inputs)}
        return {name: prediction.to(batch.inputs.device) for name, prediction in found.items()}

    def validation(self) -> "Text":
        """The same text, of the documents that are held out."""
        return replace(self, split="validation")

    def prepared(self, folder: Path, say: Callable[[str], None]) -> "Text":
        """The same task with its text and tokenizer in a folder: corpus.jsonl, tokenizer.json and source.json.

        What is there already is used as it is, and the source is not asked again.

        Args:
            folder: where the files go; what an interrupted call has left there is written anew.
            say: hears one line where another text stands in for the Hub's.

        Raises:
            ValueError: the text cannot be read or is too short, or the folder holds that of another recipe.
        """
        task = replace(self, folder=str(folder))
        if not corpora.is_kept(folder):
            made = _make(self)
            made.check(self.length)
            corpora.keep(folder, made.corpus, made.tokenizer.to_str(), self.recipe)
            _open.cache_clear()  # another text may have been there
        task._opened.check(self.length)
        if notice := task.corpus.notice:
            say(notice)
        return task

    @property
    def corpus(self) -> Corpus:
        """The documents, and where they come from."""
        return self._opened.corpus

    def spell(self, token: int) -> str:
        """A token as text; bytes that are no character by themselves are shown as �, the null character as ␀."""
        return self._opened.tokenizer.decode([token], skip_special_tokens=False).replace("\0", "␀")

    @property
    def digest(self) -> str:
        """What differs where the documents or the tokenizer differ."""
        return self._opened.digest

    @property
    def recipe(self) -> dict[str, str | int | float | None]:
        """What text and tokenizer depend on."""
        return {
            "source": self.source,
            "instead": self.instead,
            "tokenizer": self.tokenizer,
            "vocabulary": self.vocabulary,
            "characters": self.characters,
            "held_out": self.held_out,
        }

    @property
    def stream(self) -> "Stream":
        """All tokens of this split, one document after the other."""
        opened = self._opened
        opened.check(self.length)
        return opened.streams[self.split]

    @property
    def _opened(self) -> "_Opened":
        """The text as tokens, which all lengths and splits share."""
        return _open(replace(self, length=2, split="train", folder=""), self.folder)


@dataclass(frozen=True, eq=False)
class Stream:
    """Tokens in a row.

    Attributes:
        tokens: int32.
        document: the number of the document, in the whole corpus, that each belongs to; int32.
    """

    tokens: Int[Tensor, " token"]
    document: Int[Tensor, " token"]


def byte_pairs(documents: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level tokenizer with all bytes and the pairs that are the most frequent in these documents.

    Any text can be spelled with it and is got back exactly; the same documents give the same tokenizer.

    Args:
        documents: what it is trained on.
        vocabulary: how many tokens it has, or fewer where there are no more pairs.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


@dataclass(frozen=True, eq=False)
class _Opened:
    """A corpus with its tokenizer."""

    corpus: Corpus
    tokenizer: Tokenizer
    task: Text

    @cached_property
    def streams(self) -> dict[Split, Stream]:
        """The tokens of each split; each document is spelled by itself."""
        held_out = _held_out(self.corpus.documents, self.task.held_out)
        numbers = range(len(self.corpus.documents))
        return {
            "train": self._spelled([number for number in numbers if number not in held_out]),
            "validation": self._spelled(sorted(held_out)),
        }

    @cached_property
    def digest(self) -> str:
        """What differs where the documents or the tokenizer differ."""
        return corpora.digest(self.corpus, self.tokenizer.to_str())

    @cached_property
    def counts(self) -> "_Counts":
        """What is counted in the training split."""
        return _count(self.streams["train"].tokens.long(), self.task.vocabulary)

    def check(self, length: int) -> None:
        """Refuse a split from which no two windows can be cut."""
        for name, stream in self.streams.items():
            if len(stream.tokens) < length + 2:
                raise ValueError(
                    f"the {name} split must have {length + 2} tokens or more for length={length}, but "
                    f"{self.corpus.about} gives it {len(stream.tokens)}; give more text, or a smaller length"
                )

    def _spelled(self, numbers: list[int]) -> Stream:
        """Some of the documents as tokens."""
        texts = [self.corpus.documents[number] + END for number in numbers]
        ids = [found.ids for found in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        document = torch.tensor(numbers, dtype=torch.int32)
        return Stream(
            tokens=torch.cat([torch.tensor(each, dtype=torch.int32) for each in ids]),
            document=document.repeat_interleave(torch.tensor([len(each) for each in ids])),
        )


@dataclass(frozen=True, eq=False)
class _Counts:
    """How often tokens, and pairs of them, are there.

    Attributes:
        unigram: the probability of each token.
        first: of each kind of pair, sorted.
        second: likewise.
        count: how often the pair is there.
    """

    unigram: Float[Tensor, " token"]
    first: Int[Tensor, " pair"]
    second: Int[Tensor, " pair"]
    count: Float[Tensor, " pair"]

    def bigram(self, inputs: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_out"]:
        """Log-probabilities of what follows each token; only the rows that are asked for are made."""
        asked, row = inputs.unique(return_inverse=True)
        here = torch.isin(self.first, asked)
        place = torch.searchsorted(asked, self.first[here]), self.second[here]
        table = torch.zeros(len(asked), len(self.unigram)).index_put(place, self.count[here])
        total = table.sum(1, keepdim=True)
        left = _DISCOUNT * (table > 0).sum(1, keepdim=True)
        known = ((table - _DISCOUNT).clamp_min(0) + left * self.unigram) / total.clamp_min(1)
        return torch.where(total > 0, known, self.unigram).log()[row]


@lru_cache(maxsize=4)
def _open(task: Text, folder: str) -> _Opened:
    """The text from its folder, or made in memory. The folder is no part of the task's value, so it is named beside."""
    if folder:
        corpus, tokenizer = corpora.kept(Path(folder), task.recipe)
        return _Opened(corpus, Tokenizer.from_str(tokenizer), task)
    opened = _make(task)
    if opened.corpus.notice:
        warnings.warn(opened.corpus.notice, stacklevel=2)
    return opened


def _make(task: Text) -> _Opened:
    """Read the source; find or train the tokenizer."""
    corpus = corpora.gather(task.source, task.characters, task.instead)
    held_out = _held_out(corpus.documents, task.held_out)
    if task.tokenizer:
        return _Opened(corpus, _given(task.tokenizer, task.vocabulary), task)
    learnt = [text + END for number, text in enumerate(corpus.documents) if number not in held_out]
    return _Opened(corpus, byte_pairs(learnt, task.vocabulary), task)


def _held_out(documents: Sequence[str], share: float) -> set[int]:
    """The numbers of documents that are not trained on: those first in an order that nobody chose.

    The order is by digest, so that no version of a library changes it.
    """
    if len(documents) < 2:
        raise ValueError(
            "a text must have two documents or more, one to be held out, but has 1; give more text, or name a file "
            "instead of a folder: it is cut into pieces"
        )
    order = sorted(range(len(documents)), key=lambda number: sha256(documents[number].encode()).digest())
    return set(order[: min(max(round(share * len(order)), 1), len(order) - 1)])


def _given(name: str, vocabulary: int) -> Tokenizer:
    """A tokenizer that is there already."""
    path = Path(name).expanduser()
    try:
        tokenizer = (
            Tokenizer.from_file(str(path)) if path.is_file() else _pretrained(str(path) if path.exists() else name)
        )
    except Exception as error:  # that of tokenizers has no class of its own
        raise ValueError(
            f"a tokenizer must be a folder, a tokenizer.json or a name on the Hub, but {name} cannot be opened: "
            f"{corpora.first_line(error)}; check the name, and the network"
        ) from error
    size = 1 + max(tokenizer.get_vocab().values())
    if size > vocabulary:
        raise ValueError(
            f"vocabulary must hold the {size} tokens of {name}, but is {vocabulary}; set vocabulary={size}"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _pretrained(place: str) -> Tokenizer:
    """The tokenizer of a folder or of a name on the Hub, without the Python around it."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # takes seconds

    with corpora.hushed():
        found = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    if not isinstance(found, PreTrainedTokenizerFast):
        raise ValueError(f"it is a {type(found).__name__}, which has no tokenizer.json")
    return Tokenizer.from_str(found.backend_tokenizer.to_str())


def _count(tokens: Int[Tensor, " token"], vocabulary: int) -> _Counts:
    """Count tokens and pairs."""
    single = torch.bincount(tokens, minlength=vocabulary).double() + _PSEUDO
    pairs, count = (tokens[:-1] * vocabulary + tokens[1:]).unique(return_counts=True)
    return _Counts(
        unigram=(single / single.sum()).float(),
        first=pairs // vocabulary,
        second=pairs % vocabulary,
        count=count.float(),
    )
