"""The paths from senders to a receiver in an encoder-decoder, and the edits that freeze what is off them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import Edit, PairedEdits, UnsupportedModel
from mesascope.activations.sites import CROSS_PREFIX, CROSS_SITES, DECODER, ENCODER, split_stack
from mesascope.activations.tolerances import bitwise_equal
from mesascope.interventions.frozen_paths._patching_path import (
    DOWNSTREAM_SITES,
    MLP_SITES,
    find_update,
    validate_receiver,
    with_value,
)

FROZEN_UPDATES = {
    "residual": ("attn_out", "cross_attn_out", "mlp_out"),
    "mlp": ("attn_out", "cross_attn_out"),
    "all": (),
}
READ_FROM_ENCODER = ("cross_key", "cross_value")
# of cross-attention: what depends on the states of the encoder, and not only on what the decoder computes
DEPEND_ON_ENCODER = (*READ_FROM_ENCODER, "cross_attn_scores", "cross_pattern", "cross_z", "cross_attn_out")
HookPoint = tuple[str, int]  # a site with its stack, and a layer of the stack


@dataclass(frozen=True, kw_only=True)
class PairedPath:
    """The paths from senders to a receiver in an encoder-decoder.

    A path from the encoder to the decoder ends in cross-attention, which reads the residual stream after the encoder.

    Attributes:
        edit_runner: the unedited pass, from which edited ones branch off.
        receiver: the receiver as an edit without effect; ``None`` for the output.
        through: components that the path may pass.
    """

    edit_runner: PairedEdits
    receiver: Edit | None
    through: str

    @property
    def _receiver_point(self) -> tuple[str, str, int]:
        """The stack, the site and the layer of the receiver; the output is after the last layer of the decoder."""
        if self.receiver is None:
            return DECODER, "output", self.edit_runner.count_layers(DECODER)
        layers = self.edit_runner.edited_layers(self.receiver)
        if len(layers) != 1:
            raise ValueError(
                f"a receiver must be in one layer, but {self.receiver.site} is selected in {len(layers)}; pass "
                "receiver_where={'layer': ...}"
            )
        return (*_split(self.receiver.site), layers[0])

    def precedes_receiver(self, site: str, layer: int) -> bool:
        """Return True if a sender precedes the receiver.

        Args:
            site: site of the sender.
            layer: layer of the sender.
        """
        (stack, local), (receiver_stack, receiver_site, receiver_layer) = _split(site), self._receiver_point
        if stack != receiver_stack:
            return stack == ENCODER
        if receiver_site in READ_FROM_ENCODER:
            return False  # of the decoder, as the sender is
        if layer != receiver_layer:
            return layer < receiver_layer
        return receiver_site in _list_downstream(local, parallel=self.edit_runner.is_parallel(stack, layer))

    def select_activations(self, site: str, layers: Sequence[int]) -> None:
        """Select and validate the activations that the unedited pass must record.

        Args:
            site: site of the senders.
            layers: layers of the senders.
        """
        self._validate_reachable(site)
        requested: dict[str, set[int]] = {site: set(layers)}
        for stack, between in self._layers_between(site, min(layers)).items():
            self._validate_updates_known(stack, between)
            if self.through == "residual":
                for stream in ("resid_pre", "resid_post"):
                    requested.setdefault(f"{stack}.{stream}", set()).update(between)
        for frozen_site, layer in self._list_frozen_updates(site, min(layers)):
            requested.setdefault(frozen_site, set()).add(layer)
        if self.receiver is not None:
            validate_receiver(self.edit_runner, self.receiver, self._receiver_point[2])
            requested.setdefault(self.receiver.site, set()).add(self._receiver_point[2])
        sites = {name: sorted(chosen) for name, chosen in requested.items()}
        self.edit_runner.request_sites(sites)
        self.edit_runner.validate_sites(sites)

    def validate_stream(self, site: str, layers: Sequence[int]) -> None:
        """Check that the model does not change the residual stream between two layers on the path.

        Args:
            site: site of the senders.
            layers: layers of the senders.

        Raises:
            UnsupportedModel: If it does.
        """
        for stack, between in self._layers_between(site, min(layers)).items():
            for number in between[:-1]:
                after = self.edit_runner.unedited_activation(f"{stack}.resid_post", number)
                if not bitwise_equal(after, self.edit_runner.unedited_activation(f"{stack}.resid_pre", number + 1)):
                    raise UnsupportedModel(
                        f"resid_post of a layer must equal resid_pre of the next layer, but the {stack} of "
                        f"{type(self.edit_runner.model).__name__} changes the stream between layers {number} and "
                        f"{number + 1}; use through='all'"
                    )

    def compute_outputs(self, edits: Sequence[Edit]) -> Float[Tensor, "branch batch pos d_out"]:
        """Return the output when the receiver has the activation that each sender of one layer causes.

        Args:
            edits: the edit of each sender.
        """
        (layer,) = self.edit_runner.edited_layers(edits[0])
        frozen = [self._freeze(site, n) for site, n in self._list_frozen_updates(edits[0].site, layer)]
        edit_lists = [[edit, *frozen] for edit in edits]
        if self.receiver is None:
            return self.edit_runner.run_edits(edit_lists)
        receiver_layer = self._receiver_point[2]
        values = self.edit_runner.run_until(edit_lists, self.receiver.site, receiver_layer)
        return self.edit_runner.run_edits([[with_value(self.receiver, receiver_layer, value)] for value in values])

    def _freeze(self, site: str, layer: int) -> Edit:
        """Return the edit that gives a site its unedited activation."""
        edit = Edit(site=site, where={"layer": layer}, fn=torch.clone)
        return with_value(edit, layer, self.edit_runner.unedited_activation(site, layer))

    def _layers_between(self, site: str, layer: int) -> dict[str, range]:
        """Return the layers from a sender to the receiver, by stack."""
        stack, _ = _split(site)
        receiver_stack, _, receiver_layer = self._receiver_point
        last = {name: self.edit_runner.count_layers(name) - 1 for name in (ENCODER, DECODER)}
        last[receiver_stack] = min(receiver_layer, last[receiver_stack])
        if stack == receiver_stack:
            return {stack: range(layer, last[stack] + 1)}
        return {ENCODER: range(layer, last[ENCODER] + 1), DECODER: range(last[DECODER] + 1)}

    def _list_frozen_updates(self, site: str, layer: int) -> Iterator[HookPoint]:
        """Yield the updates between a sender and the receiver, except for both ends."""
        stack, local = _split(site)
        ends = {(stack, _update_of(local), layer), self._receiver_point}
        for name, between in self._layers_between(site, layer).items():
            for update in FROZEN_UPDATES[self.through]:
                if update in CROSS_SITES and name == ENCODER:
                    continue
                full = update if update in CROSS_SITES else f"{name}.{update}"
                for number in sorted({*between} & {*self.edit_runner.layers_with_site(full)}):
                    if (name, update, number) not in ends:
                        yield full, number

    def _validate_reachable(self, site: str) -> None:
        """Raise if a sender in the encoder reaches the receiver only through cross-attention that is frozen."""
        receiver_stack, receiver_site, _ = self._receiver_point
        crosses = _split(site)[0] == ENCODER and receiver_stack == DECODER
        if crosses and self.through != "all" and receiver_site not in DEPEND_ON_ENCODER:
            raise ValueError(
                "a sender in the encoder reaches the decoder through cross-attention alone, which is frozen with "
                f"through={self.through!r}, but the receiver is {receiver_site}; choose a receiver such as "
                "cross_value, or through='all'"
            )

    def _validate_updates_known(self, stack: str, layers: Sequence[int]) -> None:
        lacking = self.edit_runner.layers_without_site(f"{stack}.attn_out")
        unknown = [number for number in layers if number in lacking]
        if unknown and self.through != "all":
            raise UnsupportedModel(
                f"frozen sites must be available between sender and receiver, but the {stack} of "
                f"{type(self.edit_runner.model).__name__} lacks attn_out in layers {unknown} ({lacking[unknown[0]]}); "
                "use through='all', which freezes nothing"
            )


def _split(site: str) -> tuple[str, str]:
    """Return the stack of a site, which is the decoder if the name has none, and its name within the stack."""
    stack, local = split_stack(site)
    return stack or DECODER, local


def _list_downstream(site: str, *, parallel: bool) -> set[str]:
    """Return the sites of the same layer that depend on a site."""
    local = site.removeprefix(CROSS_PREFIX)
    base = set(DOWNSTREAM_SITES[local])
    writes_attention = "attn_out" in {local, *base}
    after_attention = set() if parallel or not writes_attention else {*MLP_SITES}
    if site in CROSS_SITES:
        base = {f"{CROSS_PREFIX}{one}" for one in base} & {*CROSS_SITES} | {"resid_post"}
        return base | after_attention
    if writes_attention:
        base |= {one for one in CROSS_SITES if one not in READ_FROM_ENCODER}
    return base | after_attention


def _update_of(site: str) -> str:
    """Return the site at which a sender writes to the residual stream."""
    return "cross_attn_out" if site in CROSS_SITES else find_update(site)
