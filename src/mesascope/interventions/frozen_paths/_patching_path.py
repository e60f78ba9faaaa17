"""The paths from senders to a receiver, and the edits that freeze what is off them."""

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as with_other

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import BatchedEdits, Edit, UnsupportedModel
from mesascope.activations import get_site as site_of
from mesascope.activations.tolerances import bitwise_equal
from mesascope.interventions._edit_runner import EditRunner

FROZEN_SITES = {"residual": ("attn_out", "mlp_out"), "mlp": ("attn_out",), "all": ()}  # frozen sites, by ``through``
UPDATE_SITES = ("attn_out", "mlp_out")
RESIDUAL_SITES = ("resid_pre", "resid_post")
_MIXED_SITES = ("z", "attn_out")
MLP_SITES = ("mlp_hidden", "mlp_out")
DOWNSTREAM_SITES = {  # sites of the same layer that depend on each site; mlp_out too, where the MLP follows attention
    "resid_pre": ("query", "key", "value", "attn_scores", "pattern", *_MIXED_SITES, *MLP_SITES, "resid_post"),
    "query": ("attn_scores", "pattern", *_MIXED_SITES, "resid_post"),
    "key": ("attn_scores", "pattern", *_MIXED_SITES, "resid_post"),
    "value": (*_MIXED_SITES, "resid_post"),
    "attn_scores": ("pattern", *_MIXED_SITES, "resid_post"),
    "pattern": (*_MIXED_SITES, "resid_post"),
    "z": ("attn_out", "resid_post"),
    "attn_out": ("resid_post",),
    "mlp_hidden": ("mlp_out", "resid_post"),
    "mlp_out": ("resid_post",),
    "resid_post": (),
}


@dataclass(frozen=True, kw_only=True)
class PatchingPath:
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
        """Return True if a sender precedes the receiver.

        Args:
            site: site of the sender.
            layer: layer of the sender.
        """
        if layer != self.receiver_layer or self.receiver is None:
            return layer < self.receiver_layer
        serial = (
            self.receiver.site in MLP_SITES
            and "attn_out" in (site, *DOWNSTREAM_SITES[site])
            and not self.edit_runner.is_parallel(layer)
        )
        return serial or self.receiver.site in DOWNSTREAM_SITES[site]

    def select_activations(self, site: str, layers: Sequence[int]) -> None:
        """Select and validate the activations that the unedited pass must record.

        Args:
            site: site of the senders.
            layers: layers of the senders.
        """
        path_layers = range(min(layers), self.last_layer + 1)
        site_layers: dict[str, set[int]] = {site: set(layers)}
        for frozen_site in FROZEN_SITES[self.through]:
            self._validate_frozen_site(frozen_site, path_layers)
            layers_with_site = set(path_layers) & set(self.edit_runner.layers_with_site(frozen_site))
            site_layers.setdefault(frozen_site, set()).update(layers_with_site)
        if self.through == "residual":
            site_layers.setdefault("resid_post", set()).update(path_layers)
        if self.receiver is not None:
            validate_receiver(self.edit_runner, self.receiver, self.receiver_layer)
            site_layers.setdefault(self.receiver.site, set()).add(self.receiver_layer)
        self.edit_runner.request_sites({name: sorted(chosen) for name, chosen in site_layers.items()})
        self.edit_runner.validate_sites({name: sorted(chosen) for name, chosen in site_layers.items()})

    def validate_stream(self, site: str, layers: Sequence[int]) -> None:
        """Check that the model does not change the residual stream between two layers on the path.

        Args:
            site: site of the senders.
            layers: layers of the senders.

        Raises:
            UnsupportedModel: If it does.
        """
        for number in range(min(layers), self.last_layer):
            if not bitwise_equal(
                self.edit_runner.unedited_activation("resid_post", number),
                self.edit_runner.unedited_activation("resid_pre", number + 1),
            ):
                raise UnsupportedModel(
                    "resid_post of a layer must equal resid_pre of the next layer, but "
                    f"{type(self.edit_runner.model).__name__} changes the stream between layers {number} and "
                    f"{number + 1}; use through='all'"
                )

    def compute_outputs(self, edits: Sequence[Edit]) -> Float[Tensor, "branch batch predicted d_out"]:
        """Return the output when the receiver has the activation that each sender of one layer causes.

        Args:
            edits: the edit of each sender.
        """
        (layer,) = edits[0].edited_layers(self.edit_runner.num_layers)
        if self.through == "residual" and layer < self.receiver_layer:
            frozen = self._list_frozen_edits(self.receiver_layer, "")
            edit_lists = [[edit, *frozen] for edit in self._patch_direct_effects(edits, layer)]
        else:
            edit_lists = [[edit, *self._list_frozen_edits(layer, edit.site)] for edit in edits]
        if self.receiver is None:
            return self.edit_runner.run_edits(edit_lists)
        values = self.edit_runner.run_until(edit_lists, self.receiver.site, self.receiver_layer)
        return self.edit_runner.run_edits([[with_value(self.receiver, self.receiver_layer, value)] for value in values])

    def _patch_direct_effects(self, edits: Sequence[Edit], layer: int) -> list[Edit]:
        """Return, for every sender, an edit that adds its direct effect to the unedited stream at the receiver."""
        site = find_update(edits[0].site)
        *values, unedited = self.edit_runner.run_until([*([edit] for edit in edits), []], site, layer)
        stream_site = ("resid_post", self.last_layer) if self.receiver is None else ("resid_pre", self.receiver_layer)
        stream, stream_edit = (
            self.edit_runner.unedited_activation(*stream_site),
            Edit(site=stream_site[0], where={"layer": stream_site[1]}, fn=torch.clone),
        )
        return [with_value(stream_edit, stream_site[1], stream + (value - unedited)) for value in values]

    def _list_frozen_edits(self, first: int, sender_site: str) -> list[Edit]:
        """Return the edits that freeze the sites between a layer and the receiver, except for both ends."""
        ends = {(find_update(sender_site), first)} if sender_site else set[tuple[str, int]]()
        if self.receiver is not None:
            ends.add((self.receiver.site, self.receiver_layer))
        return [
            with_value(
                Edit(site=site, where={"layer": layer}, fn=torch.clone),
                layer,
                self.edit_runner.unedited_activation(site, layer),
            )
            for site in FROZEN_SITES[self.through]
            for layer in self.edit_runner.layers_with_site(site)
            if first <= layer <= self.last_layer and (site, layer) not in ends
        ]

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


def validate_receiver(edit_runner: EditRunner, receiver: Edit, layer: int) -> None:
    """Check that a receiver exists and is not empty.

    Args:
        edit_runner: the runner of edits.
        receiver: the receiver.
        layer: its layer.

    Raises:
        ValueError: it selects nothing.
    """
    edit_runner.validate_edit(receiver)
    sizes = zip(site_of(receiver.site).axes_within_layer, edit_runner.site_shape(receiver.site, layer), strict=True)
    empty = [axis for axis, size in sizes if not receiver.edited_indices(axis, size)]
    if empty:
        raise ValueError(f"a receiver must not be empty, but receiver_where[{empty[0]!r}] selects nothing")


def find_update(site: str) -> str:
    """Return the site at which a sender writes to the residual stream.

    Args:
        site: the site of the sender.
    """
    if site in (*UPDATE_SITES, *RESIDUAL_SITES):
        return site
    return "mlp_out" if site in MLP_SITES else "attn_out"


def with_value(edit: Edit, layer: int, value: Float[Tensor, "batch *rest"]) -> Edit:
    """Return an edit with a replacement value.

    Args:
        edit: the edit, of one layer.
        layer: its layer.
        value: the values of the whole site in this layer.
    """
    return with_other(edit, fn=_return_source, source={layer: value})


def _return_source(old: Tensor, source: Tensor) -> Tensor:
    return source
