"""Hypotheses of causal scrubbing: the variables that activations depend on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mesascope.argument_types import describe_value, validate_fields, validate_type
from mesascope.probes._rows import read_integers

VariableFn = Callable[[Tensor], Any]
# the sites of claims, in the order in which a layer computes them
STAGES = {"resid_pre": 0, "z": 1, "mlp_out": 2, "resid_post": 3}


@dataclass(frozen=True, kw_only=True)
class ActivationClaim:
    """The claim that an activation depends on the inputs only through a variable.

    Attributes:
        site: ``z`` (heads), ``mlp_out``, ``resid_pre`` or ``resid_post``; ``resid_pre`` of layer 0 is the embedding.
        layer: the layer, counted from 0.
        variable: a function from inputs (batch, pos) or (batch, pos, d_in) to integers, one per sequence (batch), or
            one per position (batch, pos): then the activation at a position depends on the integer at this position.
        head: the head at ``z``; all heads together by default.
        position: the position; all by default.

    Raises:
        ValueError: there can be no claim about the site, or a head is named at a site without heads.

    >>> ActivationClaim(site="z", layer=1, head=5, position=-1, variable=whole_input).name
    'z L1 H5 pos -1: whole_input'
    """

    site: str
    layer: int
    variable: VariableFn
    head: int | None = None
    position: int | None = None

    def __post_init__(self) -> None:
        """Validate the site and the head."""
        validate_fields(self)
        if self.site not in STAGES:
            raise ValueError(f"a claim must be about one of {', '.join(STAGES)}, but got {self.site!r}")
        if self.head is not None and self.site != "z":
            raise ValueError(f"head must be omitted at {self.site}, which has no heads; use z")
        if not callable(self.variable):
            raise ValueError("variable must be a function of the inputs; for labels, pass lambda inputs: labels")

    @property
    def name(self) -> str:
        """The claim in a few words."""
        head = "" if self.head is None else f" H{self.head}"
        position = "" if self.position is None else f" pos {self.position}"
        variable = getattr(self.variable, "__name__", "variable")
        return f"{self.site} L{self.layer}{head}{position}: {variable}"

    @property
    def stage(self) -> tuple[int, int]:
        """The layer, and the order of the site in it: claims of an earlier stage are computed before."""
        return self.layer, STAGES[self.site]

    def compute_labels(self, inputs: Shaped[Tensor, "batch pos *d_in"]) -> Int[Tensor, "batch *pos"]:
        """Return the variable of every sequence, or of every position.

        Args:
            inputs: the inputs.

        Raises:
            ValueError: the function does not return one integer per sequence or position.
        """
        values = self.variable(inputs.clone())
        per_sequence = getattr(values, "ndim", 1) == 1
        shape = inputs.shape[:1] if per_sequence else inputs.shape[:2]
        return read_integers(f"the variable of the claim {self.name}", values, shape)


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """Claims about activations; all activations without a claim are claimed not to matter.

    Attributes:
        claims: the claims, in any order; none for the hypothesis that nothing matters.

    Raises:
        ValueError: a claim is no `ActivationClaim`.

    >>> Hypothesis(claims=(ActivationClaim(site="z", layer=0, variable=whole_input),)).claims[0].layer
    0
    """

    claims: tuple[ActivationClaim, ...]

    def __post_init__(self) -> None:
        """Validate the claims."""
        if not isinstance(self.claims, tuple) or not all(isinstance(one, ActivationClaim) for one in self.claims):
            raise ValueError("claims must be a tuple of ActivationClaim, but something else is among them; wrap them")


def whole_input(inputs: Shaped[Tensor, "batch pos *d_in"]) -> Int[Tensor, " batch"]:
    """Return the number of each different sequence: the variable of an activation that may depend on everything.

    Args:
        inputs: the inputs.

    Raises:
        ValueError: they are no tensor of sequences, or the sequences are empty.

    >>> whole_input(torch.tensor([[5, 6], [1, 2], [5, 6]])).tolist()
    [1, 0, 1]
    """
    validate_type("inputs", inputs, Shaped[Tensor, "batch pos *d_in"])
    if 0 in inputs.shape:
        raise ValueError(f"inputs must be (batch, pos) and not empty, but got {tuple(inputs.shape)}")
    if inputs.is_complex():
        raise ValueError(f"inputs must be tokens or real vectors, but got {describe_value(inputs)}")
    return inputs.flatten(1).unique(dim=0, return_inverse=True)[1]


def draw_agreeing(labels: Int[Tensor, "batch *pos"], generator: torch.Generator) -> Int[Tensor, "batch *pos"]:
    """Draw for every sequence another one with the same label: in a random cycle, or itself if no other has it.

    Args:
        labels: one per sequence; or one per position, which are drawn independently.
        generator: source of the cycles.

    Returns:
        The index of the other sequence, in the shape of the labels.

    >>> draw_agreeing(torch.tensor([0, 1, 0, 2]), torch.Generator().manual_seed(0)).tolist()
    [2, 1, 0, 3]
    """
    ranks = labels.unique(return_inverse=True)[1]
    order = (ranks + torch.rand(ranks.shape, generator=generator, dtype=torch.float64)).argsort(0)
    ordered = ranks.gather(0, order)
    index = torch.arange(len(labels)).reshape([-1] + [1] * (labels.ndim - 1)).expand(labels.shape)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(is_first, index, 0).cummax(0).values
    is_last = torch.ones_like(is_first)
    is_last[:-1] = is_first[1:]
    successor = order.gather(0, torch.where(is_last, first, (index + 1).clamp_max(len(labels) - 1)))
    return torch.empty_like(order).scatter(0, order, successor)
