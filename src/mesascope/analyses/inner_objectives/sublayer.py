"""A sublayer's update of a few tokens with frozen attention: the quantities that an inner objective may use."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.activations import LayerView, Readout

Result = TypeVar("Result")
Stream = Float[Tensor, "batch query d_model"]
Pattern = Float[Tensor, "batch head query key"]
PerHead = Float[Tensor, "batch head key d_head"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sublayer:
    """The attention or the MLP of one layer, at the queries of a view.

    Attributes:
        view: the view of the layer.
        name: ``attention`` or ``mlp``.
        key_order: per query, the key whose weight each key receives; ``None`` outside the control.
        cache: values that are the same for every key order, by name.
    """

    view: LayerView
    name: str
    key_order: Int[Tensor, "batch query key"] | None = None
    cache: dict[str, Any] = field(default_factory=dict)

    def compute_once(self, key: str, compute: Callable[[], Result]) -> Result:
        """Return a value that does not depend on the key order, computed on the first call.

        Args:
            key: the name of the value.
            compute: function that computes it.

        Returns:
            the value.
        """
        if key not in self.cache:
            self.cache[key] = compute()
        return self.cache[key]

    @cached_property
    def x(self) -> Stream:
        """The representations that the sublayer reads."""
        return self.view.sublayer_input(self.name)[:, self.view.queries]

    @cached_property
    def u(self) -> Stream:
        """The residual update of these tokens; in the control, the update with the keys shuffled."""
        if self.key_order is None:
            return self.view.sublayer_output(self.name)[:, self.view.queries]
        return torch.einsum("bhqd,hdm->bqm", self.head_mixes, self.output_projection) + self.output_bias

    @cached_property
    def pattern(self) -> Pattern:
        """The attention weights of these tokens."""
        pattern = self.view["pattern"]
        return pattern if self.key_order is None else pattern.gather(-1, self.key_order[:, None].expand_as(pattern))

    @cached_property
    def visible_keys(self) -> Bool[Tensor, "batch query key"]:
        """``True`` where the mask of the model shows a key to a query."""
        return self.compute_once("visible", lambda: self._expand_visible(self.view.visible_keys.any(1)))

    @cached_property
    def head_mixes(self) -> Float[Tensor, "batch head query d_head"]:
        """The values averaged with the attention weights, per head (``z``)."""
        return self.pattern @ self.values

    @cached_property
    def values(self) -> PerHead:
        """The values, repeated for every query head."""
        return self.compute_once("values", lambda: self._repeat_per_head(self.view["value"]))

    @cached_property
    def keys(self) -> PerHead:
        """The keys, repeated for every query head, with rotary embedding."""
        return self.compute_once("keys", lambda: self._repeat_per_head(self.view["key"]))

    @cached_property
    def queries(self) -> Float[Tensor, "batch head query d_head"]:
        """The queries of these tokens, with rotary embedding."""
        return self.view["query"][:, :, self.view.queries]

    @property
    def output_projection(self) -> Float[Tensor, "head d_head d_model"]:
        """The map from ``z`` of each head to the residual stream (W_O)."""
        return self.view.readout.output_projection[self.view.recorded_index]

    @property
    def output_bias(self) -> Float[Tensor, " d_model"]:
        """The bias of ``attn_out``."""
        return self.view.readout.output_bias[self.view.recorded_index]

    @property
    def readout(self) -> Readout:
        """The readout of the model."""
        return self.view.readout

    @property
    def loss_gradient(self) -> Stream:
        """The gradient of the summed loss with respect to the representations that the sublayer reads."""
        return self.view.sublayer_input_gradient(self.name)[:, self.view.queries]

    def compute_query(self, z: Stream) -> Float[Tensor, "batch head query d_head"]:
        """Return the queries that this layer would compute from other representations of these tokens, differentiably.

        Args:
            z: representations (batch, query, d_model).

        Returns:
            the queries (batch, head, query, d_head).
        """
        stream, positions = self.view["resid_pre"], self.view.queries.to(z.device)
        return self.view.recompute_query(stream.index_copy(1, positions, z.to(stream.dtype)))[:, :, positions]

    def next_token_targets(self) -> tuple[Int[Tensor, "batch query"], Bool[Tensor, "#batch query"]]:
        """Return the next tokens, and ``True`` where they count: where the task scores them, or wherever there is one.

        Returns:
            tokens and mask, both (batch, query).

        Raises:
            ValueError: the inputs of the model are vectors.
        """
        batch = self.view.batch
        if self.view.inputs.is_floating_point():
            raise ValueError("next_token needs tokens, but the inputs of the model are vectors")
        if batch is not None and not batch.targets.is_floating_point():
            return batch.targets[:, self.view.queries], batch.weight[:, self.view.queries] > 0
        positions, length = self.view.queries.to(self.view.inputs.device), self.view.inputs.shape[1]
        return self.view.inputs[:, (positions + 1).clamp(max=length - 1)], (positions + 1 < length)[None]

    def with_shuffled_keys(self, draws: int, seed: int) -> Iterator["Sublayer"]:
        """Yield copies with shuffled keys: each query's weights are assigned to its visible keys in a random order.

        The order is the same for all heads.

        Args:
            draws: number of copies.
            seed: seed of the orders; the index of the layer is added.

        Yields:
            the copies.
        """
        generator = torch.Generator().manual_seed(seed + self.view.layer)
        for _ in range(draws):
            order = _draw_key_order(self.visible_keys, generator)
            yield Sublayer(view=self.view, name=self.name, key_order=order, cache=self.cache)

    def _expand_visible(self, visible: Bool[Tensor, "#batch query key"]) -> Bool[Tensor, "batch query key"]:
        return visible.expand(len(self.view.inputs), -1, -1)

    def _repeat_per_head(self, per_kv_head: Float[Tensor, "batch kv_head key d_head"]) -> PerHead:
        return per_kv_head.repeat_interleave(self.view["pattern"].shape[1] // per_kv_head.shape[1], dim=1)


def _draw_key_order(
    visible_keys: Bool[Tensor, "batch query key"], generator: torch.Generator
) -> Int[Tensor, "batch query key"]:
    """Return a random permutation of the visible keys of each row; the other keys stay where they are.

    The k-th visible key is assigned the key with the k-th smallest random number.
    """
    noise = torch.rand(visible_keys.shape, generator=generator).to(visible_keys.device)
    key_index = torch.arange(visible_keys.shape[-1], device=visible_keys.device).expand(visible_keys.shape)
    fixed_index = visible_keys.shape[-1] + key_index
    shuffled_keys = torch.where(visible_keys, noise, fixed_index.double()).argsort(-1)
    sorted_keys = torch.where(visible_keys, key_index, fixed_index).argsort(-1)
    return torch.empty_like(shuffled_keys).scatter(-1, sorted_keys, shuffled_keys)
