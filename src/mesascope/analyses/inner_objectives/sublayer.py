"""One sublayer's update of a few tokens, frozen: everything that an inner objective may be a function of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.activations import Frame, LayerView

Result = TypeVar("Result")
Stream = Float[Tensor, "batch query d_model"]
Pattern = Float[Tensor, "batch head query key"]
PerHead = Float[Tensor, "batch head key d_head"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sublayer:
    """The attention or the MLP of one layer, at the queries of a view.

    Attributes:
        view: the layer.
        name: attention or mlp.
        order: per query, from which key each key takes its weight; ``None`` outside the control.
        shared: what was computed once for every order of the keys.
    """

    view: LayerView
    name: str
    order: Int[Tensor, "batch query key"] | None = None
    shared: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, compute: Callable[[], Result]) -> Result:
        """Something that does not depend on the order of the keys, computed only the first time."""
        if name not in self.shared:
            self.shared[name] = compute()
        return self.shared[name]

    @cached_property
    def x(self) -> Stream:
        """The representations that the sublayer reads."""
        return self.view.before(self.name)[:, self.view.queries]

    @cached_property
    def u(self) -> Stream:
        """What it adds to them; in the control what attention would add."""
        if self.order is None:
            return self.view.update(self.name)[:, self.view.queries]
        return torch.einsum("bhqd,hdm->bqm", self.mixed, self.projection) + self.bias

    @cached_property
    def pattern(self) -> Pattern:
        """Attention weights of these tokens."""
        pattern = self.view["pattern"]
        return pattern if self.order is None else pattern.gather(-1, self.order[:, None].expand_as(pattern))

    @cached_property
    def visible(self) -> Bool[Tensor, "batch query key"]:
        """Which keys have any weight."""
        return self.once("visible", lambda: (self.view["pattern"] != 0).any(1))

    @cached_property
    def mixed(self) -> Float[Tensor, "batch head query d_head"]:
        """Values mixed by the attention weights."""
        return self.pattern @ self.values

    @cached_property
    def values(self) -> PerHead:
        """Values, one for each query head."""
        return self.once("values", lambda: self._per_head(self.view["value"]))

    @cached_property
    def keys(self) -> PerHead:
        """Keys, one for each query head, rotary positions included."""
        return self.once("keys", lambda: self._per_head(self.view["key"]))

    @cached_property
    def queries(self) -> Float[Tensor, "batch head query d_head"]:
        """The queries of these tokens, rotary positions included."""
        return self.view["query"][:, :, self.view.queries]

    @property
    def projection(self) -> Float[Tensor, "head d_head d_model"]:
        """The map from a head's mixed values to the stream."""
        return self.view.frame.output_projection[self.view.slot]

    @property
    def bias(self) -> Float[Tensor, " d_model"]:
        """What attention adds whatever its heads give."""
        return self.view.frame.output_bias[self.view.slot]

    @property
    def frame(self) -> Frame:
        """Projections and read-out of the model."""
        return self.view.frame

    @property
    def gradient(self) -> Stream:
        """The gradient of the model's own loss, summed over positions, by what the sublayer reads."""
        return self.view.gradient(self.name)[:, self.view.queries]

    def query(self, z: Stream) -> Float[Tensor, "batch head query d_head"]:
        """The queries that this layer would compute from other representations of these tokens, differentiable."""
        stream, at = self.view["resid_pre"], self.view.queries.to(z.device)
        return self.view.query(stream.index_copy(1, at, z.to(stream.dtype)))[:, :, at]

    def next_token(self) -> tuple[Int[Tensor, "batch query"], Bool[Tensor, "#batch query"]]:
        """The token after each, and whether it counts: those that training scores, or all where no task says.

        Raises:
            ValueError: the model reads vectors.
        """
        batch = self.view.batch
        if self.view.inputs.is_floating_point():
            raise ValueError("the loss of the read-out is of next tokens, but the model reads vectors")
        if batch is not None and not batch.targets.is_floating_point():
            return batch.targets[:, self.view.queries], batch.weight[:, self.view.queries] > 0
        at, length = self.view.queries.to(self.view.inputs.device), self.view.inputs.shape[1]
        return self.view.inputs[:, (at + 1).clamp(max=length - 1)], (at + 1 < length)[None]

    def shuffled(self, draws: int, seed: int) -> Iterator["Sublayer"]:
        """The control: every query's weights fall on its visible keys in a random order, the same for all heads."""
        generator = torch.Generator().manual_seed(seed + self.view.layer)
        for _ in range(draws):
            order = _order(self.visible, generator)
            yield Sublayer(view=self.view, name=self.name, order=order, shared=self.shared)

    def _per_head(self, grouped: Float[Tensor, "batch kv_head key d_head"]) -> PerHead:
        """The same tensor of a group for each of its heads."""
        return grouped.repeat_interleave(self.view["pattern"].shape[1] // grouped.shape[1], dim=1)


def _order(visible: Bool[Tensor, "batch query key"], generator: torch.Generator) -> Int[Tensor, "batch query key"]:
    """For each row a random permutation of its visible keys; the others stay in place.

    Ranks of random numbers within the visible keys are matched with those keys in their order.
    """
    noise = torch.rand(visible.shape, generator=generator).to(visible.device)
    place = torch.arange(visible.shape[-1], device=visible.device).expand(visible.shape)
    stay = visible.shape[-1] + place
    random = torch.where(visible, noise, stay.double()).argsort(-1)
    ordered = torch.where(visible, place, stay).argsort(-1)
    return torch.empty_like(random).scatter(-1, ordered, random)
