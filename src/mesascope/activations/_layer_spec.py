"""The location of each site in one layer: module names, found from the model structure and used by hooks."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ResidualUpdate:
    """A module whose output, times a gain, is added to the residual stream.

    Attributes:
        module: the name of the module.
        gain: the factor.
        flat: the output has the shape (batch * pos, d_model).
    """

    module: str
    gain: float
    flat: bool = False


@dataclass(frozen=True, kw_only=True)
class ModuleArgument:
    """An argument of a module.

    Attributes:
        module: the name of the module.
        argument: a position or a keyword.
    """

    module: str
    argument: int | str


@dataclass(frozen=True, kw_only=True)
class AttentionWeightsMethod:
    """A method to compute a layer's attention weights without changing its output.

    Attributes:
        kind: ``returned`` (by the attention implementation), ``plain`` (softmax of the scaled scores), ``delegate`` (by
            the model's eager attention function) or ``unit`` (the output of that function for one-hot values, where the
            function scales its output).
        softmax_of_scores: the softmax of the scaled scores is the pattern, so that ``attn_scores`` can be recorded and
            edited.
        rows_sum_to_one: every row of the pattern sums to 1.
    """

    kind: str
    softmax_of_scores: bool
    rows_sum_to_one: bool


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """The specification of one decoder block.

    Attributes:
        block: the name of the module.
        stream_argument: the argument of the block that is the residual stream: a position or a keyword.
        attention: the name of the module that calls the attention function, if there is one.
        projection: the name of the output projection, if ``z`` reaches the residual stream through it alone.
        attn_out: the residual update of attention, if known.
        mlp_out: the residual update of the MLP, if known.
        weights_method: the method for attention weights, if there is one.
        num_heads: the number of query heads; 0 without attention.
        num_kv_heads: the number of key-value heads; 0 without attention.
        missing: the reason why a site is not available, by site; also by ``projection``.
        resid_mid: the argument that is the residual stream between attention and MLP, if a module reads it.
        parallel: the MLP reads the residual stream before attention has written to it.
    """

    block: str
    stream_argument: int | str
    attention: str | None
    projection: str | None
    attn_out: ResidualUpdate | None
    mlp_out: ResidualUpdate | None
    weights_method: AttentionWeightsMethod | None
    num_heads: int
    num_kv_heads: int
    missing: dict[str, str]
    resid_mid: ModuleArgument | None = None
    parallel: bool = False
