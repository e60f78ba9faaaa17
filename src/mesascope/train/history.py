"""While a model trains: what every linear map reads and which error signals come back to it, written to disk.

The update of a map W is then known by its parts: W[n+1] = W[n] - rate * (momentum, decay, clipping of) sum_i d_i x_i^T,
over the positions i of the batch of step n, with the inputs x_i and the error signals d_i, the gradients of the loss
by what the map gave at position i (Irie et al. 2022). What is read from it is in
`mesascope.analyses.training.history_attention`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mesascope.models.layers import Attention
from mesascope.store import Column, HistoryWriter
from mesascope.tasks.base import Batch
from mesascope.train.optim import SGD, Rule

STEPS, LABELS = "steps", "labels"  # columns beside inputs and errors: (rate, share left by clipping), and ground truth


class Recorder:
    """Hears every linear map of a model forth and back, and appends each step to a history.

    Args:
        model: that is trained.
        optimizer: of the model; its groups say which weights decay.
        rule: what it was built from.
        folder: of the history.
        keep: steps that are kept of what is there.

    Raises:
        ValueError: maps share their weights, so that no update belongs to one of them.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, rule: Rule, folder: Path, keep: int) -> None:
        self._modules = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}
        _refuse_shared(model)
        self._model, self._rule, self._folder, self._keep = model, rule, folder, keep
        self._decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        self._reads: dict[str, str] = {}
        self._inputs: dict[str, Tensor] = {}
        self._errors: dict[str, Tensor] = {}
        self._writer: HistoryWriter | None = None

    def add(self, batch: Batch, rate: float, kept: float) -> None:
        """Append the step that went forth and back just now.

        Args:
            batch: of the step.
            rate: the learning rate.
            kept: the share of the gradient that clipping left.

        Raises:
            RunError: the disk refuses, or holds another history.
        """
        found = {f"{name}.in": x.detach() for name, x in self._inputs.items()}
        found |= {f"{name}.error": self._errors[name] for name in self._modules}
        rows = {name: value.flatten(0, -2).cpu().numpy() for name, value in found.items()}
        if batch.labels:
            rows[LABELS] = torch.stack(list(batch.labels.values()), -1).flatten(0, 1).int().cpu().numpy()
        rows[STEPS] = np.array([[rate, kept]])
        if self._writer is None:
            columns = {n: Column(rows=r.shape[0], width=r.shape[1], dtype=str(r.dtype)) for n, r in rows.items()}
            self._writer = HistoryWriter(self._folder, columns, self._facts(list(batch.labels)), self._keep)
        self._writer.add(rows)
        self._inputs.clear()
        self._errors.clear()

    def sync(self) -> None:
        """Put on disk what was appended."""
        if self._writer is not None:
            self._writer.sync()

    @contextmanager
    def listening(self) -> Iterator["Recorder"]:
        """Hear the model while this lasts."""
        hooks = [each.register_forward_hook(self._hear(name)) for name, each in self._modules.items()]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()
            if self._writer is not None:
                self._writer.close()

    def _facts(self, labels: list[str]) -> dict[str, Any]:
        """What a reader of the history must know of the maps and of the rule."""
        heads = {
            f"{name}.o_proj": each.config.num_attention_heads
            for name, each in self._model.named_modules()
            if isinstance(each, Attention)
        }
        maps = {
            name: {
                "reads": self._reads[name],
                "decay": self._decay[each.weight],
                "bias decay": None if each.bias is None else self._decay[each.bias],
                "heads": heads.get(name, 1),
            }
            for name, each in self._modules.items()
        }
        momentum = self._rule.momentum if isinstance(self._rule, SGD) else None
        return {"rule": type(self._rule).__name__, "momentum": momentum, "labels": labels, "maps": maps}

    def _hear(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        """What is called when a map has given its output."""

        def hear(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            (x,) = args
            self._reads[name] = next((other for other, seen in self._inputs.items() if seen is x), name)
            self._inputs.setdefault(self._reads[name], x)
            output.register_hook(lambda error: self._errors.__setitem__(name, error))

        return hear


def _refuse_shared(model: nn.Module) -> None:
    """Refuse a model in which one matrix stands in several places."""
    places: Mapping[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    if len(set(places.values())) < len(places):
        raise ValueError(
            "a history needs linear maps with weights of their own, but this model shares some (share_layers or "
            "tie_word_embeddings); turn that off, or train without a history"
        )
