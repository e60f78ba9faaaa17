"""The two runs of a circuit, clean and counterfactual, and runs in which some edges carry the counterfactual."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mesascope.activations import InputsLike, UnsupportedModel
from mesascope.activations.split_forward import ATTENTION_INPUTS, SplitForward
from mesascope.activations.tolerances import allclose, relative_difference
from mesascope.circuits.edges import Component, Edges, find_edges
from mesascope.interventions import ProgressFn
from mesascope.interventions.metric_arguments import resolve_directed_metric
from mesascope.interventions.metrics import Metric
from mesascope.interventions.run_inputs import prepare_pair

MAX_BYTES = 2**30  # of what the senders add in all branches of one run
Stream = Float[Tensor, "batch pos d_model"]
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedRun:
    """Terms that the senders of a run add, and streams that its receivers read.

    Attributes:
        terms: the term of every sender.
        attention_streams: by layer, the stream that attention reads.
        mlp_streams: by layer, the stream that the MLP reads; ``None`` without one.
        output_stream: the stream that is mapped to the output.
        output: the output of the model.
    """

    terms: Float[Tensor, "sender batch pos d_model"]
    attention_streams: Sequence[Stream]
    mlp_streams: Sequence[Stream | None]
    output_stream: Stream
    output: Float[Tensor, "batch predicted d_out"]

    def stream(self, receiver: Component) -> Stream:
        """Return the stream that a receiver reads.

        Args:
            receiver: the receiver.
        """
        if receiver.kind == "output":
            return self.output_stream
        stream = (self.mlp_streams if receiver.kind == "mlp" else self.attention_streams)[receiver.layer]
        assert stream is not None
        return stream


class CircuitRuns:
    """A clean and a counterfactual run, and runs in which all edges outside a circuit carry the counterfactual run.

    Args:
        model: any model that `SplitForward` supports.
        inputs: clean inputs.
        source: counterfactual inputs: as many sequences of the same lengths.
        metric: one number per sequence.
        attention_mask: (batch, pos), 1 where one of ``inputs`` is not padding.
        source_attention_mask: the same for ``source``.

    Raises:
        UnsupportedModel: If the model has no such edges, or its terms do not determine its output.
        ValueError: If the runs differ in shape or padding, or the metric is the same on both.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: InputsLike,
        source: InputsLike,
        metric: Metric | str | Any,
        attention_mask: Any = None,
        source_attention_mask: Any = None,
    ) -> None:
        run, other = prepare_pair(model, inputs, source, attention_mask, source_attention_mask)
        self.metric = resolve_directed_metric(metric, run.inputs)
        self.mask = run.mask
        if run.mask is not None and other.mask is not None and not run.mask.equal(other.mask):
            raise ValueError(
                "both runs must have the same padding, but some sequences differ in length from their counterfactual; "
                "use pairs of one length"
            )
        self.split, self.counterfactual_split = (
            SplitForward(model, each.inputs, attention_mask=each.mask, all_positions=not self.metric.last_position_only)
            for each in (run, other)
        )
        self.edges: Edges = find_edges(self.split)

    @cached_property
    def clean(self) -> RecordedRun:
        """The clean run."""
        return self._record(self.split)

    @cached_property
    def counterfactual(self) -> RecordedRun:
        """The counterfactual run."""
        return self._record(self.counterfactual_split)

    @cached_property
    def projections(self) -> list[Float[Tensor, "head d_head d_model"]]:
        """By layer, the maps from what the heads compute to what they add to the stream."""
        return [self.split.output_projection(layer) for layer in range(self.split.num_layers)]

    @property
    def num_sequences(self) -> int:
        """The number of pairs."""
        return len(self.split.inputs)

    @cached_property
    def difference(self) -> Float[Tensor, "sender batch pos d_model"]:
        """The counterfactual term of every sender minus its clean term; 0 at padding."""
        difference = self.counterfactual.terms - self.clean.terms
        return difference if self.mask is None else difference * self.mask[..., None].to(difference)

    @cached_property
    def ends(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """The metric of the clean and of the counterfactual run.

        Raises:
            ValueError: If their means are the same.
        """
        clean, counterfactual = (self.metric(run.output, self.mask) for run in (self.clean, self.counterfactual))
        if abs(float(clean.mean() - counterfactual.mean())) <= 1e-6 * float(clean.abs().mean()):
            raise ValueError(
                f"the metric must differ between clean and counterfactual prompts, but {self.metric.name} is "
                f"{float(clean.mean()):.4g} on both; choose another metric or other pairs"
            )
        return clean, counterfactual

    def validate_edges(self) -> None:
        """Check that the edges determine the model.

        Between the two runs, the stream of every receiver must change by the sum of the changes of the terms before it;
        and with all edges counterfactual, the output must be that of the counterfactual run.

        Raises:
            UnsupportedModel: If one of these conditions is violated.
        """
        for receiver in {each.num_senders: each for each in self.edges.receivers}.values():
            change = self.counterfactual.stream(receiver) - self.clean.stream(receiver)
            change = change if self.mask is None else change * self.mask[..., None].to(change)
            total = self.difference[: receiver.num_senders].sum(0)
            if not allclose(total, change, scale=float(self.clean.stream(receiver).abs().max())):
                raise UnsupportedModel(
                    "the residual stream must be the sum of what components add to it, but that before "
                    f"{receiver.name} of {type(self.split.model).__name__} deviates by "
                    f"{relative_difference(total, change):.1e} (relative); use patch or path_patch"
                )
        every, none = self.edges.exist[None], torch.zeros_like(self.edges.exist)[None]
        for name, circuit, run in (("clean", every, self.clean), ("counterfactual", none, self.counterfactual)):
            output = self.compute_outputs(circuit)[0]
            if not allclose(output, run.output):
                raise UnsupportedModel(
                    f"with every edge from the {name} run, the output must be that of the {name} run, but that of "
                    f"{type(self.split.model).__name__} differs by {relative_difference(output, run.output):.1e} "
                    "(relative): other modules read the tokens or the stream; use patch or path_patch"
                )

    def compute_outputs(
        self, in_circuit: Bool[Tensor, "branch sender receiver"]
    ) -> Float[Tensor, "branch batch predicted d_out"]:
        """Return the output of the model when the edges outside each circuit carry the counterfactual run.

        An edge of the circuit carries what its sender computes in this run, which may depend on edges outside.

        Args:
            in_circuit: for every branch, the edges of the circuit.
        """
        return torch.stack(list(self._iterate_outputs(in_circuit)))

    def compute_metric(self, in_circuit: Bool[Tensor, "branch sender receiver"]) -> Float[Tensor, "branch batch"]:
        """Return the metric of :meth:`compute_outputs`.

        Args:
            in_circuit: for every branch, the edges of the circuit.
        """
        return torch.stack([self.metric(output, self.mask) for output in self._iterate_outputs(in_circuit)])

    def _iterate_outputs(self, in_circuit: Bool[Tensor, "branch sender receiver"]) -> Iterator[Tensor]:
        for part in in_circuit.split(self._max_branches):
            yield from self._run_branches(part)

    @property
    def _max_branches(self) -> int:
        terms = self.clean.terms
        return max(1, MAX_BYTES // (terms.numel() * terms.element_size()))

    def _run_branches(self, in_circuit: Bool[Tensor, "branch sender receiver"]) -> Tensor:
        branches = len(in_circuit)
        router = _CircuitRouter(self, in_circuit.to(self.split.inputs.device))
        inputs = self.split.inputs.repeat(branches, *[1] * (self.split.inputs.ndim - 1))
        mask = None if self.mask is None else self.mask.repeat(branches, 1)
        return self.split.run(router, inputs, mask).unflatten(0, (branches, self.num_sequences))

    def _record(self, split: SplitForward) -> RecordedRun:
        terms, layers = [split.unedited_activation("resid_pre", 0)], range(split.num_layers)
        for layer in layers:
            terms += list(_head_terms(self.projections[layer], split.unedited_activation("z", layer)))
            if split.has_mlp(layer):
                terms.append(split.unedited_activation("mlp_out", layer))
        return RecordedRun(
            terms=torch.stack(terms),
            attention_streams=[split.unedited_activation("resid_pre", layer) for layer in layers],
            mlp_streams=[split.mlp_stream(layer) if split.has_mlp(layer) else None for layer in layers],
            output_stream=split.unedited_activation("resid_post", layers[-1]),
            output=split.unedited_output,
        )


def _head_terms(
    projection: Float[Tensor, "head d_head d_model"], z: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "head batch pos d_model"]:
    """Return what each head of a layer adds to the residual stream."""
    return torch.einsum("bphd,hdm->hbpm", z, projection.to(z))


class _CircuitRouter:
    """Chooses the streams of a run with circuits: one branch of rows per circuit."""

    def __init__(self, runs: CircuitRuns, in_circuit: Bool[Tensor, "branch sender receiver"]) -> None:
        self._runs, self._in_circuit = runs, in_circuit
        self._difference = runs.difference  # both runs are recorded before this one begins
        self._num_senders = 0
        # what each sender adds in this run, minus what it adds in the clean run
        self._change = runs.clean.terms.new_zeros(len(in_circuit), *runs.clean.terms.shape)
        self._numbers = {(each.kind, each.layer, each.head): n for n, each in enumerate(runs.edges.receivers)}

    def receive_embedding(self, stream: Tensor) -> None:
        self._receive(stream[None])

    def attention_streams(self, layer: int) -> tuple[list[Tensor], list[list[int]]]:
        indices: list[list[int]] = []
        receiver_by_circuit: dict[bytes, tuple[int, int]] = {}  # the index of a stream, and one of its receivers
        split = self._runs.split
        for kind in ATTENTION_INPUTS:
            heads = split.num_heads(layer) if kind == "query" else split.num_kv_heads(layer)
            index_by_head = []
            for head in range(heads):
                receiver = self._numbers[kind, layer, head]
                count = self._runs.edges.receivers[receiver].num_senders
                key = self._in_circuit[:, :count, receiver].cpu().numpy().tobytes()
                index, _ = receiver_by_circuit.setdefault(key, (len(receiver_by_circuit), receiver))
                index_by_head.append(index)
            indices.append(index_by_head)
        return self._read_streams([receiver for _, receiver in receiver_by_circuit.values()]), indices

    def receive_heads(self, layer: int, z: Tensor) -> None:
        self._receive(_head_terms(self._runs.projections[layer], z))

    def mlp_stream(self, layer: int) -> Tensor:
        return self._read_streams([self._numbers["mlp", layer, -1]])[0]

    def receive_mlp(self, layer: int, update: Tensor) -> None:
        self._receive(update[None])

    def output_stream(self) -> Tensor:
        return self._read_streams([self._numbers["output", self._runs.split.num_layers, -1]])[0]

    def _receive(self, terms: Float[Tensor, "sender rows pos d_model"]) -> None:
        numbers = slice(self._num_senders, self._num_senders + len(terms))
        by_branch = terms.unflatten(1, (len(self._in_circuit), -1)).transpose(0, 1)
        self._change[:, numbers] = by_branch - self._runs.clean.terms[numbers]
        self._num_senders = numbers.stop

    def _read_streams(self, numbers: Sequence[int]) -> list[Float[Tensor, "rows pos d_model"]]:
        """Return the streams of receivers at one place: that of the clean run, with the terms that have changed."""
        receiver = self._runs.edges.receivers[numbers[0]]
        included = self._in_circuit[:, : receiver.num_senders, numbers].mT
        clean, counterfactual = (run.stream(receiver) for run in (self._runs.clean, self._runs.counterfactual))
        change = _combine(included, self._change[:, : receiver.num_senders])
        change += _combine(~included, self._difference[None, : receiver.num_senders])
        streams = clean + change
        streams[~included.any(2)] = counterfactual  # bit for bit, not as a sum
        return [stream.flatten(0, 1) for stream in streams.unbind(1)]


def _combine(
    chosen: Bool[Tensor, "branch receiver sender"], terms: Float[Tensor, "#branch sender batch pos d_model"]
) -> Float[Tensor, "branch receiver batch pos d_model"]:
    """Return the sum of the chosen terms of every branch and receiver."""
    shape = terms.shape[2:]
    if not chosen.any():
        return terms.new_zeros(*chosen.shape[:2], *shape)
    flat, weights = terms.flatten(2), chosen.to(terms.dtype)
    total = (weights.flatten(0, 1) @ flat[0]).unflatten(0, chosen.shape[:2]) if len(flat) == 1 else weights @ flat
    return total.unflatten(2, shape)


def track_progress(items: Sequence[Item], progress: ProgressFn | None) -> Iterator[Item]:
    """Yield items, and report how many are done.

    Args:
        items: the items.
        progress: called with the number of finished items and the number of all items.

    Yields:
        Every item, in order.
    """
    for done, item in enumerate(items):
        if progress is not None:
            progress(done, len(items))
        yield item
    if progress is not None:
        progress(len(items), len(items))
