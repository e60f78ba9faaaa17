"""Inputs of linear modules at a sample of tokens, recorded during the forward pass.

Input vectors are stored, rather than their second moments or projections: the second moments of all inputs need at
least a third of the memory of the model, and projections need the eigenvectors before the pass. The memory for vectors
is linear in the width, and every stored vector can be checked against the module's output.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._arguments import prepare_inputs
from mesascope.activations.capture import read_structure
from mesascope.activations.forward import eval_no_grad, run_model
from mesascope.activations.hooks._module_hooks import first_tensor
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.structure._linear_modules import LinearModule, LinearModules, find_linear_modules
from mesascope.tasks.base import Batch

MAX_SAMPLED_TOKENS = 2048  # maximum number of sampled tokens
MAX_SAMPLE_BYTES = 128_000_000  # maximum size of the stored vectors


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearModuleSample:
    """The inputs and output norms of one linear module at the sampled tokens.

    Attributes:
        linear: the linear module.
        inputs: the input vectors x; modules that read the same vectors share the tensor.
        output_sq_norms: the squared norm of W x as the model computed it, without the bias.
    """

    linear: LinearModule
    inputs: Float[Tensor, "token d_in"]
    output_sq_norms: Float[Tensor, " token"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearModuleSamples:
    """The samples of all linear modules.

    Attributes:
        samples: one per linear module, layer by layer.
        layers: the layers that were searched, in order.
        excluded: the reason why a module with matrices has no sample, by layer and its name in the block.
        num_tokens: the number of sampled tokens.
    """

    samples: tuple[LinearModuleSample, ...]
    layers: tuple[int, ...]
    excluded: dict[tuple[int, str], str]
    num_tokens: int


def max_sampled_tokens(linear_modules: LinearModules, dtype: torch.dtype, max_bytes: int = MAX_SAMPLE_BYTES) -> int:
    """Return the number of tokens whose input vectors at all linear modules fit into a given memory.

    Args:
        linear_modules: the linear modules.
        dtype: the dtype of the vectors.
        max_bytes: the memory in bytes.

    Returns:
        The number of tokens, at least 1.
    """
    width = sum(each.weight.shape[1] for each in linear_modules.modules if each.same_input_as == each.name)
    return max(1, max_bytes // max(1, width * dtype.itemsize))


def sample_tokens(
    eligible: Bool[Tensor, "batch pos"], max_tokens: int, generator: torch.Generator
) -> Bool[Tensor, "batch pos"]:
    """Sample tokens uniformly without replacement.

    Args:
        eligible: ``True`` at eligible tokens.
        max_tokens: the maximum number of tokens; all eligible ones if there are no more.
        generator: the random generator.

    Returns:
        A mask that is ``True`` at the sampled tokens.

    Raises:
        ValueError: no token is eligible.
    """
    indices = eligible.cpu().flatten().nonzero()[:, 0]
    if not len(indices):
        raise ValueError("at least one token must be eligible, but all are excluded; exclude fewer tokens")
    sampled = indices[torch.randperm(len(indices), generator=generator)[:max_tokens]]
    token_mask = torch.zeros(eligible.numel(), dtype=torch.bool)
    token_mask[sampled] = True
    return token_mask.view(eligible.shape)


@contextmanager
def record_linear_inputs(
    linear_modules: LinearModules, token_mask: Bool[Tensor, "batch pos"]
) -> Iterator["LinearInputRecorder"]:
    """Record the inputs of linear modules at some tokens during the forward passes of the context.

    The sequences must pass once, in order, in micro-batches of any size.

    Args:
        linear_modules: the linear modules.
        token_mask: ``True`` at the tokens to record, for all sequences.

    Yields:
        The recorder; call its `collect_samples` after the last pass.
    """
    recorder = LinearInputRecorder(linear_modules, token_mask)
    with ExitStack() as hooks:
        for each in linear_modules.modules:
            handle = each.module.register_forward_hook(partial(recorder.record_call, each), with_kwargs=True)
            hooks.callback(handle.remove)
        yield recorder


class LinearInputRecorder:
    """Recorder of the inputs of linear modules; see `record_linear_inputs`."""

    def __init__(self, linear_modules: LinearModules, token_mask: Bool[Tensor, "batch pos"]) -> None:
        self._linear_modules, self._token_mask = linear_modules, token_mask.flatten().cpu()
        self._num_tokens = int(token_mask.sum())
        self._recorded = {(each.layer, each.name): _RecordedVectors() for each in linear_modules.modules}

    @torch.no_grad()
    def record_call(
        self, linear: LinearModule, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any
    ) -> None:
        """Record the vectors of one call of a linear module; a forward hook.

        Args:
            linear: the linear module.
            module: the module that was called.
            args: its positional arguments.
            kwargs: its keyword arguments.
            output: its output.
        """
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)).flatten(0, -2)
        y, taken = first_tensor(output), self._recorded[linear.layer, linear.name]
        rows = self._token_mask[taken.num_seen : taken.num_seen + len(x)].nonzero()[:, 0].to(x.device)
        taken.num_seen += len(x)
        if y is None or not len(rows):
            return
        outputs = y.flatten(0, -2)[rows].double()
        outputs = outputs if linear.bias is None else outputs - linear.bias.double()
        taken.append_rows(
            x[rows], outputs.square().sum(-1), self._recorded[linear.layer, linear.same_input_as], self._num_tokens
        )

    def collect_samples(self) -> LinearModuleSamples:
        """Return the recorded samples.

        Returns:
            The samples of all linear modules that read every token.

        Raises:
            UnsupportedModel: no linear module read every token.
        """
        excluded, samples = dict(self._linear_modules.excluded), []
        for each in self._linear_modules.modules:
            taken, tokens = self._recorded[each.layer, each.name], self._token_mask.numel()
            if taken.num_seen != tokens or taken.inputs is None or taken.output_sq_norms is None:
                excluded[each.layer, each.name] = f"its input has {taken.num_seen} vectors for {tokens} tokens"
            else:
                samples.append(
                    LinearModuleSample(linear=each, inputs=taken.inputs, output_sq_norms=taken.output_sq_norms)
                )
        if not samples:
            raise UnsupportedModel(
                "the layers must have linear modules that read every token once, but none does: "
                f"{next(iter(excluded.values()), 'no module has a matrix')}"
            )
        return LinearModuleSamples(
            samples=tuple(samples), layers=self._linear_modules.layers, excluded=excluded, num_tokens=self._num_tokens
        )


@dataclass(kw_only=True, eq=False)
class _RecordedVectors:
    """The vectors recorded from one linear module: ``num_stored`` rows so far, of ``num_seen`` tokens."""

    inputs: Float[Tensor, "token d_in"] | None = None
    output_sq_norms: Float[Tensor, " token"] | None = None
    num_stored: int = 0
    num_seen: int = 0

    def append_rows(
        self,
        x: Float[Tensor, "some d_in"],
        output_sq_norms: Float[Tensor, " some"],
        source: "_RecordedVectors",
        tokens: int,
    ) -> None:
        """Append vectors; share the rows of ``source`` as long as they are bitwise equal."""
        rows = slice(self.num_stored, self.num_stored + len(x))
        if self.inputs is None or self.output_sq_norms is None:
            self.inputs = x.new_empty(tokens, x.shape[1]) if source.inputs is None else source.inputs
            self.output_sq_norms = output_sq_norms.new_empty(tokens)
        if self is source or self.inputs is not source.inputs:
            self.inputs[rows] = x
        elif not torch.equal(self.inputs[rows], x):
            self.inputs = self.inputs.clone()
            self.inputs[rows] = x
        self.output_sq_norms[rows] = output_sq_norms
        self.num_stored += len(x)


def sample_linear_inputs(
    model: PreTrainedModel,
    inputs: Shaped[Tensor, "batch pos *d_in"],
    *,
    eligible: Bool[Tensor, "batch pos"] | None = None,
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    layers: Sequence[int] | None = None,
    max_tokens: int = MAX_SAMPLED_TOKENS,
    batch_size: int | None = None,
    seed: int = 0,
) -> LinearModuleSamples:
    """Run a model and sample the inputs of every linear module inside its blocks, at random tokens.

    Args:
        model: any model that `capture` supports.
        inputs: tokens (batch, pos) or vectors (batch, pos, d_in).
        eligible: ``True`` at eligible tokens, to exclude attention sinks, for example; by default all but padding.
        attention_mask: 1 where an input is not padding.
        layers: the layers; all by default.
        max_tokens: the maximum number of tokens; fewer if their vectors would need more than 128 MB.
        batch_size: sequences per forward pass; all at once by default.
        seed: the seed of the sample.

    Returns:
        The samples of all linear modules.

    Raises:
        UnsupportedModel: the layers cannot be found, or have no linear modules.
        ValueError: no token is eligible.

    >>> from mesascope.models.transformer import Decoder, DecoderConfig
    >>> model = Decoder(DecoderConfig(d_in=1, d_out=1, hidden_size=8, num_attention_heads=2))
    >>> sample_linear_inputs(model, torch.ones(4, 6, 1), layers=[0]).samples[0].linear.name
    'attention.q_proj'
    """
    inputs = inputs.to(model.device)
    mask = None if attention_mask is None else attention_mask.to(model.device).long()
    not_padding = torch.ones(inputs.shape[:2], dtype=torch.bool) if mask is None else mask.bool().cpu()
    not_padding = not_padding if eligible is None else not_padding & eligible.cpu()
    with eval_no_grad(model):
        model_trace, layer_specs = read_structure(model, inputs, mask)
        linear_modules = find_linear_modules(model, layer_specs, model_trace, layers)
        num_tokens = min(max_tokens, max_sampled_tokens(linear_modules, model.dtype))
        size = batch_size or len(inputs)
        with record_linear_inputs(
            linear_modules, sample_tokens(not_padding, num_tokens, torch.Generator().manual_seed(seed))
        ) as recorder:
            for start in range(0, len(inputs), size):
                rows = slice(start, start + size)
                run_model(model, inputs[rows], None if mask is None else mask[rows], all_positions=False)
        return recorder.collect_samples()


def module_inputs(
    model: PreTrainedModel, inputs: Tensor | Batch, names: Sequence[str]
) -> dict[str, Float[Tensor, "batch pos _"]]:
    """Return the inputs of named modules in one forward pass in evaluation mode.

    Args:
        model: any transformers model.
        inputs: tokens (batch, pos), vectors (batch, pos, d_in), or a batch of a task.
        names: names of modules that are called once, with one tensor (batch, pos, width).

    Returns:
        The inputs, by module name.

    Raises:
        ValueError: the model has no module of a name, or a module was not called once.
    """
    modules = dict(model.named_modules())
    missing = [name for name in names if name not in modules]
    if missing:
        raise ValueError(f"names must be modules of the model, but it has no {', '.join(missing)}")
    recorded: dict[str, list[Tensor]] = {name: [] for name in names}

    def make_hook(name: str):
        def record_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            recorded[name].append(args[0].detach())

        return record_input

    hooks = [modules[name].register_forward_pre_hook(make_hook(name)) for name in names]
    x, mask = prepare_inputs(model, inputs, None)
    try:
        with eval_no_grad(model), torch.no_grad():
            run_model(model, x, mask)
    finally:
        for hook in hooks:
            hook.remove()
    uncalled = [name for name, vectors in recorded.items() if len(vectors) != 1]
    if uncalled:
        raise ValueError(f"modules must be called once per forward pass, but {', '.join(uncalled)} is not; omit it")
    return {name: vectors[0] for name, vectors in recorded.items()}
