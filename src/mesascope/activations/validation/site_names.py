"""Sites for names that are none: hook names of TransformerLens, and misspelled names."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

_HOOK = re.compile(r"^(?:blocks\.(?P<layer>\d+)\.)?(?:attn\.|mlp\.|ln_final\.)?hook_(?P<name>\w+)$")
_NORM_HOOK = re.compile(r"^(?:blocks\.\d+\.)?(?P<norm>ln1|ln2|ln_final)\.hook_(?P<name>scale|normalized)$")
_STREAM_OF_NORM = {"ln1": "resid_pre", "ln2": "resid_mid", "ln_final": "resid_post"}
_SITE_OF_HOOK = {  # of TransformerLens; names that both share are not repeated
    "q": "query",
    "k": "key",
    "v": "value",
    "rot_q": "query",
    "rot_k": "key",
    "attn_scores": "attn_scores",
    "pattern": "pattern",
    "z": "z",
    "attn_out": "attn_out",
    "mlp_out": "mlp_out",
    "post": "mlp_hidden",
    "resid_pre": "resid_pre",
    "resid_mid": "resid_mid",
    "resid_post": "resid_post",
    "normalized": "final_norm",
}
_ADVICE_FOR_HOOK = {  # where no site has the tensor
    "result": "record 'z', and call head_out() of the capture",
    "pre": "write 'mlp_hidden', which has the neurons after the activation function; those before it are no site",
    "embed": "write 'resid_pre', and select layer 0 with layers=[0], which is the sum of all embeddings",
    "pos_embed": "write 'resid_pre', and select layer 0 with layers=[0], which is the sum of all embeddings",
}


def find_site_of_hook(name: object) -> str | None:
    """Return the site with the tensor of a hook of TransformerLens; ``None`` for other names.

    Args:
        name: the name of a hook, such as ``blocks.3.attn.hook_z``.

    >>> find_site_of_hook("blocks.3.attn.hook_z")
    'z'
    """
    hook = _HOOK.match(name) if isinstance(name, str) else None
    return _SITE_OF_HOOK.get(hook["name"]) if hook else None


def suggest_site(name: str, sites: Iterable[str]) -> str:
    """Return what to write instead of a name that is no site; empty if no site is similar.

    Args:
        name: the name.
        sites: the names of all sites.

    >>> suggest_site("blocks.3.attn.hook_pattern", ["pattern", "z"])
    "write 'pattern', and select layer 3 with layers=[3]"
    >>> suggest_site("patern", ["pattern", "z"])
    "did you mean 'pattern'?"
    """
    norm = _NORM_HOOK.match(name)
    if norm and (norm["norm"], norm["name"]) != ("ln_final", "normalized"):
        return f"write {_STREAM_OF_NORM[norm['norm']]!r}, which the norm reads; hook_{norm['name']} of it is no site"
    hook = _HOOK.match(name)
    if hook and hook["name"] in _ADVICE_FOR_HOOK:
        return _ADVICE_FOR_HOOK[hook["name"]]
    if hook and (site := find_site_of_hook(name)):
        layer = f", and select layer {hook['layer']} with layers=[{hook['layer']}]" if hook["layer"] else ""
        return f"write {site!r}{layer}"
    similar = get_close_matches(name.lower(), list(sites), n=1)
    return f"did you mean {similar[0]!r}?" if similar else ""
