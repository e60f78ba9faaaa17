"""Senders, receivers and the edges between them.

A sender adds a term to the residual stream: the embedding, a head, or an MLP. A receiver reads the sum of the terms of
all senders before it: the query, key or value of a head, an MLP, or the output. Each pair is an edge.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor

from mesascope.activations.split_forward import ATTENTION_INPUTS, SplitForward
from mesascope.argument_types import validate_arguments

EMBEDDING, OUTPUT = "embedding", "output"
INPUT_LETTERS = dict(zip(ATTENTION_INPUTS, "qkv", strict=True))


@dataclass(frozen=True, kw_only=True)
class Component:
    """A sender or a receiver.

    Attributes:
        name: ``embedding``, ``L0.H2``, ``L0.MLP``, ``L0.H2.q`` (``.k`` and ``.v``: a key-value head) or ``output``.
        kind: ``embedding``, ``head``, ``query``, ``key``, ``value``, ``mlp`` or ``output``.
        layer: the layer, counted from 0; -1 for the embedding, and the number of layers for the output.
        head: the head, or key-value head, counted from 0; -1 if the component is no head.
        num_senders: for a receiver, the number of senders before it.
    """

    name: str
    kind: str
    layer: int
    head: int = -1
    num_senders: int = 0


@dataclass(frozen=True, kw_only=True)
class Edges:
    """All senders and receivers of a model.

    Attributes:
        senders: the senders, each before those that can read it.
        receivers: the receivers, in the order in which they are computed.
    """

    senders: tuple[Component, ...]
    receivers: tuple[Component, ...]

    @cached_property
    def exist(self) -> Bool[Tensor, "sender receiver"]:
        """``True`` where a sender precedes a receiver."""
        counts = torch.tensor([receiver.num_senders for receiver in self.receivers])
        return torch.arange(len(self.senders))[:, None] < counts

    def __len__(self) -> int:
        """Return the number of edges."""
        return sum(receiver.num_senders for receiver in self.receivers)

    def index(self, sender: str, receiver: str) -> tuple[int, int]:
        """Return the indices of the sender and of the receiver of an edge.

        Args:
            sender: name of the sender.
            receiver: name of the receiver.

        Raises:
            ValueError: If there is no such edge.
        """
        found = [
            next((number for number, each in enumerate(components) if each.name == name), None)
            for name, components in ((sender, self.senders), (receiver, self.receivers))
        ]
        if None in found or not self.exist[found[0], found[1]]:
            raise ValueError(
                f"an edge must lead from a sender ({self._examples(self.senders)}) to a later receiver "
                f"({self._examples(self.receivers)}), but got {sender} -> {receiver}"
            )
        return found[0], found[1]  # type: ignore[return-value]

    @staticmethod
    def _examples(components: tuple[Component, ...]) -> str:
        names = [each.name for each in components]
        return ", ".join(names if len(names) <= 6 else [*names[:4], "...", names[-1]])


@validate_arguments
def find_edges(split: SplitForward) -> Edges:
    """Return the senders and receivers of a model.

    Args:
        split: the model.

    Returns:
        Its edges.
    """
    senders = [Component(name=EMBEDDING, kind="embedding", layer=-1)]
    receivers: list[Component] = []
    for layer in range(split.num_layers):
        before = len(senders)
        for kind, letter in INPUT_LETTERS.items():
            heads = split.num_heads(layer) if kind == "query" else split.num_kv_heads(layer)
            receivers += [
                Component(name=f"L{layer}.H{head}.{letter}", kind=kind, layer=layer, head=head, num_senders=before)
                for head in range(heads)
            ]
        senders += [
            Component(name=f"L{layer}.H{head}", kind="head", layer=layer, head=head)
            for head in range(split.num_heads(layer))
        ]
        if split.has_mlp(layer):
            count = before if split.is_parallel(layer) else len(senders)
            receivers.append(Component(name=f"L{layer}.MLP", kind="mlp", layer=layer, num_senders=count))
            senders.append(Component(name=f"L{layer}.MLP", kind="mlp", layer=layer))
    receivers.append(Component(name=OUTPUT, kind="output", layer=split.num_layers, num_senders=len(senders)))
    return Edges(senders=tuple(senders), receivers=tuple(receivers))
