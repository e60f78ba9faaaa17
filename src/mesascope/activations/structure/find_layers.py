"""Where the sites are in a model: read from what one forward pass did, never from names.

A layer is the element of a list of modules in which an attention module stands. What it writes to the residual
stream is whatever sums, to rounding, to the difference that it makes.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.hooks import attention_math
from mesascope.activations.hooks.attention_interface import Attended
from mesascope.activations.layer_spec import Layer, Weights, Write
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.structure.residual_updates import find_writes
from mesascope.activations.structure.trace import Attention, Call, Trace
from mesascope.activations.tolerances import close, distance, same, tolerance

STRONG = 16.0  # by which queries are multiplied to see whether scores are capped
ATTENTION_SITES = ("query", "key", "value", "score", "pattern", "head_out")


def read_layers(model: PreTrainedModel, trace: Trace) -> tuple[Layer, ...]:
    """The layers of a model, in order, and where their sites are.

    Args:
        model: any causal language model, or one of ours.
        trace: its forward pass on a probe.

    Raises:
        UnsupportedModel: attention is not dispatched through transformers, or the layers are not a plain sequence.
    """
    name = type(model).__name__
    if not trace.attentions:
        raise UnsupportedModel(
            f"attention must go through transformers' attention interface, but {name} does its own attention, or has "
            "none; use a model whose modelling file dispatches it"
        )
    blocks = _blocks(model, trace, name)
    return tuple(_layer(trace, block, name) for block in blocks)


def softcap(model: PreTrainedModel) -> float | None:
    """At what the model's configuration caps its logits, if it does."""
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def _blocks(model: PreTrainedModel, trace: Trace, name: str) -> list[Call]:
    """The calls of the decoder blocks: the elements of the one list that holds the attention modules."""
    lists = Counter(_list_of(model, each.name) for each in trace.attentions)
    if len(lists) != 1 or "" in lists:
        raise UnsupportedModel(
            f"attention modules must stand in one list of layers, but those of {name} stand in "
            f"{', '.join(repr(each) for each in lists)}; open the decoder alone"
        )
    (home,) = lists
    elements = model.get_submodule(home)
    calls = [trace.of(f"{home}.{number}") for number, _ in elements.named_children()]
    repeated = [number for number, each in enumerate(calls) if len(each) > 1]
    if repeated:
        raise UnsupportedModel(
            f"a layer must be called once in a forward pass, but {name} calls {home}.{repeated[0]} "
            f"{len(calls[repeated[0]])} times"
        )
    blocks = [each[0] for each in calls if each]
    if not blocks or any(a.start > b.start for a, b in itertools.pairwise(blocks)):
        raise UnsupportedModel(
            f"layers must be called as modules, in their order, but those of {name} in {home} are not"
        )
    return blocks


def _list_of(model: PreTrainedModel, name: str) -> str:
    """The outermost list of modules in which a module stands; the empty string if there is none."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        parent = ".".join(parts[:length])
        if isinstance(model.get_submodule(parent), nn.ModuleList):
            return parent
    return ""


def _layer(trace: Trace, block: Call, name: str) -> Layer:
    """One layer, from its call."""
    attentions = [each for each in trace.attentions if block.encloses(each)]
    if len(attentions) > 1:
        raise UnsupportedModel(f"a layer must attend once, but {block.name} of {name} attends {len(attentions)} times")
    if not attentions:
        return _without_attention(block, name)
    attention = attentions[0]
    attn_write, mlp_write, missing = find_writes(trace, block, attention, _stream(block, name)[1])
    projection, why = _projection(trace, block, attention, attn_write and attn_write.module)
    found, troubles = _weights(attention)
    if attention.output.shape[:3] != (*block.result.shape[:2], attention.call.query.shape[1]):
        troubles["head_out"] = f"the attention function gives the shape {tuple(attention.output.shape)}"
    return Layer(
        block=block.name,
        stream_at=_stream(block, name)[0],
        attention=attention.name,
        projection=projection,
        attn_write=attn_write,
        mlp_write=mlp_write,
        weights=found,
        heads=attention.call.query.shape[1],
        kv_heads=attention.call.key.shape[1],
        missing=missing | troubles | ({} if projection else {"projection": why}),
        parallel=mlp_write is not None and not _reads_between(trace, block, attn_write, _stream(block, name)[1]),
    )


def _reads_between(trace: Trace, block: Call, attn_write: Write | None, before: Tensor) -> bool:
    """Whether something in a block reads the stream after attention's write, as the MLP of most models does."""
    if attn_write is None:
        return False
    written = trace.of(attn_write.module)[0].result.reshape(before.shape)
    between = before + attn_write.gain * written
    given = [x for call in trace.within(block) for x in call.inputs.values()]
    return any(x.shape == between.shape and x.is_floating_point() and close(x, between) for x in given)


def _without_attention(block: Call, name: str) -> Layer:
    """A layer that mixes positions in another way: its stream can be seen, and nothing else."""
    why = "the layer has no softmax attention that goes through the attention interface"
    return Layer(
        block=block.name,
        stream_at=_stream(block, name)[0],
        attention=None,
        projection=None,
        attn_write=None,
        mlp_write=None,
        weights=None,
        heads=0,
        kv_heads=0,
        missing=dict.fromkeys((*ATTENTION_SITES, "attn_write", "mlp_write", "projection"), why),
    )


def _stream(block: Call, name: str) -> tuple[int | str, Tensor]:
    """Which argument of a block is the residual stream: the first that has the shape of its output."""
    out = block.output
    if out is not None and out.ndim == 3:
        for at, given in block.inputs.items():
            if given.shape == out.shape and given.dtype == out.dtype:
                return at, given
    shape = None if out is None else tuple(out.shape)
    raise UnsupportedModel(
        f"a layer must map the stream (batch, pos, d_model) to itself, but {block.name} of {name} gives {shape}"
    )


def _projection(trace: Trace, block: Call, attention: Attention, write: str | None) -> tuple[str | None, str]:
    """The module that alone maps head outputs to what attention writes, or why there is none."""
    heads = attention.output.flatten(2)
    later = [call for call in trace.within(block) if call.start > attention.end]
    fed = [
        call
        for call in later
        if any(given.shape == heads.shape and same(given, heads) for given in call.inputs.values())
    ]
    if not fed:
        return None, "head outputs pass through something else before the output projection"
    if write is None:
        return None, "what attention writes is not known"
    written = trace.of(write)[0].output
    for call in fed:
        if call.output is not None and written is not None and same(call.output.reshape(written.shape), written):
            return call.name, ""
    return None, "a norm or a gate stands between the output projection and the residual stream"


def _weights(attention: Attention) -> tuple[Weights | None, dict[str, str]]:
    """How the attention weights of a layer are had, tried on the probe; or why they cannot be."""
    value, out = attention.call.value, attention.output
    tried: list[str] = []
    for how in ("returned", "plain", "delegate", "unit"):
        pattern = _try(how, attention)
        if pattern is None:
            continue
        mixed = attention_math.mix(pattern, value)
        if mixed.shape == out.shape and close(mixed, out):
            return _described(how, attention, pattern)
        miss = f"by {distance(mixed, out):.1e}" if mixed.shape == out.shape else "in shape"
        tried.append(f"{how} weights miss the head outputs {miss}")
    why = "attention weights cannot be had: " + ("; ".join(tried) or "the kernel returns none")
    return None, {"pattern": why, "score": why}


def _try(how: str, attention: Attention) -> Tensor | None:
    """Attention weights of the probe in one way, or nothing if it is not to be had or is not the model's own."""
    call = attention.call
    if how == "returned":
        shape = (*call.query.shape[:3], call.key.shape[2])
        return attention.returned if attention.returned is not None and attention.returned.shape == shape else None
    own = _eager_weights(call, call.query)
    if how == "delegate":
        return own
    if how == "unit":
        return _asked(lambda: call.run_unit(call.query, call.key))
    return (
        attention_math.pattern_of(call.scores(call.query, call.key), call.added(call.query, call.key))
        if (own is None or _plainness(call) <= tolerance(own))
        else None
    )


def _plainness(call: Attended) -> float:
    """How far the softmax of scaled scores is from the model's own eager weights, for these queries and for strong
    ones, on which a soft cap would show; infinite if the model has none of its own.
    """
    worst = 0.0
    for query in (call.query, STRONG * call.query):
        own = _eager_weights(call, query)
        if own is None:
            return math.inf
        score = attention_math.score_of(call.scores(query, call.key), call.added(query, call.key))
        worst = max(
            worst, distance(attention_math.pattern_of_score(score), own) if own.shape == score.shape else math.inf
        )
    return worst


def _eager_weights(call: Attended, query: Tensor) -> Tensor | None:
    """What the model's own eager function says about the probe, if it has one that can be asked."""
    return _asked(lambda: call.run_eager(query, call.key, call.value))


def _asked(eager: Callable[[], Tensor | None]) -> Tensor | None:
    """What the model's own eager function answers, if it has one that can be asked."""
    try:
        return eager()
    except (UnsupportedModel, TypeError, AttributeError, RuntimeError, ValueError):
        return None


def _described(how: str, attention: Attention, pattern: Tensor) -> tuple[Weights, dict[str, str]]:
    """What can be done with attention weights that reproduce the output."""
    call = attention.call
    score = attention_math.score_of(call.scores(call.query, call.key), call.added(call.query, call.key))
    miss = distance(attention_math.pattern_of_score(score), pattern)
    strong = _plainness(call)
    miss = miss if math.isinf(strong) else max(miss, strong)
    total = pattern.double().sum(-1)
    softmax = close(total.to(pattern.dtype), torch.ones_like(total, dtype=pattern.dtype))
    scored = miss <= tolerance(pattern)
    why = f"the softmax of the scaled scores misses the attention weights by {miss:.1e}"
    return Weights(how=how, scored=scored, softmax=softmax), {} if scored else {"score": why}
