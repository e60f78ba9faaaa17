"""What linear maps read, at a sample of tokens, taken while the model runs.

Vectors are kept, and neither their second moments nor projections of them: moments of every input take as much memory
as a third of the model and more where it is wide, and projections need all eigenvectors before the pass, or anew for
every micro-batch. Vectors grow only with the width; how many are kept is a choice, and each one obeys the identity.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.arguments import on_device
from mesascope.activations.capture import examine
from mesascope.activations.forward import predict, quiet
from mesascope.activations.hooks.module_hooks import first_tensor
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.structure.linear_modules import LinearMap, Maps, find_maps
from mesascope.tasks.base import Batch

TOKENS = 2048  # at most so many are looked at
BYTES = 128_000_000  # and so many bytes of their vectors kept


@dataclass(frozen=True, kw_only=True, eq=False)
class MapSample:
    """What one map read and gave at the sampled tokens.

    Attributes:
        map: the map.
        inputs: the vectors x; maps that read the same share them.
        observed: the squared length of W x as the model computed it, the bias taken off.
    """

    map: LinearMap
    inputs: Float[Tensor, "token d_in"]
    observed: Float[Tensor, " token"]


@dataclass(frozen=True, kw_only=True, eq=False)
class MapSamples:
    """The samples of all maps.

    Attributes:
        samples: one for each map, layer by layer.
        layers: the layers that were searched for maps, in order.
        left_out: why a module with matrices has none, by layer and its name in the block.
        tokens: how many were sampled.
    """

    samples: tuple[MapSample, ...]
    layers: tuple[int, ...]
    left_out: dict[tuple[int, str], str]
    tokens: int


def affordable(maps: Maps, dtype: torch.dtype, bytes_: int = BYTES) -> int:
    """How many tokens can be sampled so that their vectors at all maps take no more than so many bytes."""
    width = sum(each.weight.shape[1] for each in maps.found if each.reads == each.name)
    return max(1, bytes_ // max(1, width * dtype.itemsize))


def pick(counted: Bool[Tensor, "batch pos"], most: int, generator: torch.Generator) -> Bool[Tensor, "batch pos"]:
    """A random choice of tokens, each as likely as any other.

    Args:
        counted: the tokens to choose from.
        most: how many to choose; all of them if there are no more.
        generator: of the choice.

    Raises:
        ValueError: there is none.
    """
    places = counted.cpu().flatten().nonzero()[:, 0]
    if not len(places):
        raise ValueError("there must be a token to look at, but every one is left out; count more of them")
    chosen = places[torch.randperm(len(places), generator=generator)[:most]]
    picked = torch.zeros(counted.numel(), dtype=torch.bool)
    picked[chosen] = True
    return picked.view(counted.shape)


@contextmanager
def watch_maps(maps: Maps, picked: Bool[Tensor, "batch pos"]) -> Iterator["MapWatch"]:
    """While this lasts, forward passes show what the maps read and give at some tokens.

    The sequences must pass once, in order, in micro-batches of any size.

    Args:
        maps: which maps.
        picked: the tokens to take, of all sequences.
    """
    watch = MapWatch(maps, picked)
    with ExitStack() as hooks:
        for each in maps.found:
            handle = each.module.register_forward_hook(partial(watch.see, each), with_kwargs=True)
            hooks.callback(handle.remove)
        yield watch


class MapWatch:
    """Takes vectors from the maps' calls; see `watch_maps`."""

    def __init__(self, maps: Maps, picked: Bool[Tensor, "batch pos"]) -> None:
        self._maps, self._picked = maps, picked.flatten().cpu()
        self._tokens = int(picked.sum())
        self._taken = {(each.layer, each.name): _Taken() for each in maps.found}

    @torch.no_grad()
    def see(self, each: LinearMap, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """Take the picked vectors of one call."""
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)).flatten(0, -2)
        y, taken = first_tensor(output), self._taken[each.layer, each.name]
        rows = self._picked[taken.seen : taken.seen + len(x)].nonzero()[:, 0].to(x.device)
        taken.seen += len(x)
        if y is None or not len(rows):
            return
        given = y.flatten(0, -2)[rows].double()
        given = given if each.bias is None else given - each.bias.double()
        taken.keep(x[rows], given.square().sum(-1), self._taken[each.layer, each.reads], self._tokens)

    def result(self) -> MapSamples:
        """What was taken.

        Raises:
            UnsupportedModel: no map read every token.
        """
        left_out, samples = dict(self._maps.left_out), []
        for each in self._maps.found:
            taken, tokens = self._taken[each.layer, each.name], self._picked.numel()
            if taken.seen != tokens or taken.inputs is None or taken.observed is None:
                left_out[each.layer, each.name] = f"it read {taken.seen} vectors where there were {tokens} tokens"
            else:
                samples.append(MapSample(map=each, inputs=taken.inputs, observed=taken.observed))
        if not samples:
            raise UnsupportedModel(
                "the layers must have linear maps that read every token once, but none does: "
                f"{next(iter(left_out.values()), 'no module in them holds a matrix')}"
            )
        return MapSamples(samples=tuple(samples), layers=self._maps.layers, left_out=left_out, tokens=self._tokens)


@dataclass(kw_only=True, eq=False)
class _Taken:
    """What was taken from one map so far: the first ``kept`` rows, after it has seen so many tokens."""

    inputs: Float[Tensor, "token d_in"] | None = None
    observed: Float[Tensor, " token"] | None = None
    kept: int = 0
    seen: int = 0

    def keep(
        self, x: Float[Tensor, "some d_in"], observed: Float[Tensor, " some"], source: "_Taken", tokens: int
    ) -> None:
        """Add vectors to the rows; as long as a source holds the same, bit for bit, its rows are shared."""
        rows = slice(self.kept, self.kept + len(x))
        if self.inputs is None or self.observed is None:
            self.inputs = x.new_empty(tokens, x.shape[1]) if source.inputs is None else source.inputs
            self.observed = observed.new_empty(tokens)
        if self is source or self.inputs is not source.inputs:
            self.inputs[rows] = x
        elif not torch.equal(self.inputs[rows], x):
            self.inputs = self.inputs.clone()
            self.inputs[rows] = x
        self.observed[rows] = observed
        self.kept += len(x)


def sample_maps(
    model: PreTrainedModel,
    inputs: Shaped[Tensor, "batch pos *d_in"],
    *,
    counted: Bool[Tensor, "batch pos"] | None = None,
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    layers: Sequence[int] | None = None,
    tokens: int = TOKENS,
    batch_size: int | None = None,
    seed: int = 0,
) -> MapSamples:
    """What every linear map inside the blocks reads and gives, at a random sample of tokens.

    Args:
        model: any model that capture supports.
        inputs: tokens or vectors.
        counted: the tokens to choose from, sinks left out, say; all real ones by default.
        attention_mask: 1 where an input is real.
        layers: which layers; all by default.
        tokens: how many tokens at most; fewer where their vectors would take more than 128 MB.
        batch_size: sequences per forward pass; all at once by default.
        seed: of the choice of tokens.

    Raises:
        UnsupportedModel: the layers cannot be read, or have no linear maps.

    >>> from mesascope.models.transformer import Decoder, DecoderConfig
    >>> model = Decoder(DecoderConfig(d_in=1, d_out=1, hidden_size=8, num_attention_heads=2))
    >>> sample_maps(model, torch.ones(4, 6, 1), layers=[0]).samples[0].map.name
    'attention.q_proj'
    """
    inputs = inputs.to(model.device)
    mask = None if attention_mask is None else attention_mask.to(model.device).long()
    real = torch.ones(inputs.shape[:2], dtype=torch.bool) if mask is None else mask.bool().cpu()
    real = real if counted is None else real & counted.cpu()
    with quiet(model):
        probe, known = examine(model, inputs, mask)
        maps = find_maps(model, known, probe, layers)
        most = min(tokens, affordable(maps, model.dtype))
        size = batch_size or len(inputs)
        with watch_maps(maps, pick(real, most, torch.Generator().manual_seed(seed))) as watched:
            for start in range(0, len(inputs), size):
                rows = slice(start, start + size)
                predict(model, inputs[rows], None if mask is None else mask[rows], everywhere=False)
        return watched.result()


def read_by(
    model: PreTrainedModel, inputs: Tensor | Batch, names: Sequence[str]
) -> dict[str, Float[Tensor, "batch pos _"]]:
    """The vectors that modules of these names read in one forward pass, in evaluation mode.

    Args:
        model: any transformers model.
        inputs: tokens (batch, pos), vectors (batch, pos, d_in), or a batch of a task.
        names: of modules that are called once, with one tensor of vectors (batch, pos, width).

    Raises:
        ValueError: a module of this name is not there, or was not called once.
    """
    known = dict(model.named_modules())
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"modules must be the model's, but it has no {', '.join(missing)}")
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def hear(name: str):
        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name].append(args[0].detach())

        return note

    hooks = [known[name].register_forward_pre_hook(hear(name)) for name in names]
    x, mask = on_device(model, inputs, None)
    try:
        with quiet(model), torch.no_grad():
            predict(model, x, mask)
    finally:
        for hook in hooks:
            hook.remove()
    uncalled = [name for name, vectors in seen.items() if len(vectors) != 1]
    if uncalled:
        raise ValueError(f"modules must be called once in a forward pass, but {', '.join(uncalled)} is not")
    return {name: vectors[0] for name, vectors in seen.items()}
