"""From head outputs to the stream: one layer's output projection, with the bias and the gain behind it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.layer_spec import Layer, Write
from mesascope.activations.structure.trace import Trace
from mesascope.activations.tolerances import close, distance


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """One layer's map from head outputs to what attention writes: a module that is linear, times a gain."""

    module: nn.Module
    gain: float
    heads: int
    width: int

    @torch.no_grad()
    def matrix(self) -> tuple[Float[Tensor, "head d_head d_model"], Float[Tensor, " d_model"]]:
        """The map and its bias, by running it on unit vectors; exact where the module holds the matrix itself."""
        like = next(self.module.parameters())
        eye = torch.eye(self.heads * self.width, dtype=like.dtype, device=like.device)[None]
        bias = self.module(torch.zeros_like(eye[:, :1]))[0, 0]
        found = self.module(eye)[0] - bias
        held = [kept for p in self.module.parameters(recurse=False) if p.ndim == 2 for kept in (p.T, p)]
        exact = [p for p in held if p.shape == found.shape and close(p, found, bias.abs().max().item())]
        found = (exact[0] if exact else found).unflatten(0, (self.heads, self.width))
        return found.detach() * self.gain, bias.detach() * self.gain


def find_projection(model: PreTrainedModel, layer: Layer, trace: Trace) -> Projection | str:
    """The map behind one layer's heads, tried on the probe, or why there is none."""
    if layer.projection is None or layer.attn_write is None:
        return layer.missing.get("projection", "what attention writes is not known")
    heads = next(each.output for each in trace.attentions if each.name == layer.attention)
    module = model.get_submodule(layer.projection)
    found = Projection(module=module, gain=layer.attn_write.gain, heads=heads.shape[-2], width=heads.shape[-1])
    matrix, bias = found.matrix()
    write = written(layer.attn_write, trace, (*heads.shape[:2], -1))
    again = torch.einsum("bphd,hdm->bpm", heads, matrix) + bias
    if not close(again, write):
        return f"the output projection is not linear: it misses what attention writes by {distance(again, write):.1e}"
    return found


def written(write: Write, trace: Trace, stream: tuple[int, ...]) -> Float[Tensor, "batch pos d_model"]:
    """What was written on the probe."""
    (call,) = trace.of(write.module)
    return call.result.reshape(stream) * write.gain
