"""Path patching: the numbers of hooks set by hand on modules, its identities, a planted path found, what cannot be."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

import small
from mesascope.activations import Edit, EditHadNoEffect, UnsupportedModel, capture
from mesascope.ground_truth.models.tokens import PLANTED_HEADS, build_planted_language_model
from mesascope.interventions import logit_difference, patch, path_patch

from .test_changes import runs_of
from .test_sweep import reading_ahead

HEADS, WIDTH = 4, 16
SIZE = WIDTH // HEADS
METRIC = logit_difference(3, 4)


def tokens(seed: int, rows: int = 2, length: int = 6) -> Tensor:
    return torch.randint(0, 20, (rows, length), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The modules of a family, by hand.

    Attributes:
        model: the whole.
        blocks, attn, mlp, out: of every layer; ``out`` is the output projection.
        inner: query, key and value of a head before their rotation: a module of every layer, and columns of its output.
    """

    model: PreTrainedModel
    blocks: list[nn.Module]
    attn: list[nn.Module]
    mlp: list[nn.Module]
    out: list[nn.Module]
    inner: Callable[[str, int, int], tuple[nn.Module, slice]]


def columns(head: int, start: int = 0, stride: int = SIZE) -> slice:
    return slice(start + head * stride, start + head * stride + SIZE)


def llama() -> Parts:
    model = small.llama(initializer_range=0.5)
    blocks = list(model.model.layers)

    def inner(site: str, layer: int, head: int) -> tuple[nn.Module, slice]:
        return getattr(blocks[layer].self_attn, f"{site[0]}_proj"), columns(head)

    attn = [block.self_attn for block in blocks]
    return Parts(
        model=model, blocks=blocks, attn=attn, mlp=[b.mlp for b in blocks], out=[a.o_proj for a in attn], inner=inner
    )


def gpt2() -> Parts:
    torch.manual_seed(0)
    shape = {"n_embd": WIDTH, "n_layer": 3, "n_head": HEADS, "n_positions": 8}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, initializer_range=0.5, **shape)).eval()
    blocks = list(model.transformer.h)

    def inner(site: str, layer: int, head: int) -> tuple[nn.Module, slice]:
        return blocks[layer].attn.c_attn, columns(head, WIDTH * ("query", "key", "value").index(site))

    attn = [block.attn for block in blocks]
    return Parts(
        model=model, blocks=blocks, attn=attn, mlp=[b.mlp for b in blocks], out=[a.c_proj for a in attn], inner=inner
    )


SHAPE = {
    "vocab_size": 20,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "initializer_range": 0.5,
}


def gpt_neox() -> Parts:
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(use_parallel_residual=True, **SHAPE)).eval()
    blocks = list(model.gpt_neox.layers)

    def inner(site: str, layer: int, head: int) -> tuple[nn.Module, slice]:
        at = SIZE * ("query", "key", "value").index(site)
        return blocks[layer].attention.query_key_value, columns(head, at, 3 * SIZE)

    attn = [block.attention for block in blocks]
    return Parts(
        model=model, blocks=blocks, attn=attn, mlp=[b.mlp for b in blocks], out=[a.dense for a in attn], inner=inner
    )


def phi() -> Parts:
    torch.manual_seed(0)
    model = PhiForCausalLM(PhiConfig(**SHAPE)).eval()
    blocks = list(model.model.layers)

    def inner(site: str, layer: int, head: int) -> tuple[nn.Module, slice]:
        return getattr(blocks[layer].self_attn, f"{site[0]}_proj"), columns(head)

    attn = [block.self_attn for block in blocks]
    return Parts(
        model=model, blocks=blocks, attn=attn, mlp=[b.mlp for b in blocks], out=[a.dense for a in attn], inner=inner
    )


FAMILIES = {"llama": llama(), "gpt2": gpt2(), "gpt_neox": gpt_neox(), "phi": phi()}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Parts:
    return FAMILIES[request.param]


class Hand:
    """Forward passes in which parts of outputs are kept or put, by hooks on modules."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.hooks, self.kept = parts, ExitStack(), dict[object, Tensor]()

    def output(self, module: nn.Module, at: slice, *, keep: object = None, put: Tensor | None = None, pos=slice(None)):
        """Keep or put some columns of what a module gives, at some positions."""

        def hook(_module, _args, output):
            first = output[0] if isinstance(output, tuple) else output
            if put is not None:
                first = first.clone()
                first[:, pos, at] = put[:, pos]
            if keep is not None:
                self.kept[keep] = first[..., at].clone()
            return (first, *output[1:]) if isinstance(output, tuple) else first

        self.hooks.callback(module.register_forward_hook(hook).remove)

    def input(self, module: nn.Module, at: slice, *, keep: object = None, put: Tensor | None = None, pos=slice(None)):
        """Keep or put some columns of what a module is given, at some positions."""

        def hook(_module, args, kwargs):
            given = args[0].clone()
            if put is not None:
                given[:, pos, at] = put[:, pos]
            if keep is not None:
                self.kept[keep] = given[..., at].clone()
            return (given, *args[1:]), kwargs

        self.hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def place(self, site: str, layer: int, head: int, **what):
        """The same at a site."""
        parts = self.parts
        if site == "z":
            self.input(parts.out[layer], columns(head), **what)
        elif site == "resid_pre":
            self.input(parts.blocks[layer], slice(None), **what)
        elif site in ("attn_out", "mlp_out"):
            self.output((parts.attn if site == "attn_out" else parts.mlp)[layer], slice(None), **what)
        elif site == "resid_post":
            self.output(parts.blocks[layer], slice(None), **what)
        else:
            self.output(*parts.inner(site, layer, head), **what)

    def run(self, x: Tensor) -> Tensor:
        """One pass; no hook is left."""
        with self.hooks, torch.no_grad():
            return self.parts.model(x).logits


def by_hand(parts: Parts, sender: tuple[str, int, int], receiver: tuple[str, int, int], through: str, pos=slice(None)):
    """The metric along one path, by the definition, three passes for one sender."""
    x, y, layers = tokens(0), tokens(1), range(len(parts.blocks))
    untouched, other = Hand(parts), Hand(parts)
    for layer in layers:
        untouched.output(parts.attn[layer], slice(None), keep=("attn_out", layer))
        untouched.output(parts.mlp[layer], slice(None), keep=("mlp_out", layer))
    untouched.run(x)
    other.place(*sender, keep="sent", pos=pos)
    other.run(y)
    second, site, depth = Hand(parts), sender[0], sender[1]
    second.place(*sender, put=other.kept["sent"], pos=pos)
    if receiver[0] != "output":
        second.place(*receiver, keep="received")
    own = site if site.endswith("write") else "attn_out" if site in ("z", "query", "key", "value") else ""
    for held in {"residual": ("attn_out", "mlp_out"), "mlp": ("attn_out",), "all": ()}[through]:
        for layer in layers[depth:]:
            if (held, layer) not in ((own, depth), receiver[:2]):
                second.place(held, layer, 0, put=untouched.kept[held, layer])
    prediction = second.run(x)
    if receiver[0] != "output":
        third = Hand(parts)
        third.place(*receiver, put=second.kept["received"])
        prediction = third.run(x)
    return float(METRIC(prediction).mean())


RECEIVERS = {
    "output": (None, None),
    "query": ({"layer": 2, "head": 3}, ("query", 2, 3)),
    "key": ({"layer": 2, "kv_head": 1}, ("key", 2, 1)),
    "value": ({"layer": 2, "kv_head": 0}, ("value", 2, 0)),
    "z": ({"layer": 2, "head": 1}, ("z", 2, 1)),
    "attn_out": ({"layer": 2}, ("attn_out", 2, 0)),
    "mlp_out": ({"layer": 1}, ("mlp_out", 1, 0)),
    "resid_pre": ({"layer": 2}, ("resid_pre", 2, 0)),
    "resid_post": ({"layer": 1}, ("resid_post", 1, 0)),
}


THROUGH = ("residual", "mlp", "all")
SENDERS = ("z", "attn_out", "mlp_out", "resid_pre", "query", "key", "value")
OFTEN = {
    ("z", "output", "residual"),
    ("z", "key", "residual"),
    ("z", "query", "mlp"),
    ("z", "mlp_out", "residual"),
    ("resid_pre", "mlp_out", "residual"),
    ("mlp_out", "z", "mlp"),
}
CASES = [
    pytest.param(*case, marks=() if case in OFTEN else pytest.mark.slow)
    for case in product(SENDERS, RECEIVERS, THROUGH)
]


@pytest.mark.parametrize(("site", "receiver", "through"), CASES)
def test_it_is_what_hooks_set_by_hand_give(family, site, receiver, through):
    at, place = RECEIVERS[receiver]
    axis = {"z": "head", "query": "head", "key": "kv_head", "value": "kv_head"}.get(site)
    over = ("layer", *([axis] if axis else []))
    found = path_patch(
        family.model, tokens(0), tokens(1), METRIC, site, over, receiver=receiver, receiver_where=at, through=through
    )
    heads = [0, found.sizes[axis] - 1] if axis else [0]
    for layer, head in product(found["layer"].values.tolist(), heads):
        expected = by_hand(family, (site, layer, head), place or ("output", 3, 0), through)
        value = found["value"].sel({"layer": layer} | ({axis: head} if axis else {}))
        assert float(value) == pytest.approx(expected, abs=2e-5), (layer, head)
    assert float(abs(found["effect"]).max()) > 1e-4


@pytest.mark.parametrize("through", ["residual", "mlp"])
def test_positions_send_one_at_a_time(through):
    family, (at, place) = FAMILIES["llama"], RECEIVERS["query"]
    found = path_patch(
        family.model,
        tokens(0),
        tokens(1),
        METRIC,
        "resid_pre",
        ("layer", "pos"),
        receiver="query",
        receiver_where=at,
        through=through,
    )
    for layer, pos in ((0, 5), (0, 2), (2, 5)):
        expected = by_hand(family, ("resid_pre", layer, 0), place, through, slice(pos, pos + 1))
        assert float(found["value"].sel(layer=layer, pos=pos)) == pytest.approx(expected, abs=2e-5), (layer, pos)
    last_alone = {"layer": 2, "head": 3, "pos": -1}
    alone = path_patch(
        family.model, tokens(0), tokens(1), METRIC, "resid_pre", ("pos",),
        where={"layer": 2}, receiver="query", receiver_where=last_alone, through=through,
    )  # fmt: skip
    assert float(alone["effect"].sel(pos=5)) == pytest.approx(float(found["effect"].sel(layer=2, pos=5)), abs=2e-5)
    assert float(abs(alone["effect"].sel(pos=slice(0, 4))).max()) < 2e-5


@pytest.mark.parametrize("receiver", ["output", "key", "mlp_out"])
@pytest.mark.parametrize("through", THROUGH)
def test_with_its_own_activations_no_bit_changes(receiver, through):
    model, x, y = FAMILIES["gpt2"].model, tokens(0), tokens(1)
    y[:, :-1] = x[:, :-1]  # what comes before the last token is the same on both
    at, where = RECEIVERS[receiver][0], {"pos": slice(0, 5)}
    with pytest.warns(EditHadNoEffect, match="none of"):
        found = path_patch(model, x, y, METRIC, where=where, receiver=receiver, receiver_where=at, through=through)
    for name in ("effect", "recovered", "changed"):
        assert (found[name] == 0).all()
    assert (found["value"] == found["intact"]).all()


def test_through_all_into_the_last_stream_is_a_plain_patch(family):
    plain = patch(family.model, tokens(0), tokens(1), METRIC, "z", ("layer", "head"))
    for receiver in ({"receiver": "output"}, {"receiver": "resid_post", "receiver_where": {"layer": -1}}):
        found = path_patch(family.model, tokens(0), tokens(1), METRIC, through="all", **receiver)
        assert (found["value"] == plain["value"]).all()


@pytest.mark.parametrize("receiver", ["output", "resid_post"])
def test_the_first_stream_through_all_is_the_other_run_bit_for_bit(family, receiver):
    at, first = {"layer": -1} if receiver == "resid_post" else None, {"layer": 0}
    found = path_patch(
        family.model, tokens(0), tokens(1), METRIC, "resid_pre", "layer",
        where=first, receiver=receiver, receiver_where=at, through="all",
    )  # fmt: skip
    assert float(found["value"][0]) == float(found["target"])
    assert float(found["recovered"][0]) == 1.0


HALF = 16


def halves(seed: int) -> tuple[Tensor, Tensor]:
    """Twice the same tokens in a row, and other tokens in their place."""
    drawn = torch.randperm(39, generator=torch.Generator().manual_seed(seed))[: 2 * HALF].add(1).view(2, 1, HALF)
    clean, other = (torch.cat([torch.zeros(1, 1).long(), half, half], 1) for half in drawn)
    return clean, other


def test_direct_effects_without_norms_are_the_direct_attribution_of_the_difference():
    model, (x, y) = build_planted_language_model(), halves(0)
    ours, theirs = (capture(model, each, ["resid_pre", "attn_out", "resid_post", "output"]) for each in (x, y))
    assert not any("mlp" in name for name, _ in model.named_modules())

    def metric(prediction: Tensor) -> Tensor:
        return prediction[:, -1, int(x[0, 1])] - 0.3 * prediction[:, 3, 7]

    total = 0.0
    for site, layers in (("attn_out", [0, 1]), ("resid_pre", [0])):
        found = path_patch(model, x, y, metric, site, "layer", where={"layer": layers})
        for layer in layers:
            write = (theirs[site] - ours[site])[layer]
            expected = float(metric(ours.readout.attribute_logits(write, ours["resid_post"][-1])))
            assert float(found["effect"].sel(layer=layer)) == pytest.approx(expected, abs=1e-5)
        total += float(found["effect"].sum())
    assert total == pytest.approx(float(found["target"] - found["intact"]), abs=1e-5)


INDUCTION = {
    "layer": 1,
    "head": next(place for place, each in PLANTED_HEADS.items() if "induction" in each.expected_role)[1],
}
PREVIOUS = next(place for place, each in PLANTED_HEADS.items() if each.expected_role == "previous token")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
@pytest.mark.parametrize("through", ["residual", "all"])
def test_the_previous_token_head_is_heard_by_the_keys_of_the_induction_head_and_by_nobody_else(seed, through):
    model, (x, y) = build_planted_language_model(seed), halves(seed)
    metric = logit_difference(x[:, 1], y[:, 1])
    places = {"query": INDUCTION} | {site: {"layer": 1, "kv_head": INDUCTION["head"]} for site in ("key", "value")}
    found = {
        site: path_patch(model, x, y, metric, receiver=site, receiver_where=at, through=through)["effect"].sel(layer=0)
        for site, at in places.items()
    }
    direct = path_patch(model, x, y, metric)["effect"].sel(layer=0, head=PREVIOUS[1])
    heard, others = found["key"].sel(head=PREVIOUS[1]), found["key"].drop_sel(head=PREVIOUS[1])
    assert float(heard) < -7.9  # the answer loses what the induction head gives it
    assert float(abs(others).max()) < 1e-4  # decoys
    assert float(abs(found["query"]).max()) < 1e-4
    assert float(abs(found["value"]).max()) < 1e-4
    assert float(abs(direct)) < 1e-4
    whole = patch(model, x, y, metric, "z", ("layer", "head"))["effect"].sel(layer=0, head=PREVIOUS[1])
    assert float(whole) == pytest.approx(float(heard), abs=0.1)  # all but a decoy that reads what came before


def test_a_direct_effect_runs_the_layers_of_senders_and_the_last():
    model = small.llama(initializer_range=0.5)
    calls, heard = [0, 0, 0], list[tuple[int, int]]()
    path_patch(model, tokens(0), tokens(1), METRIC)  # what is known of the model is known
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: calls.__setitem__(number, calls[number] + 1))
    capture(model, tokens(0), ["z", "mlp_out", "attn_out"])
    calls[:] = [0, 0, 0]
    path_patch(model, tokens(0), tokens(1), METRIC, progress=lambda *news: heard.append(news))
    assert heard[-1] == (12, 12)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert max(calls) <= 16  # one pass for each of 12 senders, in all layers, would be 36 and more


def test_how_many_run_together_changes_no_number():
    one, many = (
        path_patch(MODEL, tokens(0), tokens(1), METRIC, receiver="key", receiver_where={"layer": 2}, max_positions=size)
        for size in (1, 4096)
    )
    assert one["value"].values == pytest.approx(many["value"].values, abs=1e-6)


MODEL = FAMILIES["llama"].model


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"site": "heads"}, "a site must be one of resid_pre, attn_out"),
        ({"receiver": "keys"}, "a site must be one of resid_pre, attn_out"),
        (
            {"receiver": "resid_pre_grad", "receiver_where": {"layer": 1}},
            "must act in the forward pass, but resid_pre_grad",
        ),
        (
            {"receiver": "key", "receiver_where": {"layer": 2, "head": 1}},
            r"must name axes of key \(layer, batch, kv_head, pos, d_head",
        ),
        ({"receiver": "key", "receiver_where": {"layer": 3}}, "must lie within 3 entries, but got 3"),
        ({"receiver": "key", "receiver_where": {"layer": 2, "kv_head": 2}}, "must lie within 2 entries, but got 2"),
        (
            {"receiver": "key", "receiver_where": {"layer": 2, "kv_head": []}},
            r"receiver_where\['kv_head'\] selects nothing",
        ),
        ({"receiver": "key"}, "in one layer, but key is selected in 3; pass receiver_where="),
        ({"receiver": "key", "receiver_where": {"layer": [1, 2]}}, "in one layer, but key is selected in 2"),
        ({"receiver_where": {"layer": 2}}, "no indices to select, but got {'layer': 2}"),
        ({"through": "direct"}, "through must be one of residual, mlp, all, but got 'direct'"),
        ({"axes": ("layer", "kv_head")}, "axes must name axes of z"),
        ({"axes": ("head",)}, r"in one layer, but z is selected in layers \[0, 1, 2\] at once; add layer to axes"),
        ({"where": {"head": 4}}, "must lie within 4 entries, but got 4"),
        ({"where": {"layer": 7}}, "must lie within 3 entries, but got 7"),
        ({"max_positions": 0}, "max_positions must be 1 or more"),
        ({"metric": "loss"}, "a metric that differs between the runs, such as logit_difference, but got 'loss'"),
        ({"metric": logit_difference(3, 20)}, "must be token ids from 0 to 19"),
        ({"source": tokens(1, length=11)}, r"same length, but got shapes \(2, 12\) and \(2, 11\)"),
        (
            {"receiver": "key", "receiver_where": {"layer": 0}},
            "precede its receiver, but z in all selected layers does not precede key at layer 0",
        ),
        (
            {"receiver": "query", "receiver_where": {"layer": 1}, "where": {"layer": [0, 1]}},
            r"precede its receiver, but z in layers \[1\] does not precede query at layer 1; choose earlier",
        ),
        (
            {"site": "query", "receiver": "key", "receiver_where": {"layer": 1}, "where": {"layer": 1}},
            "precede its receiver, but query in all selected layers does not precede key at layer 1",
        ),
        (
            {
                "site": "resid_pre",
                "axes": "pos",
                "receiver": "resid_pre",
                "receiver_where": {"layer": 1},
                "where": {"layer": 1},
            },
            "precede its receiver, but resid_pre in all selected layers",
        ),
    ],
)
def test_it_is_refused_before_the_model_runs_on_the_sequences(asked, line):
    model = small.llama()
    passes = runs_of(model, 12)
    asked = {"inputs": tokens(0, length=12), "source": tokens(1, length=12), "metric": METRIC} | asked
    with pytest.raises((ValueError, IndexError), match=line):
        path_patch(model, **asked)
    assert not passes


def test_a_metric_that_is_the_same_on_both_runs_is_refused():
    with pytest.raises(ValueError, match=r"must differ between the two runs, but logit_difference is .* on both"):
        path_patch(MODEL, tokens(0), tokens(0), METRIC)


@pytest.mark.parametrize("site", ["z", "attn_out", "value"])
def test_heads_reach_the_mlp_of_their_own_layer_where_it_reads_after_them(family, site):
    asked = {
        "receiver": "mlp_out",
        "receiver_where": {"layer": 1},
        "where": {"layer": 1},
        "axes": "pos" if site != "value" else "kv_head",
    }
    if not family.model.config.model_type.startswith(("gpt_neox", "phi")):
        assert float(abs(path_patch(family.model, tokens(0), tokens(1), METRIC, site, **asked)["effect"]).max()) > 1e-3
        return
    with pytest.raises(ValueError, match="in all selected layers does not precede mlp_out at layer 1"):
        path_patch(family.model, tokens(0), tokens(1), METRIC, site, **asked)


def test_layers_before_the_receiver_are_senders_unless_some_are_named():
    def layers(**asked) -> list[int]:
        return path_patch(MODEL, tokens(0), tokens(1), METRIC, **asked)["layer"].values.tolist()

    assert layers(receiver="key", receiver_where={"layer": 2}) == [0, 1]
    assert layers(receiver="mlp_out", receiver_where={"layer": 1}) == [0, 1]
    assert layers(receiver="key", receiver_where={"layer": -1}, where={"layer": [1]}) == [1]
    assert layers() == [0, 1, 2]


def test_what_happens_to_the_stream_between_layers_is_no_plain_residual():
    model = small.llama(initializer_range=0.5)
    model.model.layers[1].register_forward_pre_hook(lambda _, given: (2 * given[0], *given[1:]))
    with pytest.raises(UnsupportedModel, match="LlamaForCausalLM changes the stream between layers 0 and 1; use thr"):
        path_patch(model, tokens(0), tokens(1), METRIC)
    found = path_patch(model, tokens(0), tokens(1), METRIC, through="all")
    plain = patch(model, tokens(0), tokens(1), METRIC, "z", ("layer", "head"))
    assert (found["value"] == plain["value"]).all()
    assert path_patch(model, tokens(0), tokens(1), METRIC, where={"layer": [1, 2]}).sizes["layer"] == 2


def test_a_layer_whose_writes_are_not_known_cannot_be_held():
    model = reading_ahead()
    with pytest.raises(
        UnsupportedModel, match=r"must be available .* but GPT2LMHeadModel lacks attn_out in layers \[2\] \(no module"
    ):
        path_patch(model, tokens(0), tokens(1), METRIC)
    found = path_patch(model, tokens(0), tokens(1), METRIC, through="all")
    plain = patch(model, tokens(0), tokens(1), METRIC, "z", ("layer", "head"))
    assert (found["value"] == plain["value"]).all()


def test_what_a_layer_reads_past_the_stream_is_as_in_the_untouched_run():
    model, memory = gpt2().model, {}
    first, last = model.transformer.h[0].attn, model.transformer.h[2].attn
    own_first, own_last = first.forward, last.forward

    def remember(hidden, *args, **kwargs):
        out = own_first(hidden, *args, **kwargs)
        memory["first"] = out[0]
        return out

    first.forward = remember
    last.forward = lambda hidden, *args, **kwargs: own_last(hidden + memory["first"], *args, **kwargs)
    x, y, at = tokens(0), tokens(1), {"layer": 2, "head": 1}
    found = path_patch(
        model, x, y, METRIC, "mlp_out", "layer", receiver="z", receiver_where=at, where={"layer": [0, 1]}
    )
    heads = path_patch(
        model, x, y, METRIC, "attn_out", "layer", receiver="z", receiver_where=at, where={"layer": [0, 1]}
    )
    plain, other = (capture(model, each, ["resid_pre", "mlp_out", "attn_out"]) for each in (x, y))
    for site, values in (("mlp_out", found), ("attn_out", heads)):
        for layer in (0, 1):
            stream = plain["resid_pre"][2] + other[site][layer] - plain[site][layer]
            moved = capture(model, x, ["z"], edits=[put("resid_pre", 2, stream)])["z"][2]
            edit = put("z", 2, moved, {"head": 1})
            expected = METRIC(capture(model, x, ["output"], edits=[edit])["output"]).mean()
            assert float(values["value"].sel(layer=layer)) == pytest.approx(float(expected), abs=2e-5)


def put(site: str, layer: int, value: Tensor, where: dict | None = None) -> Edit:
    return Edit(site=site, where={"layer": layer, **(where or {})}, source={layer: value}, fn=lambda old, new: new)
