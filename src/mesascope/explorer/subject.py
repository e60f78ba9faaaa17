"""The model that is explored, with the source of its inputs."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mesascope.activations import Capture, UnsupportedModel, attention_layers, capture, validate_model
from mesascope.activations.validation.fingerprint import fingerprint_tensors, model_tensors
from mesascope.argument_types import validate_arguments
from mesascope.explorer.sources import ExploredInput, InputSource, Prompts, TaskSequences
from mesascope.explorer.vector_sequences import VectorSequences
from mesascope.inspection import DTYPES, encode_prompt, open_run_model
from mesascope.models.load import load_pretrained
from mesascope.models.weight_checks import check_forward_pass
from mesascope.tasks.base import Task

MAX_CAPTURES = 4  # those of two prompts, the references and one before; logits of 512 tokens can have 0.5 GB
STREAM_SITES = ("resid_pre", "resid_post", "output")
COMPONENT_SITES = ("attn_out", "z")  # of direct attribution
EXAMPLE = "When Mary and John went to the store, John gave a drink to"


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
        key = ("input", tuple(inputs.values.flatten().tolist()))
        return self._capture_once(key, lambda: capture(self.model, inputs.values, self.sites))

    def capture_references(self, length: int) -> tuple[Capture, str]:
        """Return a capture of ``z`` on the references of mean ablation, and code that defines the references.

        Args:
            length: the number of positions of each.

        Raises:
            ValueError: there are too few references of this length.
        """
        references, code = self.source.make_references(length)
        layers = list(self.attention_layers)
        return self._capture_once(
            ("references", length), lambda: capture(self.model, references, ["z"], layers=layers)
        ), code

    def _capture_once(self, key: Hashable, run: Callable[[], Capture]) -> Capture:
        """Return a recent capture, or a new one; a changed weight makes all captures old."""
        key = (key, fingerprint_tensors(model_tensors(self.model)))
        acts = self._captures.pop(key, None) or run()
        self._captures[key] = acts  # the last one is the newest
        while len(self._captures) > MAX_CAPTURES:
            del self._captures[next(iter(self._captures))]
        return acts


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
def explore_task_model(model: PreTrainedModel, task: Task, name: str, load_code: str | None = None) -> ExploredModel:
    """Return a model of a task, ready to be explored on sequences of the task.

    Args:
        model: the model.
        task: its task: of vectors, or to predict the next token.
        name: its name, for the page.
        load_code: Python code that defines ``model`` and ``task``, for code that is copied; a comment by default.

    Returns:
        The explored model.

    Raises:
        ValueError: the task is neither to predict the next of some tokens, nor to predict vectors from vectors; or the
            model repeats its layers, or has no attention.
        UnsupportedModel: `capture` cannot open the model.
    """
    load_code = load_code or "# model, task = the model that is explored, and its task"
    if check_explored_task(task):
        return _describe_model(validate_model(model), name, VectorSequences(task, load_code), "0")
    return _describe_model(validate_model(model), name, TaskSequences(task, load_code), 0)


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
    model, tokenizer = load_pretrained(
        name, DTYPES[dtype], device, trust_remote_code=trust_remote_code, require_tokenizer=False
    )
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
        ValueError: the run has no such model, its training is not finished, or its task is neither to predict the next
            of some tokens, nor to predict vectors from vectors.
    """
    loaded = open_run_model(path, study, condition, seed, device)
    arguments = ", ".join(repr(one) for one in (str(path), study, condition, seed, device))
    load_code = (
        "from pathlib import Path\n\nfrom mesascope.inspection import open_run_model\n\n"
        f"loaded = open_run_model(Path({str(path)!r}), {arguments.partition(', ')[2]})\n"
        "model, task = loaded.model, loaded.task"
    )
    return explore_task_model(loaded.model, loaded.task, loaded.name, load_code)


def check_explored_task(task: Task) -> bool:
    """Check that the targets of a task are vectors, or the next tokens at all scored positions.

    Args:
        task: the task.

    Returns:
        True if inputs and targets are vectors, False if they are tokens.

    Raises:
        ValueError: they are neither.
    """
    batch, name = task.sample(8, torch.Generator().manual_seed(0)), type(task).__name__
    if batch.inputs.is_floating_point():
        if not batch.targets.is_floating_point():
            raise ValueError(
                f"the explorer needs vectors as targets of vectors, but those of {name} are classes; use the report of "
                "the run, or capture with batches of the task"
            )
        return True
    is_next = (batch.targets[:, :-1] == batch.inputs[:, 1:]) | (batch.weight[:, :-1] == 0)
    if batch.targets.is_floating_point() or not bool(is_next.all()):
        raise ValueError(
            f"the explorer needs a task whose targets are the next tokens, but those of {name} are not; use the report "
            "of the run, or capture with batches of the task"
        )
    return False


def _describe_model(model: PreTrainedModel, name: str, source: InputSource, example: str | int) -> ExploredModel:
    values = source.read_input(example).values[:, :8]
    layers = attention_layers(model, values)
    if not layers:
        raise ValueError(f"the explorer needs a model with attention, but {name} has none")
    acts = capture(model, values, ["z"], layers=layers)
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
        sites=_find_sites(model, values),
    )


def _find_sites(model: PreTrainedModel, values: Tensor) -> tuple[str, ...]:
    """Return the sites that views share; some layers of hybrid models have no attention."""
    try:
        capture(model, values, [*STREAM_SITES, *COMPONENT_SITES])
    except UnsupportedModel:
        return STREAM_SITES
    return STREAM_SITES + COMPONENT_SITES
