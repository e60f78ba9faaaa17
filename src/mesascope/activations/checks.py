"""What must hold before anything is believed; each check refuses by name, with its number."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations.forward import predict
from mesascope.activations.hooks import attention_math
from mesascope.activations.hooks.module_hooks import attach
from mesascope.activations.layer_spec import Layer
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.tolerances import close, distance, same, sums_to

STREAM = ("resid_pre", "attn_write", "mlp_write", "resid_post")


def refuse_missing(name: str, layers: Sequence[Layer], places: Mapping[str, Sequence[int]]) -> None:
    """Refuse sites that layers do not have.

    Raises:
        UnsupportedModel: with the layers, the reason, and the layers that have it.
    """
    for site, chosen in places.items():
        lacking = [number for number in chosen if site in layers[number].missing]
        if lacking:
            others = [number for number, layer in enumerate(layers) if site not in layer.missing]
            advice = f"pass layers={others}" if others else "leave the site out"
            raise UnsupportedModel(
                f"{site} must be there in every layer asked for, but {name} lacks it in layers {lacking} "
                f"({layers[lacking[0]].missing[site]}); {advice}"
            )


def check_untouched(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    places: Mapping[str, Sequence[int]],
    inputs: Shaped[Tensor, "batch pos *d_in"],
    mask: Int[Tensor, "batch pos"] | None,
) -> None:
    """Run one sequence untouched and looked at: the same bits, every place seen once, every identity right.

    Raises:
        UnsupportedModel: looking changes the prediction, a place is not seen, or an identity does not hold.
    """
    row, row_mask = inputs[:1], None if mask is None else mask[:1]
    checker = _Checker(places, layers, row_mask)
    alone = predict(model, row, row_mask)
    with attach(model, layers, checker.places, checker):
        looked_at = predict(model, row, row_mask)
    name = type(model).__name__
    refuse_changed(name, alone, looked_at)
    unseen = [(site, number) for site, chosen in places.items() for number in chosen if checker.seen(site, number) != 1]
    if unseen:
        site, number = unseen[0]
        raise UnsupportedModel(
            f"every place must be seen once a forward pass, but {site} in layer {number} of {name} was seen "
            f"{checker.seen(site, number)} times"
        )


def refuse_changed(
    name: str, alone: Float[Tensor, "batch pos d_out"], looked_at: Float[Tensor, "batch pos d_out"]
) -> None:
    """Refuse a model whose prediction changes when it is looked at.

    Raises:
        UnsupportedModel: a bit differs.
    """
    if not same(alone, looked_at) and not (alone.isnan() & looked_at.isnan() | (alone == looked_at)).all():
        raise UnsupportedModel(
            f"looking must change no bit of the prediction, but {name} changes by {distance(looked_at, alone):.1e} of "
            "it; its modelling file may choose its path by the name of the attention implementation"
        )


def check_padding(
    model: PreTrainedModel, inputs: Shaped[Tensor, "batch pos *d_in"], mask: Int[Tensor, "batch pos"] | None
) -> None:
    """Run one padded sequence as it is and without its padding: real positions must predict the same.

    Raises:
        UnsupportedModel: they do not.
    """
    padded = [] if mask is None else [row for row in range(len(mask)) if not mask[row].all() and mask[row].any()]
    if mask is None or not padded:
        return
    row = padded[0]
    real = mask[row].bool()
    with_padding = predict(model, inputs[row : row + 1], mask[row : row + 1])[0, real]
    without = predict(model, inputs[row : row + 1, real])[0]
    if not close(with_padding, without):
        raise UnsupportedModel(
            f"padding must not change what is predicted at real positions, but {type(model).__name__} changes by "
            f"{distance(with_padding, without):.1e} of it in sequence {row}; pass sequences of one length"
        )


class _Checker:
    """Looks at every place of one forward pass, layer by layer, and keeps no more than a layer."""

    def __init__(
        self, places: Mapping[str, Sequence[int]], layers: Sequence[Layer], mask: Int[Tensor, "batch pos"] | None
    ) -> None:
        self._layers, self._mask = layers, mask
        self._held: dict[str, Tensor] = {}
        self._layer = -1
        self._seen: dict[tuple[str, int], int] = {}
        asked = {site: set(chosen) for site, chosen in places.items()}
        for site in ("value", "head_out"):
            asked.setdefault(site, set()).update(asked.get("pattern", ()), asked.get("score", ()))
        if asked.keys() & {"attn_write", "mlp_write"}:
            whole = asked.get("attn_write", set()) | asked.get("mlp_write", set())
            for site in STREAM:
                has = {number for number in whole if site not in layers[number].missing}
                asked.setdefault(site, set()).update(has)
        self.places = {site: tuple(sorted(chosen)) for site, chosen in asked.items()}

    def __call__(self, site: str, layer: int, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Count it; check what is complete with it."""
        self._seen[site, layer] = self._seen.get((site, layer), 0) + 1
        if layer != self._layer:
            self._held.clear()
            self._layer = layer
        self._held[site] = value.clone()
        if site == "head_out":
            self._check_weights(self._layers[layer])
        if site == "resid_post":
            self._check_sum(self._layers[layer])
        return value

    def seen(self, site: str, layer: int) -> int:
        """How often a place was shown."""
        return self._seen.get((site, layer), 0)

    def _check_weights(self, layer: Layer) -> None:
        """Attention weights must mix the values to the head outputs; scores must give the weights."""
        out, value = self._real(self._held["head_out"]), self._held.get("value")
        if "pattern" in self._held and value is not None:
            self._refuse(self._real(attention_math.mix(self._held["pattern"], value)), out, "pattern", layer)
        if "score" in self._held and value is not None:
            pattern = attention_math.pattern_of_score(self._held["score"])
            self._refuse(self._real(attention_math.mix(pattern, value)), out, "score", layer)

    def _check_sum(self, layer: Layer) -> None:
        """What was written must sum to the difference that the layer made."""
        if "attn_write" not in self._held:
            return
        parts = [self._held[site] for site in STREAM[:3] if site in self._held]
        if not sums_to(self._held["resid_post"], *parts):
            miss = distance(torch.stack(parts).sum(0), self._held["resid_post"])
            raise UnsupportedModel(
                f"writes must sum to the residual difference, but in {layer.block} miss it by {miss:.1e}"
            )

    def _refuse(self, mixed: Float[Tensor, "..."], out: Float[Tensor, "..."], site: str, layer: Layer) -> None:
        """Refuse attention weights that do not reproduce the output."""
        if not close(mixed, out):
            raise UnsupportedModel(
                f"{site} must reproduce the head outputs, but in {layer.block} misses them by "
                f"{distance(mixed, out):.1e}; leave it out, or load the model with attn_implementation='eager'"
            )

    def _real(self, out: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "real head d_head"]:
        """Head outputs where the input is no padding."""
        return out.flatten(0, 1) if self._mask is None else out[self._mask.bool()]
