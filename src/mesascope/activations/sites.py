"""The closed list of sites in a forward pass, the same for every model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from mesascope.activations.validation.site_names import suggest_site
from mesascope.argument_types import describe_value


class UnsupportedModel(ValueError):  # noqa: N818  the name says what is wrong
    """The model, or one of its layers, lacks a site or violates an identity that the site must satisfy."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A named activation of the forward pass.

    Attributes:
        name: the name that `capture` and `Edit` take.
        axes: one name per axis, from :mod:`mesascope.axes`.
        description: a description of the activation.
    """

    name: str
    axes: tuple[str, ...]
    description: str

    @property
    def axes_within_layer(self) -> tuple[str, ...]:
        """The axes within one layer."""
        return tuple(axis for axis in self.axes if axis != "layer")


def _named_site(name: str, axes: str, description: str) -> tuple[str, Site]:
    return name, Site(name=name, axes=tuple(axes.split()), description=description)


SITES: Mapping[str, Site] = MappingProxyType(
    dict(
        [
            _named_site("resid_pre", "layer batch pos d_model", "the residual stream before a layer"),
            _named_site("attn_out", "layer batch pos d_model", "attention output, as added to the residual stream"),
            _named_site(
                "resid_mid",
                "layer batch pos d_model",
                "the residual stream between the attention and the MLP of a layer",
            ),
            _named_site(
                "mlp_hidden",
                "layer batch pos d_mlp",
                "hidden activations of the MLP (neurons), before the linear map that computes mlp_out",
            ),
            _named_site("mlp_out", "layer batch pos d_model", "MLP output, as added to the residual stream"),
            _named_site("resid_post", "layer batch pos d_model", "the residual stream after a layer"),
            _named_site("query", "layer batch head pos d_head", "queries, after rotary embeddings"),
            _named_site(
                "key", "layer batch kv_head pos d_head", "keys, after rotary embeddings, one per key-value head"
            ),
            _named_site("value", "layer batch kv_head pos d_head", "values, one per key-value head"),
            _named_site(
                "attn_scores", "layer batch head query key", "scaled scores before the softmax, -inf where masked"
            ),
            _named_site("pattern", "layer batch head query key", "attention weights, after the softmax"),
            _named_site(
                "z", "layer batch pos head d_head", "weighted values of each head, before the output projection"
            ),
            _named_site("final_norm", "batch pos d_model", "output of the final norm, before the unembedding"),
            _named_site("output", "batch pos d_out", "model output: logits, or predicted vectors"),
            _named_site("logits", "batch pos d_out", "the same as output, in a model that maps tokens to logits"),
            _named_site(
                "resid_pre_grad", "layer batch pos d_model", "gradient of the summed loss with respect to resid_pre"
            ),
            _named_site(
                "attn_out_grad", "layer batch pos d_model", "gradient of the summed loss with respect to attn_out"
            ),
            _named_site(
                "mlp_out_grad", "layer batch pos d_model", "gradient of the summed loss with respect to mlp_out"
            ),
        ]
    )
)


GRADIENT_SUFFIX = "_grad"


def strip_gradient_suffix(name: str) -> str | None:
    """Return the site that a gradient site differentiates with respect to.

    Args:
        name: the name of a site.

    Returns:
        The name without ``_grad``, or ``None`` if the site is not a gradient.

    >>> strip_gradient_suffix("resid_pre_grad"), strip_gradient_suffix("resid_pre")
    ('resid_pre', None)
    """
    return name.removesuffix(GRADIENT_SUFFIX) if name.endswith(GRADIENT_SUFFIX) else None


def merge_gradient_sites(layers_by_site: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Return the layers of every site, where gradients belong to the site that they differentiate with respect to.

    Args:
        layers_by_site: layers by site.

    >>> merge_gradient_sites({"resid_pre": [0, 1], "attn_out_grad": [1]})
    {'resid_pre': [0, 1], 'attn_out': [1]}
    """
    merged: dict[str, Sequence[int]] = {}
    for name, layers in layers_by_site.items():
        site = strip_gradient_suffix(name) or name
        merged[site] = sorted({*merged.get(site, ()), *layers})
    return merged


OUTPUT_SITES = ("output", "logits")  # two names of one tensor
FINAL_NORM = "final_norm"
OUTPUT_HEAD_SITES = (FINAL_NORM, *OUTPUT_SITES)  # after the last layer
FORWARD_SITES = tuple(
    name for name in SITES if strip_gradient_suffix(name) is None and name != "logits"
)  # need no backward pass

HALTING_SITES: Mapping[str, Site] = MappingProxyType(  # in the output of models that halt
    dict(
        [
            _named_site(
                "halting_probabilities",
                "iteration batch pos",
                "probability of halting in each iteration; 0 after a position has stopped, and at padding",
            ),
            _named_site("expected_steps", "batch pos", "mean number of iterations under the halting probabilities"),
            _named_site("num_steps", "batch pos", "number of iterations that a position has taken"),
        ]
    )
)


CROSS_PREFIX = "cross_"
CROSS_SITES: Mapping[str, Site] = MappingProxyType(  # of the decoder of an encoder-decoder
    dict(
        [
            _named_site("cross_query", "layer batch head pos d_head", "queries of cross-attention"),
            _named_site(
                "cross_key", "layer batch kv_head source d_head", "keys of cross-attention, one per source input"
            ),
            _named_site(
                "cross_value", "layer batch kv_head source d_head", "values of cross-attention, one per source input"
            ),
            _named_site(
                "cross_attn_scores",
                "layer batch head query source",
                "scaled scores of cross-attention before the softmax, -inf where masked",
            ),
            _named_site(
                "cross_pattern", "layer batch head query source", "weights of cross-attention, after the softmax"
            ),
            _named_site(
                "cross_z",
                "layer batch pos head d_head",
                "weighted values of each head of cross-attention, before the output projection",
            ),
            _named_site(
                "cross_attn_out",
                "layer batch pos d_model",
                "output of cross-attention, as added to the residual stream",
            ),
            _named_site(
                "cross_resid_mid",
                "layer batch pos d_model",
                "the residual stream between the cross-attention and the MLP of a layer",
            ),
            _named_site(
                "cross_attn_out_grad",
                "layer batch pos d_model",
                "gradient of the summed loss with respect to cross_attn_out",
            ),
        ]
    )
)


MEMORY_PREFIX = "memory_"
MEMORY_SITES: Mapping[str, Site] = MappingProxyType(  # of the update of the memory after a chunk of positions
    dict(
        [
            _named_site(
                "memory_resid_pre",
                "batch chunk slot d_model",
                "the memory before its update, which the chunk attends to",
            ),
            _named_site(
                "memory_attn_out",
                "batch chunk slot d_model",
                "output of its attention to the chunk, as added to the memory",
            ),
            _named_site("memory_mlp_out", "batch chunk slot d_model", "output of its MLP, as added to the memory"),
            _named_site(
                "memory_resid_post",
                "batch chunk slot d_model",
                "the memory after a chunk, to which the next one attends",
            ),
            _named_site("memory_query", "batch chunk head slot d_head", "queries of the slots of the memory"),
            _named_site("memory_key", "batch kv_head pos d_head", "keys of the positions that the memory attends to"),
            _named_site(
                "memory_value", "batch kv_head pos d_head", "values of the positions that the memory attends to"
            ),
            _named_site(
                "memory_attn_scores",
                "batch head slot key",
                "scaled scores of slots and the positions of each chunk before the softmax, -inf where masked",
            ),
            _named_site(
                "memory_pattern",
                "batch head slot key",
                "weights with which slots attend to the positions of each chunk; they sum to 1 in every chunk",
            ),
            _named_site(
                "memory_z", "batch chunk slot head d_head", "weighted values of each head, before the output projection"
            ),
        ]
    )
)


ALL_SITES: Mapping[str, Site] = MappingProxyType({**SITES, **HALTING_SITES, **CROSS_SITES, **MEMORY_SITES})

ENCODER, DECODER = "encoder", "decoder"
STACKS = (ENCODER, DECODER)


def split_stack(name: str) -> tuple[str | None, str]:
    """Return the stack that the name of a site begins with, and the rest of the name.

    Args:
        name: the name of a site, such as ``encoder.pattern``.

    Returns:
        ``encoder`` or ``decoder``, or ``None`` without one; and the name without it.

    >>> split_stack("encoder.pattern"), split_stack("pattern")
    (('encoder', 'pattern'), (None, 'pattern'))
    """
    stack, dot, rest = name.partition(".")
    return (stack, rest) if dot and stack in STACKS else (None, name)


def locate_site(name: str) -> tuple[str | None, str]:
    """Return the stack of an encoder-decoder that has a site, and the name of the site within the stack.

    Cross-attention and the output are of the decoder, whether or not the name says so.

    Args:
        name: the name of a site, such as ``encoder.pattern``.

    Returns:
        ``encoder`` or ``decoder``, or ``None`` if both stacks have the site and the name has none; and the name without
        it.

    >>> locate_site("encoder.pattern"), locate_site("pattern"), locate_site("cross_z")
    (('encoder', 'pattern'), (None, 'pattern'), ('decoder', 'cross_z'))
    """
    stack, local = split_stack(name)
    is_of_decoder = stack is None and (local in CROSS_SITES or local in OUTPUT_HEAD_SITES)
    return DECODER if is_of_decoder else stack, local


def get_site(name: str) -> Site:
    """Return the site of a given name.

    Args:
        name: a key of :data:`SITES`, :data:`HALTING_SITES`, :data:`CROSS_SITES` or :data:`MEMORY_SITES`; in an
            encoder-decoder also after ``encoder.`` or ``decoder.``.

    Returns:
        The site.

    Raises:
        ValueError: no site has this name.

    >>> get_site("pattern").axes_within_layer
    ('batch', 'head', 'query', 'key')
    """
    local = split_stack(name)[1] if isinstance(name, str) else ""
    if local not in ALL_SITES:
        advice = suggest_site(name, ALL_SITES) if isinstance(name, str) else ""
        raise ValueError(
            f"a site must be one of {', '.join(SITES)}, in a model that halts {', '.join(HALTING_SITES)}, in the "
            f"decoder of an encoder-decoder {', '.join(CROSS_SITES)}, or in a model with a memory "
            f"{', '.join(MEMORY_SITES)}, but got {describe_value(name)}"
            f"{advice and f'; {advice}'}"
        )
    return ALL_SITES[local]
