"""The model that is explored, and where its inputs come from: prompts, or sequences of the task of a run."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mesascope.activations import Capture, UnsupportedModel, attention_layers, capture, validate_model
from mesascope.activations.validation.fingerprint import fingerprint_tensors, model_tensors
from mesascope.argument_types import validate_arguments
from mesascope.inspection import DTYPES, TokenDecoder, encode_prompt, find_text_prefix, load_sample_text, open_run_model
from mesascope.models.load import load_pretrained
from mesascope.models.weight_checks import check_forward_pass
from mesascope.tasks.base import Task

MAX_TOKENS = 512  # of a prompt: attention patterns and answers grow with its square
MAX_LETTERS = 20_000  # of a prompt, so that no long text is tokenized in vain
REFERENCE_TOKENS = 1024  # of all references of mean ablation together, which one forward pass computes
MAX_REFERENCES = 16
MAX_CAPTURES = 4  # those of two prompts, the references and one before; logits of 512 tokens can have 0.5 GB
STREAM_SITES = ("resid_pre", "resid_post", "output")
COMPONENT_SITES = ("attn_out", "z")  # of direct attribution
EXAMPLE = "When Mary and John went to the store, John gave a drink to"
SAMPLE_LETTERS = 40_000  # of the sample text, from which references are cut


@dataclass(frozen=True, kw_only=True, eq=False)
class ExploredInput:
    """One sequence of tokens.

    Attributes:
        tokens: the token ids, one row.
        pieces: the text of every token.
        code: Python code that defines ``tokens``.
    """

    tokens: Int[Tensor, "1 pos"]
    pieces: list[str]
    code: str

    def __len__(self) -> int:
        """Return the number of positions."""
        return self.tokens.shape[1]


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

    def make_references(self, length: int) -> tuple[Int[Tensor, "batch pos"], str]:
        """Return the reference sequences of mean ablation, and code that defines them as ``reference_tokens``.

        Args:
            length: the number of positions.
        """
        ...

    def decode_token(self, token: int) -> str:
        """Return the text of a token.

        Args:
            token: its id.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ExploredModel:
    """A model that is explored, with the source of its inputs.

    Attributes:
        model: the model.
        name: its name, for the page.
        source: where inputs come from.
        layers: the number of layers.
        heads: the number of heads of a layer.
        attention_layers: the layers that have attention.
        example: a first prompt: a text, or the number of a sequence.
        sites: the sites that most views share, as far as the model has them.
    """

    model: PreTrainedModel
    name: str
    source: InputSource
    layers: int
    heads: int
    attention_layers: tuple[int, ...]
    example: str | int
    sites: tuple[str, ...]
    _captures: dict[Hashable, Capture] = field(default_factory=dict, repr=False)

    def capture_input(self, inputs: ExploredInput) -> Capture:
        """Return a capture of ``sites`` on an input, which is kept for the next views.

        Args:
            inputs: the input.
        """
        key = ("input", tuple(inputs.tokens[0].tolist()))
        return self._capture_once(key, lambda: capture(self.model, inputs.tokens, self.sites))

    def capture_references(self, length: int) -> tuple[Capture, str]:
        """Return a capture of ``z`` on the references of mean ablation, and code that defines their tokens.

        Args:
            length: the number of tokens of each.

        Raises:
            ValueError: there are too few references of this length.
        """
        tokens, code = self.source.make_references(length)
        layers = list(self.attention_layers)
        return self._capture_once(
            ("references", length), lambda: capture(self.model, tokens, ["z"], layers=layers)
        ), code

    def _capture_once(self, key: Hashable, run: Callable[[], Capture]) -> Capture:
        """Return a recent capture, or a new one; a changed weight makes all captures old."""
        key = (key, fingerprint_tensors(model_tensors(self.model)))
        acts = self._captures.pop(key, None) or run()
        self._captures[key] = acts  # the last one is the newest
        while len(self._captures) > MAX_CAPTURES:
            del self._captures[next(iter(self._captures))]
        return acts


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
        return ExploredInput(tokens=torch.tensor([ids]), pieces=self._decoder.decode_row(ids), code=code)

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
        if isinstance(prompt, str) or not 0 <= prompt < 2**31:
            raise ValueError(f"a sequence must be given by its number from 0 to {2**31 - 1}, but got {prompt!r}")
        tokens = self.task.sample(1, torch.Generator().manual_seed(prompt)).inputs.long()
        code = f"tokens = task.sample(1, torch.Generator().manual_seed({prompt})).inputs"
        pieces = [f"{self.decode_token(token)} " for token in tokens[0].tolist()]
        return ExploredInput(tokens=tokens, pieces=pieces, code=code)

    def make_references(self, length: int) -> tuple[Int[Tensor, "batch pos"], str]:
        """Return other sequences of the task.

        Args:
            length: the number of tokens of the sequence, which is that of every sequence of the task.

        Returns:
            The tokens, and code that defines them.
        """
        count, seed = count_references(length), 2**31
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
        length: the number of tokens of each.

    >>> count_references(14), count_references(512)
    (16, 2)
    """
    return max(2, min(MAX_REFERENCES, REFERENCE_TOKENS // length))


@validate_arguments
def explore_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, load_code: str | None = None
) -> ExploredModel:
    """Return a language model in memory, ready to be explored.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        name: its name, for the page.
        load_code: Python code that loads it, for code that is copied; a comment by default.

    Returns:
        The explored model.

    Raises:
        ValueError: the model repeats its layers, or has no attention.
        UnsupportedModel: `capture` cannot open the model.
    """
    prompts = Prompts(validate_model(model), tokenizer, name, load_code)
    return _describe_model(model, name, prompts, prompts.shorten_prompt(EXAMPLE))


@validate_arguments
def open_explored_model(
    name: str, device: str = "cpu", dtype: str = "float32", *, trust_remote_code: bool = False
) -> ExploredModel:
    """Load a language model and its tokenizer.

    Args:
        name: a Hub name, a folder or a ``.gguf`` file.
        device: the device to compute on.
        dtype: data type of the weights.
        trust_remote_code: run Python code that comes with the model.

    Returns:
        The explored model.

    Raises:
        ValueError: the model, its tokenizer or the dtype is invalid.
    """
    if dtype not in DTYPES:
        raise ValueError(f"a dtype must be one of {', '.join(DTYPES)}, but got {dtype!r}")
    model, tokenizer = load_pretrained(name, DTYPES[dtype], device, trust_remote_code=trust_remote_code)
    if tokenizer is None:
        raise ValueError(f"a model must come with its tokenizer to read prompts, but {name} has none; add its files")
    options = f", dtype=torch.{dtype}" if dtype != "float32" else ""
    options += f", device={device!r}" if device != "cpu" else ""
    options += ", trust_remote_code=True" if trust_remote_code else ""
    load_code = (
        f"from mesascope.models.load import load_pretrained\n\nmodel, tokenizer = load_pretrained({name!r}{options})"
    )
    check_forward_pass(model, torch.tensor([encode_prompt("a", tokenizer, model, name)]), name)
    return explore_model(model, tokenizer, Path(name).name if Path(name).exists() else name, load_code)


@validate_arguments
def open_explored_run(
    path: Path, study: str | None = None, condition: str | None = None, seed: int | None = None, device: str = "cpu"
) -> ExploredModel:
    """Load a trained model of a study's run; its inputs are sequences of its task.

    Args:
        path: the run directory.
        study: the study, if it is a file.
        condition: name of the condition; by default the first one.
        seed: the training replicate; by default the first one.
        device: the device to compute on.

    Returns:
        The explored model.

    Raises:
        ValueError: the run has no such model, its training is not finished, or its task is not to predict the next of
            some tokens.
    """
    loaded = open_run_model(path, study, condition, seed, device)
    check_next_token_task(loaded.task)
    arguments = ", ".join(repr(one) for one in (str(path), study, condition, seed, device))
    load_code = (
        "from pathlib import Path\n\nfrom mesascope.inspection import open_run_model\n\n"
        f"loaded = open_run_model(Path({str(path)!r}), {arguments.partition(', ')[2]})\n"
        "model, task = loaded.model, loaded.task"
    )
    return _describe_model(loaded.model, loaded.name, TaskSequences(loaded.task, load_code), 0)


def check_next_token_task(task: Task) -> None:
    """Check that inputs are tokens and that the targets of all scored positions are the next ones.

    Args:
        task: the task.

    Raises:
        ValueError: they are not.
    """
    batch, name = task.sample(8, torch.Generator().manual_seed(0)), type(task).__name__
    if batch.inputs.is_floating_point():
        raise ValueError(
            f"the explorer needs a task of tokens, but the inputs of {name} are vectors; use the report of the run, or "
            "capture with batches of the task"
        )
    is_next = (batch.targets[:, :-1] == batch.inputs[:, 1:]) | (batch.weight[:, :-1] == 0)
    if batch.targets.is_floating_point() or not bool(is_next.all()):
        raise ValueError(
            f"the explorer needs a task whose targets are the next tokens, but those of {name} are not; use the report "
            "of the run, or capture with batches of the task"
        )


def _describe_model(model: PreTrainedModel, name: str, source: InputSource, example: str | int) -> ExploredModel:
    tokens = source.read_input(example).tokens[:, :8]
    layers = attention_layers(model, tokens)
    if not layers:
        raise ValueError(f"the explorer needs a model with attention, but {name} has none")
    acts = capture(model, tokens, ["z"], layers=layers)
    if acts.iterations is not None:
        raise ValueError(
            f"the explorer needs a model that calls each layer once, but {name} repeats its layers; use capture with "
            "iterations="
        )
    return ExploredModel(
        model=model,
        name=name,
        source=source,
        layers=acts.readout.num_layers,
        heads=acts["z"].shape[3],
        attention_layers=tuple(layers),
        example=example,
        sites=_find_sites(model, tokens),
    )


def _find_sites(model: PreTrainedModel, tokens: Int[Tensor, "1 pos"]) -> tuple[str, ...]:
    """Return the sites that views share; some layers of hybrid models have no attention."""
    try:
        capture(model, tokens, [*STREAM_SITES, *COMPONENT_SITES])
    except UnsupportedModel:
        return STREAM_SITES
    return STREAM_SITES + COMPONENT_SITES
