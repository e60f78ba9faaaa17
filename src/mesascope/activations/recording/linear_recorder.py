"""Recorder of the inputs of linear modules at some tokens."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mesascope.activations.exclusive_use import guard_hook
from mesascope.activations.hooks._module_arguments import first_tensor
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.structure._linear_modules import LinearModule, LinearModules


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
            handle = each.module.register_forward_hook(
                guard_hook(partial(recorder.record_call, each)), with_kwargs=True
            )
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
        """Return the recorded samples of all linear modules that read every token.

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
