"""Runs of circuits: the edges outside carry a counterfactual run, a mean of references, or a drawn reference."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mesascope.activations import InputsLike, UnsupportedModel
from mesascope.activations.split_forward import ATTENTION_INPUTS, SplitForward
from mesascope.activations.tolerances import allclose, relative_difference
from mesascope.circuits._recorded_runs import (
    MAX_BYTES,
    Projections,
    RecordedRun,
    compute_head_terms,
    list_projections,
    record_run,
)
from mesascope.circuits.edges import Edges, find_edges
from mesascope.circuits.references import (
    ABLATIONS,
    Mask,
    ReferenceMean,
    draw_references,
    find_other_references,
    validate_ablation,
    validate_mean_positions,
)
from mesascope.interventions import ProgressFn
from mesascope.interventions.metric_arguments import resolve_directed_metric
from mesascope.interventions.metrics import Metric
from mesascope.interventions.run_inputs import prepare_pair

Item = TypeVar("Item")


class CircuitRuns:
    """A clean run, what the edges outside a circuit carry instead, and runs of circuits.

    Args:
        model: any model that `SplitForward` supports.
        inputs: clean inputs.
        source: counterfactual inputs, as many sequences of the same lengths; for other ablations, reference inputs of
            the same length.
        metric: one number per sequence.
        attention_mask: (batch, pos), 1 where one of ``inputs`` is not padding.
        source_attention_mask: the same for ``source``.
        ablation: one of `ABLATIONS`.
        seed: seed of the draw of references; ``None`` if ``source`` has the drawn reference of every sequence.
        mean: the mean of ``source``, which other runs share; computed if it is needed and not given.

    Raises:
        UnsupportedModel: If the model has no such edges, or its terms do not determine its output.
        ValueError: If an argument is invalid, the runs differ in shape or padding, or the metric is the same on both.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: InputsLike,
        source: InputsLike,
        metric: Metric | str | Any,
        attention_mask: Any = None,
        source_attention_mask: Any = None,
        *,
        ablation: str = "counterfactual",
        seed: int | None = None,
        mean: ReferenceMean | None = None,
    ) -> None:
        validate_ablation(ablation)
        self.ablation = ablation
        run, other = prepare_pair(
            model,
            inputs,
            source,
            attention_mask,
            source_attention_mask,
            same_number=ablation == "counterfactual" or (ablation == "resample" and seed is None),
        )
        references = other.tensor
        self.metric = resolve_directed_metric(metric, run.inputs)
        self.mask = run.mask
        if ablation == "mean":
            validate_mean_positions(run.mask, other.mask)
            self._mean = mean or ReferenceMean(model, references, other.mask)
            # the mean has no inputs of its own: those of other sequences show that the output does not depend on them
            references = references[find_other_references(run.tensor, references, run.mask).int().argmax(1)]
        elif ablation == "resample" and seed is not None:
            rows = draw_references(run.tensor, references, run.mask, other.mask, seed)
            references = references[rows.to(references.device)]
        else:
            _validate_padding(run.mask, other.mask)
        self.split, self.other_split = (
            SplitForward(model, tensor, attention_mask=run.mask, all_positions=not self.metric.last_position_only)
            for tensor in (run.inputs, references)
        )
        self.edges: Edges = find_edges(self.split)
        self._validated = False

    @cached_property
    def clean(self) -> RecordedRun:
        """The clean run."""
        return record_run(self.split, self.projections)

    @cached_property
    def ablated(self) -> RecordedRun:
        """The run that ablated edges carry: a counterfactual run, a mean as one sequence, or drawn references."""
        return self._mean.run if self.ablation == "mean" else record_run(self.other_split, self.projections)

    @property
    def ablated_name(self) -> str:
        """The name of the run that ablated edges carry."""
        return ABLATIONS[self.ablation]

    @property
    def clean_output(self) -> Float[Tensor, "batch predicted d_out"]:
        """The output of the clean run."""
        return self.split.unedited_output

    @cached_property
    def ablated_output(self) -> Float[Tensor, "batch predicted d_out"]:
        """The output without any edge, that of the other run or of the mean of the last streams, computed apart."""
        if self.ablation != "mean":
            return self.other_split.unedited_output
        return self.other_split.output_from_stream(self.ablated.output_stream.expand_as(self.clean.output_stream))

    @cached_property
    def projections(self) -> Projections:
        """By layer, the maps from what the heads compute to what they add to the stream."""
        return list_projections(self.split)

    @property
    def num_sequences(self) -> int:
        """The number of sequences."""
        return len(self.split.inputs)

    @cached_property
    def difference(self) -> Float[Tensor, "sender batch pos d_model"]:
        """The ablated term of every sender minus its clean term; 0 at padding."""
        difference = self.ablated.terms - self.clean.terms
        return difference if self.mask is None else difference * self.mask[..., None].to(difference)

    @cached_property
    def ends(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """The metric of the clean run, and without any edge."""
        clean, ablated = (self.metric(output, self.mask) for output in (self.clean_output, self.ablated_output))
        return clean, ablated

    def validate_edges(self) -> None:
        """Check that the edges determine the model.

        The stream of every receiver must change by the sum of the changes of the terms before it, from the clean run to
        what ablated edges carry. With all edges, the output must be that of the clean run. With none, it must be that
        of the other run; for a mean, that of any other sequence whose last stream is replaced by the mean.

        Raises:
            UnsupportedModel: If one of these conditions is violated.
        """
        if not self._validated:
            self._validate_sums()
            self._validate_outputs()
            self._validated = True

    def _validate_sums(self) -> None:
        for receiver in {each.num_senders: each for each in self.edges.receivers}.values():
            change = self.ablated.stream(receiver) - self.clean.stream(receiver)
            change = change if self.mask is None else change * self.mask[..., None].to(change)
            total = self.difference[: receiver.num_senders].sum(0)
            if not allclose(total, change, scale=float(self.clean.stream(receiver).abs().max())):
                raise UnsupportedModel(
                    "the residual stream must be the sum of what components add to it, but that before "
                    f"{receiver.name} of {type(self.split.model).__name__} deviates by "
                    f"{relative_difference(total, change):.1e} (relative); use patch or path_patch"
                )

    def _validate_outputs(self) -> None:
        every, none = self.edges.exist[None], torch.zeros_like(self.edges.exist)[None]
        for name, circuit, expected in (
            ("the clean run", every, self.clean_output),
            (self.ablated_name, none, self.ablated_output),
        ):
            output = self.compute_outputs(circuit)[0]
            if not allclose(output, expected):
                raise UnsupportedModel(
                    f"with every edge from {name}, the output must be that of {name}, but that of "
                    f"{type(self.split.model).__name__} differs by {relative_difference(output, expected):.1e} "
                    "(relative): other modules read the tokens or the stream; use patch or path_patch"
                )

    def compute_outputs(
        self, in_circuit: Bool[Tensor, "branch sender receiver"]
    ) -> Float[Tensor, "branch batch predicted d_out"]:
        """Return the output of the model when the edges outside each circuit are ablated.

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


def validate_ends(clean: Float[Any, " batch"], ablated: Float[Any, " batch"], metric: str, ablated_name: str) -> None:
    """Check that a metric differs between the clean run and the run without any edge.

    Args:
        clean: the metric of the clean run.
        ablated: the metric without any edge.
        metric: the name of the metric.
        ablated_name: the name of the run that ablated edges carry.

    Raises:
        ValueError: If the means of both are the same.
    """
    if abs(float(clean.mean() - ablated.mean())) <= 1e-6 * float(abs(clean).mean()):
        raise ValueError(
            f"the metric must differ between the clean run and {ablated_name}, but {metric} is "
            f"{float(clean.mean()):.4g} on both; choose another metric or other prompts"
        )


def _validate_padding(mask: Mask | None, other: Mask | None) -> None:
    if mask is not other and (mask is None or other is None or not mask.equal(other)):
        raise ValueError(
            "both runs must have the same padding, but some sequences differ in length from their counterfactual; "
            "use pairs of one length"
        )


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
        self._receive(compute_head_terms(self._runs.projections[layer], z))

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
        clean, ablated = (run.stream(receiver) for run in (self._runs.clean, self._runs.ablated))
        change = _combine(included, self._change[:, : receiver.num_senders])
        change += _combine(~included, self._difference[None, : receiver.num_senders])
        streams = clean + change
        streams[~included.any(2)] = ablated  # bit for bit, not as a sum
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
