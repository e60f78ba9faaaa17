"""The closed list of places in a forward pass, the same in every model."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


class UnsupportedModel(ValueError):  # noqa: N818  it names what is wrong, as KeyError does not
    """This model, or one of its layers, has no such place or breaks an identity that the place must satisfy."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place.

    Attributes:
        name: how it is asked for.
        axes: one name per axis, from :mod:`mesascope.axes`.
        about: what is found there.
    """

    name: str
    axes: tuple[str, ...]
    about: str

    @property
    def inner(self) -> tuple[str, ...]:
        """The axes within one layer."""
        return tuple(axis for axis in self.axes if axis != "layer")


def _site(name: str, axes: str, about: str) -> tuple[str, Site]:
    """A site under its name."""
    return name, Site(name=name, axes=tuple(axes.split()), about=about)


SITES: Mapping[str, Site] = MappingProxyType(
    dict(
        [
            _site("resid_pre", "layer batch pos d_model", "the residual stream before a layer"),
            _site("attn_write", "layer batch pos d_model", "what attention adds to the residual stream"),
            _site("mlp_write", "layer batch pos d_model", "what the MLP adds to the residual stream"),
            _site("resid_post", "layer batch pos d_model", "the residual stream after a layer"),
            _site("query", "layer batch head pos d_head", "queries, after rotary positions"),
            _site("key", "layer batch kv_head pos d_head", "keys, after rotary positions, one per key-value head"),
            _site("value", "layer batch kv_head pos d_head", "values, one per key-value head"),
            _site("score", "layer batch head query key", "scaled scores before the softmax, -inf where masked"),
            _site("pattern", "layer batch head query key", "attention weights, by which values are mixed"),
            _site("head_out", "layer batch pos head d_head", "each head's mixed values, before the output projection"),
            _site("prediction", "batch pos d_out", "the model's output: logits, or predicted vectors"),
            _site("resid_pre_grad", "layer batch pos d_model", "gradient of the summed loss by resid_pre"),
            _site("attn_write_grad", "layer batch pos d_model", "gradient of the summed loss by attn_write"),
            _site("mlp_write_grad", "layer batch pos d_model", "gradient of the summed loss by mlp_write"),
        ]
    )
)


GRADIENT = "_grad"


def gradient_of(name: str) -> str | None:
    """The site by which a gradient is taken, or nothing where this is no gradient.

    >>> gradient_of("resid_pre_grad"), gradient_of("resid_pre")
    ('resid_pre', None)
    """
    return name.removesuffix(GRADIENT) if name.endswith(GRADIENT) else None


FORWARD = tuple(name for name in SITES if gradient_of(name) is None)  # what needs no backward pass


def site(name: str) -> Site:
    """The site of this name.

    Raises:
        ValueError: there is none.

    >>> site("pattern").inner
    ('batch', 'head', 'query', 'key')
    """
    if name not in SITES:
        raise ValueError(f"a site must be one of {', '.join(SITES)}, but got {name!r}")
    return SITES[name]
