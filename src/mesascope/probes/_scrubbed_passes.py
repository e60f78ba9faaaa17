"""Passes of a model in which claimed activations agree in a variable, and all others come from unrelated sequences."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mesascope.activations import BatchedEdits, Edit, EditHadNoEffect, UnsupportedModel, capture
from mesascope.activations.tolerances import allclose, relative_difference
from mesascope.interventions.run_inputs import PreparedInputs
from mesascope.probes.hypotheses import STAGES, ActivationClaim, Hypothesis, draw_agreeing
from mesascope.statistics import derangement

Node = tuple[str, int]  # a site and a layer
Labels = Mapping[ActivationClaim, Int[Tensor, "batch *pos"]]
COMPONENTS = ("z", "mlp_out")


class ScrubbedPasses:
    """Runs a model as a hypothesis prescribes.

    Args:
        model: any model that `capture` supports, with attention in every layer.
        run: its inputs.
        hypothesis: the hypothesis.

    Raises:
        UnsupportedModel: a layer has no attention, or the components do not determine the output.
        ValueError: a claim names a layer, head or position that does not exist, or two claims overlap.
    """

    def __init__(self, model: nn.Module, run: PreparedInputs, hypothesis: Hypothesis) -> None:
        self._model = model
        runner = BatchedEdits(model, run.inputs, "z")
        self.inputs, self._claims = runner.inputs, hypothesis.claims
        self._layers = {site: runner.layers_with_site(site) for site in STAGES}
        self._num_layers = runner.num_layers
        if len(self._layers["z"]) < self._num_layers:
            absent = next(layer for layer in range(self._num_layers) if layer not in self._layers["z"])
            raise UnsupportedModel(
                f"scrubbing needs attention heads in every layer, but layer {absent} of {type(model).__name__} has "
                "none; use patch"
            )
        sites = {*COMPONENTS, "resid_pre", *(claim.site for claim in self._claims)}
        self._intact: dict[Node, Tensor] = {}
        for site in sorted(sites):
            if self._layers[site]:
                recorded = capture(model, self.inputs, [site], layers=self._layers[site])[site]
                self._intact |= {(site, n): values for n, values in zip(self._layers[site], recorded, strict=True)}
        self.intact_output = self._capture("output", None, ())
        self._components: list[Node] = [("resid_pre", 0)]
        self._components += [(site, layer) for site in COMPONENTS for layer in self._layers[site]]
        self._indices = {claim: self._resolve(claim) for claim in self._claims}
        self._validate_disjoint()

    @property
    def num_sequences(self) -> int:
        """The number of sequences."""
        return len(self.inputs)

    def validate_components(self, unrelated: Int[Tensor, " batch"]) -> None:
        """Check that with all components of unrelated sequences, the output is that of these sequences.

        Args:
            unrelated: for every sequence, another one.

        Raises:
            UnsupportedModel: it is not.
        """
        output = self._capture("output", None, self._build_edits(None, unrelated, {}, {}, torch.Generator()))
        expected = self.intact_output[unrelated]
        if not allclose(output, expected):
            raise UnsupportedModel(
                "the embedding, heads and MLPs must determine the output, but with those of other sequences, that of "
                f"{type(self._model).__name__} differs from theirs by {relative_difference(output, expected):.1e} "
                "(relative): other modules read the tokens or the stream; use patch"
            )

    def compute_output(
        self, labels: Labels, unrelated: Int[Tensor, " batch"], generator: torch.Generator
    ) -> Float[Tensor, "batch pos d_out"]:
        """Return the output of the scrubbed model.

        Args:
            labels: the variable of every claim.
            unrelated: for every sequence, the one whose activations replace those without a claim in the last pass.
            generator: source of all other draws.
        """
        tables: dict[Node, Tensor] = {}
        for claim in sorted(self._claims, key=lambda one: one.stage):
            node = claim.site, claim.layer
            if node in tables:
                continue
            if not any(one.stage < claim.stage for one in self._claims):
                tables[node] = self._intact[node]
                continue
            other = derangement(self.num_sequences, generator).to(self.inputs.device)
            tables[node] = self._capture(*node, self._build_edits(claim.stage, other, tables, labels, generator))
        return self._capture("output", None, self._build_edits(None, unrelated, tables, labels, generator))

    def _build_edits(
        self,
        before: tuple[int, int] | None,
        unrelated: Int[Tensor, " batch"],
        tables: Mapping[Node, Tensor],
        labels: Labels,
        generator: torch.Generator,
    ) -> list[Edit]:
        """Return the edits of all that is computed before a stage; of everything without one."""
        values = {
            node: self._intact[node][unrelated]
            for node in self._components
            if before is None or (node[1], STAGES[node[0]]) < before
        }
        positions: dict[Node, set[int]] = {}
        for claim in self._claims if tables else ():
            if before is not None and claim.stage >= before:
                continue
            node = claim.site, claim.layer
            columns, heads = self._indices[claim]
            order = draw_agreeing(labels[claim], generator).to(self.inputs.device)
            rows = order[:, columns] if order.ndim == 2 else order[:, None].expand(-1, len(columns))
            taken = tables[node][rows, torch.tensor(columns, device=rows.device)]
            if node not in self._components:
                positions.setdefault(node, set()).update(columns)
            target = values.setdefault(node, self._intact[node].clone())
            if heads is None:
                target[:, columns] = taken
            else:
                target[:, columns, heads] = taken[:, :, heads]
        return [
            Edit(
                site=site,
                where={"layer": layer}
                | ({"pos": sorted(positions[site, layer])} if (site, layer) in positions else {}),
                fn=_take_source,
                source={layer: source},
            )
            for (site, layer), source in values.items()
        ]

    def _capture(self, site: str, layer: int | None, edits: Sequence[Edit]) -> Tensor:
        layers = None if layer is None else [layer]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EditHadNoEffect)
            recorded = capture(self._model, self.inputs, [site], layers=layers, edits=edits)[site]
        return recorded if layer is None else recorded[0]

    def _resolve(self, claim: ActivationClaim) -> tuple[list[int], int | None]:
        """Return the positions and the head of a claim, counted from 0."""
        if claim.layer not in self._layers[claim.site]:
            raise ValueError(
                f"a claim must be about a layer with {claim.site} ({self._layers[claim.site]}), but got {claim.name}"
            )
        length = self.inputs.shape[1]
        chosen = range(length) if claim.position is None else [claim.position]
        if not all(-length <= position < length for position in chosen):
            raise ValueError(f"a claim must be about positions from 0 to {length - 1}, but got {claim.name}")
        if claim.head is not None:
            num_heads = self._intact[claim.site, claim.layer].shape[2]
            if not 0 <= claim.head < num_heads:
                raise ValueError(f"a claim must be about heads from 0 to {num_heads - 1}, but got {claim.name}")
        return [position % length for position in chosen], claim.head

    def _validate_disjoint(self) -> None:
        by_entry: dict[tuple[str, int, int, int | None], ActivationClaim] = {}
        for claim, (columns, head) in self._indices.items():
            num_heads = self._intact[claim.site, claim.layer].shape[2] if claim.site == "z" else 1
            for column in columns:
                for number in range(num_heads) if head is None else [head]:
                    other = by_entry.setdefault((claim.site, claim.layer, column, number), claim)
                    if other is not claim:
                        raise ValueError(
                            f"an activation must have one claim, but {other.name} and {claim.name} overlap; join their "
                            "variables to one"
                        )


def _take_source(old: Tensor, source: Tensor) -> Tensor:
    return source
