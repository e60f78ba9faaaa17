"""Where the sites of one layer are in a model: names of modules, found by anatomy and used by hooks."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Write:
    """A module whose output, times a gain, is added to the residual stream.

    Attributes:
        module: its name.
        gain: the number.
        flat: it gives (batch * pos, d_model).
    """

    module: str
    gain: float
    flat: bool = False


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How a layer's attention weights are had without touching its output.

    Attributes:
        how: ``returned`` by the kernel, ``plain`` (softmax of the scores), ``delegate`` (the model's own function) or
            ``unit`` (what that function mixes unit values to, where it scales what it has mixed).
        scored: the softmax of the plain scores is the pattern, so that scores can be shown and edited.
        softmax: every row sums to 1.
    """

    how: str
    scored: bool
    softmax: bool


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One decoder block.

    Attributes:
        block: name of its module.
        stream_at: which argument of the block is the residual stream: a position or a keyword.
        attention: name of the module that calls the attention function, if there is one.
        projection: name of the output projection, if head outputs reach the stream through it alone.
        attn_write, mlp_write: what is added to the stream.
        weights: how attention weights are had.
        heads, kv_heads: their numbers; 0 without attention.
        missing: why a site is not there, by site; ``projection`` is explained here too.
        parallel: the MLP reads the stream before attention has written to it.
    """

    block: str
    stream_at: int | str
    attention: str | None
    projection: str | None
    attn_write: Write | None
    mlp_write: Write | None
    weights: Weights | None
    heads: int
    kv_heads: int
    missing: dict[str, str]
    parallel: bool = False
