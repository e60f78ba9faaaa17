"""Path patching: effect of a sender on the metric through one receiver, with other components frozen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_other

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.activations import BatchedEdits, Edit, UnsupportedModel, capture
from mesascope.activations import get_site as site_of
from mesascope.activations.tolerances import bitwise_equal
from mesascope.interventions._recovery import add_recovered_fraction, compute_target_metric, validate_same_shape
from mesascope.interventions.edits import IndexByAxis, replace
from mesascope.interventions.metrics import Metric
from mesascope.interventions.sweep import (
    MAX_BATCH_POSITIONS,
    ProgressFn,
    resolve_directed_metric,
    resolve_sweep_indices,
    run_sweep,
    validate_sweep_axes,
)
from mesascope.tasks.base import Batch

FROZEN_SITES = {"residual": ("attn_out", "mlp_out"), "mlp": ("attn_out",), "all": ()}  # frozen sites, by ``through``
UPDATE_SITES = ("attn_out", "mlp_out")
RESIDUAL_SITES = ("resid_pre", "resid_post")
_MIXED_SITES = ("z", "attn_out")
DOWNSTREAM_SITES = {  # sites of the same layer that depend on each site; mlp_out too, where the MLP follows attention
    "resid_pre": ("query", "key", "value", "attn_scores", "pattern", *_MIXED_SITES, "mlp_out", "resid_post"),
    "query": ("attn_scores", "pattern", *_MIXED_SITES, "resid_post"),
    "key": ("attn_scores", "pattern", *_MIXED_SITES, "resid_post"),
    "value": (*_MIXED_SITES, "resid_post"),
    "attn_scores": ("pattern", *_MIXED_SITES, "resid_post"),
    "pattern": (*_MIXED_SITES, "resid_post"),
    "z": ("attn_out", "resid_post"),
    "attn_out": ("resid_post",),
    "mlp_out": ("resid_post",),
    "resid_post": (),
}


def path_patch(
    model: nn.Module,
    inputs: Tensor | Batch,
    source: Tensor | Batch,
    metric: Metric | str | Callable[[Tensor], Tensor],
    site: str = "z",
    axes: Sequence[str] = ("layer", "head"),
    *,
    receiver: str = "output",
    receiver_where: IndexByAxis | None = None,
    through: str = "residual",
    where: IndexByAxis | None = None,
    max_positions: int = MAX_BATCH_POSITIONS,
    progress: ProgressFn | None = None,
) -> xr.Dataset:
    """Run ``inputs`` with a receiver's activation as it is when one sender has its activation from ``source``.

    Each sender takes three forward passes of ``inputs`` (Wang et al. 2022, appendix B; Goldowsky-Dill et al. 2023): one
    unedited; one in which the sender has its activation from ``source``, components off the path are frozen at their
    unedited activations, and the receiver's activation is recorded; and one in which only the receiver has the recorded
    activation, and the metric is measured.

    Args:
        model: any model that `capture` supports.
        inputs: the run that is patched.
        source: the run that the senders' activations come from: as many sequences of the same length.
        metric: a metric that differs between the two runs, as in `patch`.
        site: site of the senders.
        axes: axes of the site; each index along them is one sender.
        receiver: a site, or ``output``; with ``output``, the metric is measured in the second pass.
        receiver_where: index of the receiver by axis, such as ``{"layer": 9, "head": [6, 9]}``; one layer.
        through: components that the path may pass between sender and receiver. ``residual``: only the residual stream;
            attn_out and mlp_out of the layers between the two are frozen. ``mlp``: also MLPs; attn_out is frozen, as in
            Wang et al. ``all``: everything; nothing is frozen.
        where: index of the senders by axis; layers that do not precede the receiver, or lack the site, are excluded
            unless it names them.
        max_positions: as in `sweep`.
        progress: called with the number of finished senders and the number of all senders.

    Returns:
        A dataset as from `patch`; ``changed`` is 1 where any bit of the sender's activation differs between the runs.

    Raises:
        ValueError: If a sender does not precede the receiver, the two runs differ in shape, or the metric is the same
            on both.
        IndexError: If an index is out of range.
        UnsupportedModel: If a component that must be frozen is not known. Every error is raised before the first
            patched pass.

    >>> from mesascope.interventions import logit_difference
    >>> from mesascope.ground_truth.models.tokens import build_planted_language_model
    >>> first, second = torch.randperm(39, generator=torch.Generator().manual_seed(0))[:32].add(1).view(2, 1, 16)
    >>> clean, other = (torch.cat([half[:, :1] * 0, half, half], 1) for half in (first, second))
    >>> metric = logit_difference(first[:, 0], second[:, 0])  # the next token at the first occurrence
    >>> induction = {"layer": 1, "kv_head": 5}
    >>> model = build_planted_language_model()
    >>> found = path_patch(model, clean, other, metric, receiver="key", receiver_where=induction)
    >>> int(abs(found["effect"]).sel(layer=0).argmax("head"))  # the previous-token head
    3
    """
    validate_same_shape(inputs, source)
    axes = validate_sweep_axes(site, axes, max_positions)
    resolved_metric = resolve_directed_metric(metric, inputs)
    receiver_edit = _parse_receiver(receiver, receiver_where, through)
    edit_runner = BatchedEdits(model, inputs, site, all_positions=not resolved_metric.last_position_only)
    patching_path = _PatchingPath(
        edit_runner=edit_runner,
        receiver=receiver_edit,
        receiver_layer=_get_receiver_layer(receiver_edit, edit_runner),
        through=through,
    )
    senders = Edit(site=site, where=dict(where or {}), fn=torch.clone)
    senders = with_other(senders, where={**senders.where, "layer": _find_sender_layers(patching_path, senders, axes)})
    identity_edit, axis_indices = resolve_sweep_indices(edit_runner, senders, axes, resolved_metric)
    layers = identity_edit.edited_layers(edit_runner.num_layers)
    patching_path.select_activations(site, layers)
    source_activations = capture(model, source, [site, "output"], layers=layers)
    target = compute_target_metric(resolved_metric, edit_runner.unedited_output, source_activations["output"])
    if through == "residual":
        patching_path.validate_stream(layers)
    edit = replace(site, source_activations, identity_edit.where)
    results = run_sweep(
        edit_runner, edit, axis_indices, resolved_metric, max_positions, progress, patching_path.compute_outputs
    )
    about = (
        f"{resolved_metric.description}: change through the path to {_describe_receiver(receiver_edit)} "
        f"(through={through})"
    )
    results["effect"] = results["effect"].assign_attrs(description=about)
    return add_recovered_fraction(results, resolved_metric, target)


def _parse_receiver(receiver: str, receiver_where: IndexByAxis | None, through: str) -> Edit | None:
    """Return the receiver as an edit without effect; ``None`` for the output.

    Raises:
        ValueError: If the site, the axis or ``through`` does not exist.
    """
    if through not in FROZEN_SITES:
        raise ValueError(f"through must be one of {', '.join(FROZEN_SITES)}, but got {through!r}")
    if receiver != "output":
        return Edit(site=receiver, where=dict(receiver_where or {}), fn=torch.clone)
    if receiver_where:
        raise ValueError(
            "receiver_where must be omitted for the output, which is received as a whole, but got "
            f"{dict(receiver_where)}"
        )
    return None


def _get_receiver_layer(receiver: Edit | None, edit_runner: BatchedEdits) -> int:
    """Return the one layer of the receiver; the number of layers for the output."""
    if receiver is None:
        return edit_runner.num_layers
    layers = receiver.edited_layers(edit_runner.num_layers)
    if len(layers) != 1:
        raise ValueError(
            f"a receiver must be in one layer, but {receiver.site} is selected in {len(layers)}; pass "
            "receiver_where={'layer': ...}"
        )
    return layers[0]


@dataclass(frozen=True, kw_only=True)
class _PatchingPath:
    """The paths from senders to a receiver.

    Attributes:
        edit_runner: the unedited pass, from which edited ones branch off.
        receiver: the receiver as an edit without effect; ``None`` for the output.
        receiver_layer: layer of the receiver; the number of layers for the output.
        through: components that the path may pass.
    """

    edit_runner: BatchedEdits
    receiver: Edit | None
    receiver_layer: int
    through: str

    @property
    def last_layer(self) -> int:
        """The last layer on the path."""
        return min(self.receiver_layer, self.edit_runner.num_layers - 1)

    def precedes_receiver(self, site: str, layer: int) -> bool:
        """Return True if a sender precedes the receiver."""
        if layer != self.receiver_layer or self.receiver is None:
            return layer < self.receiver_layer
        serial = (
            self.receiver.site == "mlp_out"
            and "attn_out" in (site, *DOWNSTREAM_SITES[site])
            and not self.edit_runner.is_parallel(layer)
        )
        return serial or self.receiver.site in DOWNSTREAM_SITES[site]

    def select_activations(self, site: str, layers: Sequence[int]) -> None:
        """Select and validate the activations that the unedited pass must record."""
        path_layers = range(min(layers), self.last_layer + 1)
        site_layers: dict[str, set[int]] = {site: set(layers)}
        for frozen_site in FROZEN_SITES[self.through]:
            self._validate_frozen_site(frozen_site, path_layers)
            site_layers.setdefault(frozen_site, set()).update(
                set(path_layers) & set(self.edit_runner.layers_with_site(frozen_site))
            )
        if self.through == "residual":
            site_layers.setdefault("resid_post", set()).update(path_layers)
        if self.receiver is not None:
            self._validate_receiver(self.receiver)
            site_layers.setdefault(self.receiver.site, set()).add(self.receiver_layer)
        self.edit_runner.request_sites({name: sorted(chosen) for name, chosen in site_layers.items()})
        self.edit_runner.validate_sites({name: sorted(chosen) for name, chosen in site_layers.items()})

    def validate_stream(self, layers: Sequence[int]) -> None:
        """Raise if the model changes the residual stream between two layers on the path."""
        for number in range(min(layers), self.last_layer):
            if not bitwise_equal(
                self.edit_runner.unedited_activation("resid_post", number),
                self.edit_runner.unedited_activation("resid_pre", number + 1),
            ):
                raise UnsupportedModel(
                    "resid_post of a layer must be resid_pre of the next one, but "
                    f"{type(self.edit_runner.model).__name__} "
                    f"changes the stream between layers {number} and {number + 1}; use through='all'"
                )

    def compute_outputs(self, edits: Sequence[Edit]) -> Float[Tensor, "branch batch predicted d_out"]:
        """Return the output when the receiver has the activation that each sender of one layer causes."""
        (layer,) = edits[0].edited_layers(self.edit_runner.num_layers)
        if self.through == "residual" and layer < self.receiver_layer:
            edit_lists = [
                [edit, *self._list_frozen_edits(self.receiver_layer, "")]
                for edit in self._patch_direct_effects(edits, layer)
            ]
        else:
            edit_lists = [[edit, *self._list_frozen_edits(layer, edit.site)] for edit in edits]
        if self.receiver is None:
            return self.edit_runner.run_edits(edit_lists)
        values = self.edit_runner.run_until(edit_lists, self.receiver.site, self.receiver_layer)
        return self.edit_runner.run_edits(
            [[_with_value(self.receiver, self.receiver_layer, value)] for value in values]
        )

    def _patch_direct_effects(self, edits: Sequence[Edit], layer: int) -> list[Edit]:
        """Return, for every sender, an edit that adds its direct effect to the unedited stream at the receiver."""
        site = edits[0].site if edits[0].site in (*UPDATE_SITES, *RESIDUAL_SITES) else "attn_out"
        *values, unedited = self.edit_runner.run_until([*([edit] for edit in edits), []], site, layer)
        stream_site = ("resid_post", self.last_layer) if self.receiver is None else ("resid_pre", self.receiver_layer)
        stream, stream_edit = (
            self.edit_runner.unedited_activation(*stream_site),
            Edit(site=stream_site[0], where={"layer": stream_site[1]}, fn=torch.clone),
        )
        return [_with_value(stream_edit, stream_site[1], stream + (value - unedited)) for value in values]

    def _list_frozen_edits(self, first: int, sender_site: str) -> list[Edit]:
        """Return the edits that freeze the sites between a layer and the receiver, except for both ends."""
        sender_update = (
            sender_site if sender_site in (*UPDATE_SITES, *RESIDUAL_SITES) else "attn_out" if sender_site else ""
        )
        ends = {(sender_update, first)} | (
            {(self.receiver.site, self.receiver_layer)} if self.receiver is not None else set()
        )
        return [
            _with_value(
                Edit(site=site, where={"layer": layer}, fn=torch.clone),
                layer,
                self.edit_runner.unedited_activation(site, layer),
            )
            for site in FROZEN_SITES[self.through]
            for layer in self.edit_runner.layers_with_site(site)
            if first <= layer <= self.last_layer and (site, layer) not in ends
        ]

    def _validate_receiver(self, receiver: Edit) -> None:
        """Raise if the receiver is invalid or empty."""
        self.edit_runner.validate_edit(receiver)
        sizes = zip(
            site_of(receiver.site).axes_within_layer,
            self.edit_runner.site_shape(receiver.site, self.receiver_layer),
            strict=True,
        )
        empty = [axis for axis, size in sizes if not receiver.edited_indices(axis, size)]
        if empty:
            raise ValueError(f"a receiver must not be empty, but receiver_where[{empty[0]!r}] selects nothing")

    def _validate_frozen_site(self, site: str, layers: Sequence[int]) -> None:
        """Raise if a frozen site is unknown in a layer; a layer without an MLP has nothing to freeze there."""
        without_attn_out = self.edit_runner.layers_without_site("attn_out")
        lacking = {
            n: why
            for n, why in self.edit_runner.layers_without_site(site).items()
            if n in layers and n in without_attn_out
        }
        if lacking:
            raise UnsupportedModel(
                "frozen sites must be available between sender and receiver, but "
                f"{type(self.edit_runner.model).__name__} "
                f"lacks {site} in layers {list(lacking)} ({next(iter(lacking.values()))}); use through='all', which "
                "freezes nothing"
            )


def _find_sender_layers(patching_path: _PatchingPath, senders: Edit, axes: Sequence[str]) -> list[int]:
    """Return the layers of the senders: those named, or all that have the site and precede the receiver."""
    site, edit_runner = senders.site, patching_path.edit_runner
    candidates = (
        senders.edited_layers(edit_runner.num_layers)
        if "layer" in senders.where
        else edit_runner.layers_with_site(site)
    )
    layers = [layer for layer in candidates if patching_path.precedes_receiver(site, layer)]
    if len(layers) < len(candidates) and ("layer" in senders.where or not layers):
        late = (
            f"in layers {[layer for layer in candidates if layer not in layers]}"
            if layers
            else "in all selected layers"
        )
        raise ValueError(
            f"a sender must precede its receiver, but {site} {late} does not precede "
            f"{_describe_receiver(patching_path.receiver)}; "
            "choose earlier senders or a later receiver"
        )
    if "layer" not in axes and len(layers) > 1:
        raise ValueError(
            f"a sender must be in one layer, but {site} is selected in layers {layers} at once; add layer to axes"
        )
    return layers


def _with_value(edit: Edit, layer: int, value: Float[Tensor, "batch *rest"]) -> Edit:
    """Return the edit with a replacement value, which holds the whole site of one layer."""
    return with_other(edit, fn=_return_source, source={layer: value})


def _return_source(old: Tensor, source: Tensor) -> Tensor:
    return source


def _describe_receiver(receiver: Edit | None) -> str:
    """Describe the receiver in words."""
    if receiver is None:
        return "the output"
    return f"{receiver.site} at " + ", ".join(f"{axis} {index}" for axis, index in receiver.where.items())
