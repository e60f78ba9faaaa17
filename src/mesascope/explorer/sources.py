"""Sources of inputs that are tokens: prompts of a language model, and sequences of a task."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mesascope.inspection import TokenDecoder, encode_prompt, find_text_prefix, load_sample_text
from mesascope.tasks.base import Task

MAX_TOKENS = 512  # of a prompt: attention patterns and answers grow with its square
MAX_LETTERS = 20_000  # of a prompt, so that no long text is tokenized in vain
REFERENCE_POSITIONS = 1024  # of all references of mean ablation together, which one forward pass computes
MAX_REFERENCES = 16
REFERENCE_SEED = 2**31  # of references that are drawn, so that no numbered sequence is one of them
SAMPLE_LETTERS = 40_000  # of the sample text, from which references are cut


@dataclass(frozen=True, kw_only=True, eq=False)
class ExploredInput:
    """One sequence of tokens or of vectors.

    Attributes:
        values: the token ids or the vectors, one row.
        name: what code calls them: ``tokens`` or ``inputs``.
        code: Python code that defines them under this name.
        pieces: the text of every token; empty for vectors.
    """

    values: Int[Tensor, "1 pos"] | Float[Tensor, "1 pos d_in"]
    name: str = "tokens"
    code: str
    pieces: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of positions."""
        return self.values.shape[1]


class InputSource(Protocol):
    """A source of inputs: typed prompts, or sequences of a task."""

    @property
    def load_code(self) -> str:
        """Python code that loads the model, and its tokenizer or its task."""
        ...

    def read_input(self, prompt: str | int) -> ExploredInput:
        """Return the input that a prompt names.

        Args:
            prompt: a text, or the number of a sequence.

        Raises:
            ValueError: there is none; the message is one line.
        """
        ...

    def make_references(self, length: int) -> tuple[Tensor, str]:
        """Return the reference sequences of mean ablation, and code that defines them.

        Args:
            length: the number of positions.

        Returns:
            Tokens (batch, pos) or vectors (batch, pos, d_in), and code that calls them ``reference_tokens`` or
            ``reference_inputs``.
        """
        ...


class Prompts:
    """Prompts of a language model; every prompt begins with the tokens that the tokenizer puts before a text."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, load_code: str | None = None
    ) -> None:
        self.load_code = load_code or "# model, tokenizer = the model that is explored, and its tokenizer"
        self._model, self._tokenizer, self._name = model, tokenizer, name
        self._decoder, self._prefix = TokenDecoder(tokenizer), find_text_prefix(tokenizer)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._max_tokens = min(MAX_TOKENS, context or MAX_TOKENS)
        self._limit = "the context of the model" if context is not None and context <= MAX_TOKENS else "the explorer"
        self._sample: list[int] | None = None

    def read_input(self, prompt: str | int) -> ExploredInput:
        """Return the tokens of a prompt.

        Args:
            prompt: the text.

        Raises:
            ValueError: the prompt is no text, is empty or too long.
        """
        if not isinstance(prompt, str):
            raise ValueError(f"a prompt must be a text, but got {prompt!r}")
        if not prompt:
            raise ValueError("a prompt must not be empty; type a text")
        if len(prompt) > MAX_LETTERS:
            raise ValueError(f"a prompt must have up to {MAX_LETTERS} characters, but has {len(prompt)}; shorten it")
        ids = self._encode(prompt)
        if not ids:
            raise ValueError(f"a prompt must have one token or more, but {prompt!r} has none; type another text")
        if len(ids) > self._max_tokens:
            raise ValueError(
                f"a prompt must fit into {self._limit}, {self._max_tokens} tokens, but has {len(ids)}; shorten it"
            )
        code = f"tokens = torch.tensor([{ids}])  # {prompt!r}"
        return ExploredInput(values=torch.tensor([ids]), pieces=self._decoder.decode_row(ids), code=code)

    def shorten_prompt(self, prompt: str) -> str:
        """Return the first words of a prompt, as many as fit into the context.

        Args:
            prompt: the text.
        """
        words = prompt.split()
        while len(words) > 1 and len(self._encode(" ".join(words))) > self._max_tokens:
            words.pop()
        return " ".join(words)

    def _encode(self, prompt: str) -> list[int]:
        return encode_prompt(prompt, self._tokenizer, self._model, self._name)

    def make_references(self, length: int) -> tuple[Int[Tensor, "batch pos"], str]:
        """Return passages of the sample text, each as long as the prompt and with the same tokens before the text.

        Args:
            length: the number of tokens of the prompt.

        Returns:
            The tokens, and code that defines them.

        Raises:
            ValueError: there are fewer than two passages of this length.
        """
        if self._sample is None:
            text = load_sample_text()[:SAMPLE_LETTERS]
            self._sample = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        prefix, size = list(self._prefix), max(1, length - len(self._prefix))
        count = min(count_references(length), len(self._sample) // size)
        if count < 2:
            raise ValueError(f"a mean needs two or more references, but the sample text has {count} of {length} tokens")
        rows = [[*prefix, *self._sample[start : start + size]][:length] for start in range(0, count * size, size)]
        code = (
            f'sample = tokenizer(load_sample_text()[:{SAMPLE_LETTERS}], add_special_tokens=False)["input_ids"]\n'
            f"rows = [[*{prefix}, *sample[start : start + {size}]][:{length}] for start in range(0, {count * size}, "
            f"{size})]\nreference_tokens = torch.tensor(rows)"
        )
        return torch.tensor(rows), code

    def decode_token(self, token: int) -> str:
        """Return the text of a token.

        Args:
            token: the token id.
        """
        return self._decoder.decode_token(token)


@dataclass(frozen=True)
class TaskSequences:
    """Sequences of the task of a run: a prompt is the number of a sequence, the seed with which it is drawn."""

    task: Task
    load_code: str
    _decoded: dict[int, str] = field(default_factory=dict)

    def read_input(self, prompt: str | int) -> ExploredInput:
        """Return a sequence of the task.

        Args:
            prompt: the number of the sequence, 0 or more.

        Raises:
            ValueError: the number is no integer, or out of range.
        """
        if isinstance(prompt, str) or not 0 <= prompt < REFERENCE_SEED:
            raise ValueError(
                f"a sequence must be given by its number from 0 to {REFERENCE_SEED - 1}, but got {prompt!r}"
            )
        tokens = self.task.sample(1, torch.Generator().manual_seed(prompt)).inputs.long()
        code = f"tokens = task.sample(1, torch.Generator().manual_seed({prompt})).inputs"
        pieces = [f"{self.decode_token(token)} " for token in tokens[0].tolist()]
        return ExploredInput(values=tokens, pieces=pieces, code=code)

    def make_references(self, length: int) -> tuple[Int[Tensor, "batch pos"], str]:
        """Return other sequences of the task.

        Args:
            length: the number of tokens of the sequence, which is that of every sequence of the task.

        Returns:
            The tokens, and code that defines them.
        """
        count, seed = count_references(length), REFERENCE_SEED
        sampled = self.task.sample(count, torch.Generator().manual_seed(seed)).inputs.long()
        code = f"reference_tokens = task.sample({count}, torch.Generator().manual_seed({seed})).inputs"
        return sampled, code

    def decode_token(self, token: int) -> str:
        """Return the name of a token in the task, or its number.

        Args:
            token: the token id.
        """
        if token not in self._decoded:
            self._decoded[token] = self.task.decode_token(token) or str(token)
        return self._decoded[token]


def count_references(length: int) -> int:
    """Return the number of reference sequences of a length: as many as one forward pass takes.

    Args:
        length: the number of positions of each.

    >>> count_references(14), count_references(512)
    (16, 2)
    """
    return max(2, min(MAX_REFERENCES, REFERENCE_POSITIONS // length))
