"""The location of each site in one layer: module names, found from the model structure and used by hooks."""

from collections.abc import Sequence
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
class MLPHidden:
    """The hidden activations of an MLP.

    Attributes:
        input: the argument of the linear map that computes the output of the MLP.
        width: the number of neurons.
    """

    input: ModuleArgument
    width: int


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
class CrossAttentionSpec:
    """The cross-attention of a block of a decoder, in which positions of the target attend to those of the source.

    Attributes:
        module: the name of the module that calls the attention function.
        projection: the name of the output projection, if ``cross_z`` reaches the residual stream through it alone.
        attn_out: its residual update, if known.
        weights_method: the method for its weights, if there is one.
        num_heads: the number of query heads.
        num_kv_heads: the number of key-value heads.
        resid_mid: the argument that is the residual stream between cross-attention and MLP, if a module reads it.
    """

    module: str
    projection: str | None
    attn_out: ResidualUpdate | None
    weights_method: AttentionWeightsMethod | None
    num_heads: int
    num_kv_heads: int
    resid_mid: ModuleArgument | None


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """The specification of one call of a decoder block in a forward pass.

    A model that repeats its blocks has one specification per block and iteration, in the order of the calls.

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
        resid_mid: the argument that is the residual stream between attention and MLP, or between self-attention and
            cross-attention, if a module reads it.
        cross: the cross-attention, if there is one.
        mlp_hidden: the hidden activations of the MLP, if known.
        parallel: the MLP reads the residual stream before attention has written to it.
        iteration: the number of earlier calls of the block in the forward pass; ``None`` in a model that calls each of
            its blocks once.
        traced_call: the index of the traced call of the block in which it was found.
        is_optional: the forward pass, or the chunk, may end before this call.
        chunk: the chunk of positions in which the block is called; ``None`` in a model that processes all positions
            at once.
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
    cross: CrossAttentionSpec | None = None
    mlp_hidden: MLPHidden | None = None
    parallel: bool = False
    iteration: int | None = None
    traced_call: int = 0
    is_optional: bool = False
    chunk: int | None = None

    @property
    def is_repeated(self) -> bool:
        """``True`` if a forward pass may call the block several times."""
        return self.iteration is not None or self.chunk is not None


@dataclass(frozen=True, kw_only=True)
class ChunkSpec:
    """The chunks of a model that processes consecutive positions one chunk after the other, with a memory between them.

    Attributes:
        length: the number of positions of a chunk; the last one may be shorter.
        num_slots: the number of vectors of the memory.
        update: the update of the memory after a chunk, specified like a layer whose positions are the slots; ``None``
            if it was not traced, because the inputs are one chunk.
    """

    length: int
    num_slots: int
    update: LayerSpec | None


def name_call(layers: Sequence[LayerSpec], number: int) -> str:
    """Return the name of a call of a block, for an error message.

    Args:
        layers: the specification of every call.
        number: the index of the call.
    """
    layer, blocks = layers[number], list(dict.fromkeys(each.block for each in layers))
    name = f"layer {blocks.index(layer.block) if layer.is_repeated else number}"
    name += "" if layer.iteration is None else f" in iteration {layer.iteration}"
    return name if layer.chunk is None else f"{name} of chunk {layer.chunk}"
