"""Captures and edits of recurrent transformers with chunks hold what a loop over chunks in plain PyTorch computes."""

import pickle
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cases import covering
from mesascope import capture
from mesascope.activations import Edit, EditHadNoEffect, LayerReduction, Reduction
from mesascope.activations.capture import attention_layers, estimate_capture_bytes
from mesascope.activations.generation.apply_edits import apply_edits
from mesascope.activations.linear_inputs import sample_linear_inputs
from mesascope.activations.sites import CROSS_SITES, HALTING_SITES, MEMORY_SITES, SITES, UnsupportedModel, get_site
from mesascope.analyses import cross_copying, norms, positional_attention, run_analyses
from mesascope.interventions import knock_out_attention, mean, replace, resample, scale, sweep, zero
from mesascope.models.recurrent.config import RecurrentConfig
from mesascope.models.recurrent.model import RecurrentTransformer
from mesascope.models.recurrent.unroll import unroll_steps
from recurrent_models import some_tokens

from .chunk_loops import MEMORY, SIDES, chunked, padded, run_by_hand, stream_sites

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "TLB": ("TLB", {}),
    "TLB of two steps": ("TLB", {"max_iterations": 2}),
    "GUTLB": ("GUTLB", {}),
    "GUTLB without gate": ("GUTLB", {"gate": False}),
    "UT with chunks": ("GUTLB", {"gate": False, "halt": "token", "transition": False}),
}
CHUNK_FIELDS = "hidden_size num_attention_heads intermediate_size halt max_iterations chunk_length memory_slots".split()
FIXED = ["TLB", "TLB of two steps"]
IN_LAYERS = [name for name in SITES if "layer" in SITES[name].axes and not name.endswith("_grad")]
CROSS = [name for name in CROSS_SITES if name not in ("cross_key", "cross_value", "cross_attn_out_grad")]


def build(kind: str, **fields: Any):
    name, settings = KINDS[kind]
    return chunked(name, **settings | fields)


def real_positions(mask: Tensor | None) -> Tensor:
    return torch.ones(3, 11, dtype=torch.bool) if mask is None else mask.bool()


def by_call(acts, site: str, layer: int, iteration: int) -> Tensor:
    return acts[site][layer] if acts.iterations is None else acts[site][layer, iteration]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "side"), covering(KINDS, SIDES))
def test_sites_are_those_of_a_loop_over_chunks_by_hand(kind, side):
    model, x, mask = build(kind), some_tokens(), padded(side)
    expected, real = run_by_hand(model, x, mask), real_positions(mask)
    halting = [] if model.halting is None else list(HALTING_SITES)
    acts = capture(model, x, [*stream_sites(model), *MEMORY, *halting, "logits"], attention_mask=mask)
    assert torch.equal(acts.chunks, expected["chunks"])
    if acts.iterations is not None:
        assert acts.iterations_run.tolist() == [expected["ran"]] * 3
    if kind == "GUTLB" and side == "none":
        assert len({*expected["ran"]}) > 1  # chunks stop after different numbers of iterations
    for site in stream_sites(model):
        for layer in range(2):
            for iteration in range(model.config.max_iterations):
                found = by_call(acts, site, layer, iteration)
                value = expected.get((site, layer, iteration), torch.full_like(found, torch.nan))
                assert torch.equal(found.isnan(), value.isnan()), (site, layer, iteration)
                torch.testing.assert_close(found[real], value[real], rtol=1e-4, atol=1e-5, equal_nan=True)
    for site in MEMORY:
        torch.testing.assert_close(acts[site], expected[site, 0, 0], rtol=1e-4, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(acts["logits"][real], expected["logits"][real], rtol=1e-4, atol=1e-5)
    output = model(x, attention_mask=mask)
    assert torch.equal(acts["logits"], output.logits)
    for site in halting:
        assert torch.equal(acts[site], output[site])
    if halting:
        torch.testing.assert_close(acts["halting_probabilities"], expected["p"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "side"), covering(["TLB", "GUTLB without gate"], SIDES))
def test_attention_is_within_chunks_and_to_the_memory(kind, side):
    model, x, mask = build(kind), some_tokens(), padded(side)
    sites = ["attn_scores", "pattern", "value", "z", "cross_attn_scores", "cross_pattern", "memory_attn_scores"]
    acts = capture(model, x, [*sites, "memory_pattern", "memory_value", "memory_z"], attention_mask=mask)
    real, chunks, last = real_positions(mask), acts.chunks, acts.chunks.max()
    same_chunk = chunks[:, None, :, None] == chunks[:, None, None]
    for number in range(model.config.max_iterations):
        pattern = by_call(acts, "pattern", 1, number)
        ran = ~pattern[:, :1].isnan().any(-1, keepdim=True)
        assert not pattern[(~same_chunk & ran).expand_as(pattern)].any()
        assert by_call(acts, "attn_scores", 1, number)[(~same_chunk & ran).expand_as(pattern)].isneginf().all()
        z = by_call(acts, "z", 1, number)
        mixed = torch.einsum("bhqk,bhkd->bqhd", pattern, by_call(acts, "value", 1, number).nan_to_num())
        torch.testing.assert_close(mixed[real], z[real], equal_nan=True)
        scores = by_call(acts, "cross_attn_scores", 1, number)
        torch.testing.assert_close(scores.softmax(-1), by_call(acts, "cross_pattern", 1, number), equal_nan=True)
    written = acts["memory_pattern"]  # slots attend to the chunk of each key, and nothing is written after the last one
    assert torch.equal(written.isnan().all(2).all(1), chunks == last)
    for chunk in range(int(last)):
        keys = (chunks == chunk)[:, None, None] & ~written.isnan()
        weights = torch.where(keys, written, 0)
        some = (chunks == chunk) & real
        torch.testing.assert_close(weights.sum(-1)[some.any(1)], torch.ones_like(weights.sum(-1))[some.any(1)])
        assert not weights.movedim(-1, 1)[~real].any() or not some.any(1).all()
        mixed = torch.einsum("bhsk,bhkd->bshd", weights, acts["memory_value"].nan_to_num())
        torch.testing.assert_close(mixed, acts["memory_z"][:, chunk])


@pytest.mark.parametrize(("side", "layers"), [("none", 1), ("none", 2), ("left", 2), ("between", 1)])
def test_fixed_steps_equal_the_unrolled_copy_bit_for_bit(side, layers):
    model, x, mask = build("TLB", max_iterations=2, num_hidden_layers=layers), some_tokens(), padded(side)
    unrolled, sites = unroll_steps(model), [*IN_LAYERS, *CROSS, *MEMORY_SITES, "logits"]
    gradients = ["resid_pre_grad", "mlp_out_grad"]  # summed over iterations in another order, at the keys of the memory
    acts, expected = (capture(each, x, [*sites, *gradients], attention_mask=mask) for each in (model, unrolled))
    assert acts.iterations == (0, 1)
    assert expected.iterations is None
    for site in sites:
        assert torch.equal(acts.unrolled()[site].nan_to_num(7), expected[site].nan_to_num(7)), site
    for site in gradients:
        torch.testing.assert_close(acts.unrolled()[site], expected[site])
    assert acts.unrolled().axes == expected.axes
    edit, other = zero("cross_z", {"layer": 0, "iteration": 1}), zero("cross_z", {"layer": layers})
    edited = [capture(m, x, ["logits"], edits=e, attention_mask=mask) for m, e in ((model, edit), (unrolled, other))]
    assert torch.equal(edited[0]["logits"], edited[1]["logits"])
    assert not torch.equal(edited[0]["logits"], acts["logits"])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["TLB of two steps", "GUTLB"])
def test_one_chunk_whose_memory_writes_nothing_is_a_model_without_chunks(kind):
    model, x = build(kind, chunk_length=16), some_tokens()
    for layer in model.layers:
        layer.memory_attention.o_proj.weight.zero_()
        layer.memory_attention.o_proj.bias.zero_()
    plain = build(kind, chunk_length=None, memory_slots=None)
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    sites = [site for site in IN_LAYERS if site in ("resid_pre", "resid_post", "query", "key", "value", "pattern", "z")]
    acts, expected = capture(model, x, [*sites, "logits"]), capture(plain, x, [*sites, "logits"])
    for site in (*sites, "logits"):
        assert torch.equal(acts[site].nan_to_num(7), expected[site].nan_to_num(7)), site


def push(site: str, layer: int, iteration: int, chunk: int | None, direction: Tensor, real: Tensor):
    """An edit by hand that adds a direction to a site of one call, in one chunk or in all."""

    def edit(name: str, at: int, step: int, number: int, value: Tensor, columns: Tensor) -> Tensor:
        if (name, at, step) != (site, layer, iteration) or chunk not in (None, number):
            return value
        is_real = torch.ones_like(columns) if name in MEMORY else real.gather(1, columns)
        return value + direction * is_real[..., None]

    return edit


@torch.no_grad()
@pytest.mark.parametrize(
    ("model_and_side", "chunk"),
    covering([("TLB", "none"), ("TLB", "between"), ("GUTLB", "left"), ("UT with chunks", "none")], [None, 1]),
)
def test_edits_are_those_of_the_loop_by_hand(model_and_side, chunk):
    kind, side = model_and_side
    model, x, mask = build(kind, **{} if kind == "TLB" else {"max_iterations": 4}), some_tokens(), padded(side)
    real, direction = real_positions(mask), torch.randn(16, generator=torch.Generator().manual_seed(2))
    sites = stream_sites(model)
    plain = capture(model, x, ["resid_pre", "logits"], attention_mask=mask)
    for site in (*sites, *MEMORY):
        layer, iteration = (0, 0) if site in MEMORY else (1, min(1, model.config.max_iterations - 1))
        where: dict[str, Any] = {} if chunk is None else {"chunk": chunk}
        if site not in MEMORY:
            where |= {"layer": layer} | ({} if plain.iterations is None else {"iteration": iteration})
        edit = Edit(site=site, where=where, fn=lambda old: old + direction)
        acts = capture(model, x, [*sites, *MEMORY, "logits"], edits=edit, attention_mask=mask)
        expected = run_by_hand(model, x, mask, push(site, layer, iteration, chunk, direction, real))
        for name in MEMORY:
            torch.testing.assert_close(acts[name], expected[name, 0, 0], rtol=1e-4, atol=5e-5, equal_nan=True)
        for name, at, step in [key for key in expected if isinstance(key, tuple) and key[0] in sites]:
            found, value = by_call(acts, name, at, step)[real], expected[name, at, step][real]
            torch.testing.assert_close(found, value, rtol=1e-4, atol=5e-5, equal_nan=True)
        torch.testing.assert_close(acts["logits"][real], expected["logits"][real], rtol=1e-4, atol=5e-5)
        assert not torch.equal(acts["logits"], plain["logits"])
        if chunk is not None:  # earlier chunks do not change
            earlier = acts.chunks < chunk + (site in MEMORY)
            assert torch.equal(acts["logits"][earlier], plain["logits"][earlier])


@torch.no_grad()
@pytest.mark.parametrize(
    ("site", "side"),
    covering(
        [*(name for name in (*IN_LAYERS, *CROSS) if not name.endswith("resid_mid")), *MEMORY_SITES], ["none", "left"]
    ),
)
def test_own_activations_change_nothing_and_those_of_another_run_are_taken(site, side):
    model, x, mask = build("TLB of two steps"), some_tokens(), padded(side)
    other = x.roll(1, 0) if side == "none" else x.flip(1) * 0 + (x + 1) % 7
    same, source = (capture(model, each, [site, "logits"], attention_mask=mask) for each in (x, other))
    with pytest.warns(EditHadNoEffect):
        again = capture(model, x, ["logits"], edits=replace(site, same), attention_mask=mask)
    assert torch.equal(again["logits"], same["logits"])
    acts = capture(model, x, [site, "logits"], edits=replace(site, source), attention_mask=mask)
    real = real_positions(mask)
    if site in ("resid_post", "memory_resid_post", "z", "cross_z", "memory_z"):
        axes = get_site(site).axes_within_layer
        found, value = ((each[site] if site in MEMORY_SITES else each[site][-1, -1]) for each in (acts, source))
        found, value = ((v[real] if "pos" in axes else v.nan_to_num(7)) for v in (found, value))
        assert torch.equal(found, value)
    if site == "resid_post":
        assert torch.equal(acts["logits"][real], source["logits"][real])
    assert not torch.equal(acts["logits"], same["logits"])


@pytest.mark.parametrize(
    ("kind", "side"), covering(["TLB of two steps", "GUTLB", "GUTLB without gate"], ["none", "left"])
)
def test_gradients_are_those_of_the_loop_by_hand(kind, side):
    """Gradients of a chunk go through later chunks, too, by the memory."""
    model, x, mask = build(kind), some_tokens(), padded(side)
    real, sites = real_positions(mask), ["resid_pre"] if model.config.gate else ["resid_pre", "attn_out", "mlp_out"]
    changes: dict = defaultdict(lambda: torch.zeros(3, 11, 16, requires_grad=True))

    def shift(site: str, layer: int, step: int, chunk: int, value: Tensor, columns: Tensor) -> Tensor:
        if site not in sites:
            return value
        return value + changes[site, layer, step].gather(1, columns[..., None].expand_as(value))

    logits = run_by_hand(model, x, mask, shift)["logits"]
    losses = functional.cross_entropy(logits[:, :-1].mT, x[:, 1:], reduction="none")
    (losses * (real[:, :-1] & real[:, 1:])).sum().backward()
    acts = capture(model, x, [f"{site}_grad" for site in sites], attention_mask=mask)
    for (site, layer, step), change in changes.items():
        found = by_call(acts, f"{site}_grad", layer, step)
        ran = ~found.isnan().any(-1)
        torch.testing.assert_close(found[ran & real], change.grad[ran & real], rtol=1e-3, atol=1e-5)
        assert (ran | ~real).any()


def test_a_loss_in_the_last_chunk_reaches_the_first_one():
    model, x = build("TLB"), some_tokens()
    acts = capture(model, x, ["resid_pre_grad"], objective=lambda output: output[:, -1].logsumexp(-1))
    assert acts["resid_pre_grad"][0, :, :4].any(-1).all()
    with torch.no_grad():
        for layer in model.layers:
            layer.memory_attention.o_proj.weight.zero_()
    acts = capture(model, x, ["resid_pre_grad"], objective=lambda output: output[:, -1].logsumexp(-1))
    assert not acts["resid_pre_grad"][0, :, :8].any()


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right", "between"])
def test_a_padded_sequence_has_the_activations_of_the_sequence_alone(side):
    model, x, mask = build("TLB"), some_tokens(), padded(side)
    sites = ["resid_post", "cross_pattern", "memory_resid_post", "memory_pattern"]
    acts = capture(model, x, sites, attention_mask=mask)
    for row in range(3):
        real = mask[row].bool()
        alone = capture(model, x[row : row + 1, real], sites)
        torch.testing.assert_close(acts["resid_post"][:, row, real], alone["resid_post"][:, 0])
        torch.testing.assert_close(acts["cross_pattern"][:, row, :, real], alone["cross_pattern"][:, 0])
        updates = int(alone.chunks.max())
        torch.testing.assert_close(acts["memory_resid_post"][row, :updates], alone["memory_resid_post"][0, :updates])
        written = alone["memory_pattern"][0]
        is_written = ~written.isnan()
        torch.testing.assert_close(acts["memory_pattern"][row][..., real][is_written], written[is_written])


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padding_may_leave_less_than_a_chunk(implementation):
    model, x, mask = build("TLB"), some_tokens(), torch.zeros(3, 11, dtype=torch.long)
    model.config._attn_implementation = implementation
    mask[:, :3] = 1
    acts = capture(model, x, ["resid_post", "pattern", "memory_pattern", "logits"], attention_mask=mask)
    alone = capture(model, x[:, :3], ["resid_post", "pattern"])
    torch.testing.assert_close(acts["resid_post"][:, :, :3], alone["resid_post"])
    torch.testing.assert_close(acts["pattern"][..., :3, :3], alone["pattern"])
    assert torch.equal(acts["logits"], model(x, attention_mask=mask).logits)
    assert not acts["memory_pattern"][..., 3].any()
    torch.testing.assert_close(acts["memory_pattern"][..., :3].sum(-1), torch.ones(3, 2, 3))


@torch.no_grad()
def test_full_masks_and_vectors_are_captured():
    model, x = build("TLB", mask="full"), some_tokens()
    pattern = capture(model, x, ["pattern"])["pattern"]
    assert (pattern[..., :4, :4] > 0).all()
    assert not pattern[..., :4, 4:].any()
    torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 3, 2, 11))
    fields = {"vocab_size": None, "d_in": 3, "d_out": 2}
    settings = {name: value for name, value in model.config.to_dict().items() if name in CHUNK_FIELDS}
    of_vectors = RecurrentTransformer(RecurrentConfig(**settings | fields)).eval()
    vectors = torch.randn(3, 11, 3, generator=torch.Generator().manual_seed(0))
    acts = capture(of_vectors, vectors, ["memory_z", "output"])
    assert torch.equal(acts["output"], of_vectors(vectors).logits)
    assert acts["memory_z"].shape == (3, 3, 3, 2, 8)


@torch.no_grad()
def test_padding_tokens_count_as_padding_without_a_mask():
    model, x = build("TLB", pad_token_id=0), some_tokens()
    x[1, :5] = 0
    acts = capture(model, x, ["resid_post", "logits"])
    assert acts.chunks[1].tolist() == [1, 1, 2, 2, 2, 0, 0, 0, 0, 1, 1]
    masked = capture(model, x, ["resid_post"], attention_mask=x != 0)
    assert torch.equal(acts["resid_post"], masked["resid_post"])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["TLB", "GUTLB"])
def test_micro_batches_selections_and_estimates(kind):
    model, x = build(kind), some_tokens()
    sites = ["resid_post", "pattern", "cross_pattern", "memory_pattern", "memory_z"]
    whole, parts = capture(model, x, sites), capture(model, x, sites, batch_size=1)
    alone = capture(model, x[1:2], sites)
    for site in sites:
        axis = get_site(site).axes.index("batch") + (1 if "layer" in get_site(site).axes and kind == "GUTLB" else 0)
        assert torch.equal(parts[site].select(axis, 1).nan_to_num(7), alone[site].select(axis, 0).nan_to_num(7)), site
    rows = capture(model, x, ["pattern"], queries=[2, 9], layers=[1])
    assert torch.equal(rows["pattern"].nan_to_num(7), whole["pattern"][1:][..., [2, 9], :].nan_to_num(7))
    assert estimate_capture_bytes(model, x, sites) == sum(whole[site].nbytes for site in sites)
    assert attention_layers(model, x) == [0, 1]
    labelled = whole.to_dataset(["memory_z", "memory_pattern"])
    assert labelled["memory_z"].dims == ("batch", "chunk", "slot", "head", "d_head")
    assert labelled["memory_pattern"].dims == ("batch", "head", "slot", "key")
    assert torch.equal(pickle.loads(pickle.dumps(whole)).chunks, whole.chunks)


@torch.no_grad()
@pytest.mark.parametrize("kind", FIXED)
def test_reductions_and_readouts_see_whole_sequences(kind):
    model, x = build(kind), some_tokens()

    def measure(view) -> dict[str, Tensor]:
        stream, query = view["resid_pre"], view.recompute_query(view["resid_pre"])
        return {
            "recomputed": (query - view["query"]).abs().amax((1, 2, 3)),
            "visible": view.visible_keys.expand(len(stream), -1, -1, -1).float(),
            "read": view.sublayer_input("mlp"),
        }

    axes = {"recomputed": ("batch",), "visible": ("batch", "_one", "query", "key"), "read": ("batch", "pos", "d_model")}
    needed = ("resid_pre", "query", "attn_out", "cross_attn_out")
    reduce = {
        "several": LayerReduction(sites=needed, fn=measure, axes=axes),
        "size": Reduction(
            site="memory_resid_post", fn=lambda memory: memory.norm(dim=-1), axes=("batch", "chunk", "slot")
        ),
    }
    acts = capture(model, x, ["pattern", "resid_pre", "resid_mid", "cross_resid_mid", *MEMORY], reduce=reduce)
    assert acts["recomputed"].max() < 1e-5
    calls = acts.unrolled()
    assert torch.equal(calls["visible"].bool().expand_as(calls["pattern"]), calls["pattern"] > 0)
    torch.testing.assert_close(calls["read"], calls["cross_resid_mid"])
    assert torch.equal(acts["size"].nan_to_num(), acts["memory_resid_post"].norm(dim=-1).nan_to_num())
    final = capture(model, x, ["resid_post", "attn_out", "cross_attn_out", "mlp_out", "resid_pre", "logits"]).unrolled()
    torch.testing.assert_close(final.readout.compute_output(final["resid_post"][-1]), final["logits"])
    parts = torch.cat([final["resid_pre"][:1], *(final[site] for site in ("attn_out", "cross_attn_out", "mlp_out"))])
    total = final.readout.attribute_logits(parts, final["resid_post"][-1]).sum(0) + final.readout.readout_bias
    torch.testing.assert_close(total, final["logits"])


@torch.no_grad()
def test_heads_that_read_the_memory_sum_to_what_is_added_to_the_stream():
    acts = capture(build("TLB"), some_tokens(), ["cross_z", "cross_attn_out"])
    total = acts.head_out("cross_z").sum(2) + acts.readout.cross_output_bias[:, None, None]
    torch.testing.assert_close(total, acts["cross_attn_out"])


@torch.no_grad()
def test_the_memory_sums_its_updates():
    acts = capture(build("GUTLB"), some_tokens(), MEMORY)
    total = acts["memory_resid_pre"] + acts["memory_attn_out"] + acts["memory_mlp_out"]
    torch.testing.assert_close(total, acts["memory_resid_post"], equal_nan=True)
    assert torch.equal(acts["memory_resid_pre"][:, 1], acts["memory_resid_post"][:, 0])
    initial = build("GUTLB").memory_update.initial_memory.weight
    assert torch.equal(acts["memory_resid_pre"][:, 0], initial.expand(3, -1, -1))


@torch.no_grad()
def test_edits_by_their_usual_names():
    model, x = build("TLB"), some_tokens()
    acts = capture(model, x, ["z", "memory_resid_post", "memory_pattern", "cross_pattern", "logits"])
    hidden = knock_out_attention("cross_attn_scores", [0], {"layer": 1})
    after = capture(model, x, ["cross_pattern"], edits=hidden)["cross_pattern"]
    torch.testing.assert_close(after[1][..., 1:].sum(-1), torch.ones(3, 2, 11))
    assert not after[1][..., 0].any()
    hidden = knock_out_attention("memory_attn_scores", [1, 2])
    after = capture(model, x, ["memory_pattern"], edits=hidden)["memory_pattern"]
    assert not after[..., [1, 2]].any()
    torch.testing.assert_close(after[..., :4].sum(-1), torch.ones(3, 2, 3))
    torch.testing.assert_close(after[..., 4:8].sum(-1), torch.ones(3, 2, 3))
    with pytest.raises(ValueError, match="every query must attend to a key that is not hidden"):
        capture(model, x, edits=knock_out_attention("memory_attn_scores", range(4)))
    averaged = capture(model, x, ["memory_resid_post"], edits=mean("memory_resid_post", acts, {"chunk": 1}))
    expected = acts["memory_resid_post"][:, 1].mean(0, keepdim=True).expand(3, -1, -1)
    assert torch.equal(averaged["memory_resid_post"][:, 1], expected)
    for edit in (resample("memory_resid_post", acts), scale("cross_z", 2.0), zero("z", {"chunk": [0, 2]})):
        assert not torch.equal(capture(model, x, ["logits"], edits=edit)["logits"], acts["logits"])
    found = capture(model, x, ["z"], edits=zero("z", {"layer": 0, "chunk": 1, "pos": [3, 5], "head": 1}))["z"]
    assert not found[0, :, 5, 1].any()
    assert torch.equal(found[0, :, 3], acts["z"][0, :, 3])


def test_an_edit_that_mixes_chunks_is_refused():
    centre = Edit(site="resid_pre", fn=lambda old: old - old.mean(1, keepdim=True))
    with pytest.raises(
        ValueError, match="in a model with chunks must change every position by itself, but that of resid"
    ):
        capture(build("TLB"), some_tokens(), edits=centre)
    acts = capture(build("TLB", chunk_length=16), some_tokens(), ["resid_pre"], edits=centre)
    torch.testing.assert_close(acts["resid_pre"].mean(2), torch.zeros(2, 3, 16), rtol=0, atol=1e-5)


def recalling():
    """Slot 0 stores which of the tokens 1, 2 and 3 a chunk has, and later chunks predict it; slot 1 stores a mean."""
    model = chunked("TLB", num_hidden_layers=1, norm="none", positions="none", intermediate_size=0, memory_slots=2)
    for parameter in model.parameters():
        parameter.detach().zero_()
    with torch.no_grad():
        model.embed.weight[:, :7] = torch.eye(7)
        model.embed.weight[1:4, 7] = 1.0  # is one of the three
        model.memory_update.initial_memory.weight[:, 8:10] = torch.eye(2)  # the number of the slot
        write, read = model.memory_update.attention, model.layers[0].memory_attention
        write.q_proj.weight[0, 8] = 100.0
        write.k_proj.weight[0, 7] = 1.0
        write.v_proj.weight[:7, :7] = torch.eye(7)
        write.o_proj.weight[10:16, :6] = torch.eye(6)
        read.q_proj.bias[0] = 100.0
        read.k_proj.weight[0, 8] = 1.0
        read.v_proj.weight[:6, 10:16] = torch.eye(6)
        read.o_proj.weight[10:16, :6] = torch.eye(6)
        model.readout.weight[:6, 10:16] = torch.eye(6)
    return model


@torch.no_grad()
def test_a_memory_that_was_set_by_hand_is_found_and_a_decoy_is_not():
    model = recalling()
    x = torch.tensor([[4, 2, 5, 6, 4, 4, 6, 5, 6, 4], [3, 6, 6, 5, 5, 4, 4, 6, 5, 5], [5, 4, 4, 1, 6, 5, 4, 6, 5, 6]])
    sites = ["memory_pattern", "cross_pattern", "memory_resid_post", "logits"]
    acts = capture(model, x, sites)
    second = acts.chunks == 1
    assert acts["logits"].argmax(-1)[:, 4:8].tolist() == [[2] * 4, [3] * 4, [1] * 4]
    marked = (x < 4)[:, :4]
    torch.testing.assert_close(acts["memory_pattern"][:, 0, 0, :4], marked.float())
    torch.testing.assert_close(acts["memory_pattern"][:, 0, 1, :4], torch.full((3, 4), 0.25))
    assert acts["cross_pattern"][0, :, 0, :, 0].min() > 0.99
    removed = capture(model, x, sites, edits=zero("memory_attn_out", {"chunk": 0, "slot": 0}))
    assert removed["logits"][second].abs().max() < 1e-6
    decoy = capture(model, x, sites, edits=zero("memory_attn_out", {"chunk": 0, "slot": 1}))
    torch.testing.assert_close(decoy["logits"], acts["logits"])
    moved = capture(
        model, x, sites, edits=replace("memory_resid_post", capture(model, x.roll(1, 0), sites), {"slot": 0})
    )
    assert moved["logits"].argmax(-1)[:, 4:8].tolist() == [[1] * 4, [2] * 4, [3] * 4]


def test_what_has_no_meaning_is_refused_by_name():
    model, x = build("TLB"), some_tokens()
    plain = build("TLB", chunk_length=None, memory_slots=None)
    with pytest.raises(UnsupportedModel, match="memory_pattern needs inputs of two or more chunks, between which"):
        capture(model, x[:, :4], ["memory_pattern"])
    with pytest.raises(
        UnsupportedModel, match="memory_z needs a model that processes chunks of positions with a memory"
    ):
        capture(plain, x, ["memory_z"])
    for site in ("cross_key", "cross_value"):
        with pytest.raises(UnsupportedModel, match=f"{site} must exist in every requested layer.* belong to chunks"):
            capture(model, x, [site])
    with pytest.raises(UnsupportedModel, match="memory_mlp_out must exist in the update of the memory, but"):
        capture(build("TLB", intermediate_size=0), x, ["memory_mlp_out"])
    with pytest.raises(ValueError, match=r"where\['chunk'\] needs a model with chunks, but"):
        capture(plain, x, edits=zero("z", {"chunk": 0}))
    with pytest.raises(IndexError, match=r"where\['chunk'\] must lie within 3 entries, but got 3"):
        capture(model, x, edits=zero("z", {"chunk": 3}))
    with pytest.raises(ValueError, match="attn_scores must stay -inf"):
        zero("memory_attn_scores")
    with pytest.raises(UnsupportedModel, match="attn_out must exist in every requested layer"):
        capture(build("GUTLB"), x, ["attn_out"])


def test_interventions_and_analyses_that_are_not_defined_for_chunks_are_refused_by_name():
    model, x = build("TLB"), some_tokens()
    with pytest.raises(
        UnsupportedModel, match="this intervention needs a model that processes all positions at once, but"
    ):
        sweep(model, x, zero("z"))
    plain = build("TLB", chunk_length=None, memory_slots=None)
    with pytest.raises(UnsupportedModel, match="memory_z must be a site of a model with a memory between chunks"):
        sweep(plain, x, zero("memory_z"), axes=("head",))
    with pytest.raises(ValueError, match=r"where\['chunk'\] needs a model with chunks, but"):
        sweep(plain, x, zero("z", {"chunk": 0}))
    with pytest.raises(UnsupportedModel, match="linear modules need a model that calls each layer once, but"):
        sample_linear_inputs(model, x)
    with (
        pytest.raises(
            UnsupportedModel, match="edits of forward passes need a model that processes all positions at once"
        ),
        apply_edits(model, zero("z")),
    ):
        model(x)
    with pytest.raises(ValueError, match="norms is defined for models that process all positions at once, but got the"):
        run_analyses(model, x, [norms])
    with pytest.raises(ValueError, match="cross_copying is defined for models that process all positions at once"):
        cross_copying(capture(model, x, ["cross_pattern", "cross_z", "resid_post"]), x)
    found = run_analyses(model, x, [positional_attention])["positional_attention"]["score"]
    first_of_chunk = capture(model, x, ["pattern"])["pattern"][:, :, :, 4]
    assert torch.equal(first_of_chunk[..., 4], torch.ones(2, 3, 2))  # it can attend to itself alone
    assert found.sizes["layer"] == 2
