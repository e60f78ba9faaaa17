"""Recording of a training history: the inputs and output gradients of every linear module, at every step.

They determine the update of a weight matrix W: W[n+1] = W[n] - rate * (momentum, decay, clipping of) sum_i d_i x_i^T,
over the positions i of the batch of step n, with the inputs x_i and the error signals d_i, the gradients of the loss
with respect to the module's output at position i (Irie et al. 2022). `mesascope.analyses.training.history_attention`
analyses the record.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mesascope.models.layers import DecoderAttention
from mesascope.models.transformer import Decoder
from mesascope.store import HistoryColumn, HistoryWriter
from mesascope.tasks.base import Batch
from mesascope.train.optim import SGD, OptimizerConfig

STEP_COLUMN, LABEL_COLUMN = (
    "steps",
    "labels",
)  # further columns: (learning rate, gradient scale of clipping), and latent labels


class HistoryRecorder:
    """Records the inputs and output gradients of every linear module of a model, and appends each step to a history.

    Args:
        model: The model being trained.
        optimizer: Its optimizer; the parameter groups define the weight decay of each weight.
        rule: The configuration of the optimizer.
        folder: The folder of the history.
        keep_steps: Number of existing steps to keep.
        identity: What tells this training from others; stored with the history.

    Raises:
        ValueError: If modules share weights or are called repeatedly, since an update then belongs to no single call.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rule: OptimizerConfig,
        folder: Path,
        keep_steps: int,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self._modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        _check_called_once(model)
        self._model, self._rule, self._folder, self._keep_steps = model, rule, folder, keep_steps
        self._identity = dict(identity or {})
        self._decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        self._reads: dict[str, str] = {}
        self._inputs: dict[str, Tensor] = {}
        self._errors: dict[str, Tensor] = {}
        self._writer: HistoryWriter | None = None

    def append_step(self, batch: Batch, rate: float, gradient_scale: float) -> None:
        """Append the step whose forward and backward pass have just run.

        Args:
            batch: The batch of the step.
            rate: The learning rate.
            gradient_scale: The factor by which clipping scaled the gradient.

        Raises:
            RunError: If the file system refuses, or the folder holds another history.
        """
        rows = self._collect_rows(batch.categorical_latents)
        rows[STEP_COLUMN] = np.array([[rate, gradient_scale]])
        if self._writer is None:
            columns = {n: HistoryColumn(rows=r.shape[0], width=r.shape[1], dtype=str(r.dtype)) for n, r in rows.items()}
            self._writer = HistoryWriter(
                self._folder, columns, self._describe_modules(list(batch.categorical_latents)), self._keep_steps
            )
        self._writer.append_step(rows)
        self._inputs.clear()
        self._errors.clear()

    def sync_to_disk(self) -> None:
        """Flush all appended steps to disk.

        Raises:
            RunError: If the file system refuses.
        """
        if self._writer is not None:
            self._writer.sync_to_disk()

    @contextmanager
    def attach_hooks(self) -> Iterator["HistoryRecorder"]:
        """Attach the recording hooks to the model for the duration of a ``with`` block.

        Returns:
            A context manager that yields the recorder.
        """
        hooks = [module.register_forward_hook(self._make_forward_hook(name)) for name, module in self._modules.items()]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()
            if self._writer is not None:
                self._writer.close()

    def _collect_rows(self, labels: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return the inputs, output gradients and latent labels of the last step, one row per position."""
        recorded = {f"{name}.in": x.detach() for name, x in self._inputs.items()}
        recorded |= {f"{name}.error": self._errors[name] for name in self._modules}
        rows = {name: value.flatten(0, -2).cpu().numpy() for name, value in recorded.items()}
        if labels:
            rows[LABEL_COLUMN] = torch.stack(list(labels.values()), -1).flatten(0, 1).int().cpu().numpy()
        return rows

    def _describe_modules(self, labels: list[str]) -> dict[str, Any]:
        heads = {
            f"{name}.o_proj": module.config.num_attention_heads
            for name, module in self._model.named_modules()
            if isinstance(module, DecoderAttention)
        }
        modules = {
            name: {
                "reads": self._reads[name],
                "decay": self._decay[module.weight],
                "bias decay": None if module.bias is None else self._decay[module.bias],
                "heads": heads.get(name, 1),
            }
            for name, module in self._modules.items()
        }
        momentum = self._rule.momentum if isinstance(self._rule, SGD) else None
        rule = {"rule": type(self._rule).__name__, "momentum": momentum}
        return {**rule, "labels": labels, "maps": modules, "training": self._identity}

    def _make_forward_hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record_tensors(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            (x,) = args
            self._reads[name] = next((other for other, seen in self._inputs.items() if seen is x), name)
            self._inputs.setdefault(self._reads[name], x)
            output.register_hook(lambda error: self._errors.__setitem__(name, error))

        return record_tensors


def _check_called_once(model: nn.Module) -> None:
    """Raise if a weight matrix is used more than once in a forward pass."""
    if isinstance(model, Decoder) and type(model) is not Decoder:
        raise ValueError(
            "a training history must have linear modules that are called once in a step, on all positions, but "
            f"{type(model).__name__} calls them otherwise; train without a history"
        )
    parameters: Mapping[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    if len(set(parameters.values())) < len(parameters):
        raise ValueError(
            "a training history must have linear modules with separate weights, but this model shares some "
            "(share_layers or tie_word_embeddings); turn that off, or train without a history"
        )
