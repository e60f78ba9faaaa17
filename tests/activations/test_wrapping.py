"""Plain modules as models: identity with PyTorch's own hooks, and refusals where a number would be wrong."""

import math
from threading import Thread

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import BloomConfig, BloomForCausalLM

from mesascope import Edit, UnsupportedModel, analyses, capture, wrap
from mesascope.activations import attention_layers
from mesascope.analyses import run_analyses
from mesascope.interventions import logit_difference, patch, sweep, zero
from plain_hooks import change_input, record_outputs
from plain_modules import (
    Block,
    FusedAttention,
    HandMadeAttention,
    RegressionTransformer,
    SmallGPT,
    logits_of_gpt,
    predictions_of_regression,
)

TOKENS = torch.randint(23, (3, 12), generator=torch.Generator().manual_seed(0))
STREAM = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
ATTENTION = ["query", "key", "value", "attn_scores", "pattern", "z"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def gpt(kind=FusedAttention, **options):
    module = SmallGPT(kind).eval()
    return module, wrap(module, forward=logits_of_gpt, **options)


def test_every_site_is_that_of_plain_hooks():
    module, model = gpt()
    acts = capture(model, TOKENS, [*STREAM, *ATTENTION, "output"])
    blocks = list(module.transformer["h"])

    def recorded(*names):
        chosen = [block.get_submodule(name) for block in blocks for name in names]
        return record_outputs(chosen, lambda: module(TOKENS, TOKENS))

    assert torch.equal(acts["attn_out"], recorded("attn"))
    assert torch.equal(acts["mlp_out"], recorded("mlp"))
    assert torch.equal(acts["resid_post"], record_outputs(blocks, lambda: module(TOKENS, TOKENS)))
    assert torch.equal(acts["resid_pre"][1:], acts["resid_post"][:-1])
    assert torch.allclose(acts["resid_mid"], acts["resid_pre"] + acts["attn_out"])
    query, key, value = (part.unflatten(-1, (4, -1)).transpose(2, 3) for part in recorded("attn.c_attn").chunk(3, -1))
    for name, expected in (("query", query), ("key", key), ("value", value)):
        assert torch.equal(acts[name], expected)
    scores = (query @ key.mT / math.sqrt(query.shape[-1])).masked_fill(torch.ones(12, 12).triu(1).bool(), -math.inf)
    assert torch.allclose(acts["attn_scores"], scores, atol=1e-6)
    assert torch.allclose(acts["pattern"], scores.softmax(-1), atol=1e-6)
    assert torch.allclose(acts["z"], (scores.softmax(-1) @ value).transpose(2, 3), atol=1e-6)
    assert torch.equal(acts["output"], module(TOKENS, TOKENS)[0])


def test_the_wrapped_module_is_left_as_it_was():
    module, model = gpt()
    module.train()
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    capture(model, TOKENS, ["pattern", "resid_pre_grad"])
    assert all(part.training for part in module.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())
    assert all(weight.requires_grad for weight in module.parameters())


def test_gradients_are_those_of_autograd():
    module, model = gpt()
    acts = capture(model, TOKENS, ["attn_out_grad"])
    gradients: list[torch.Tensor] = []
    block = module.transformer["h"][1]
    handle = block.attn.register_full_backward_hook(lambda _, inputs, outputs: gradients.append(outputs[0]))
    logits, _ = module(TOKENS, TOKENS)
    functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten(), reduction="sum").backward()
    handle.remove()
    assert torch.allclose(acts["attn_out_grad"][1], gradients[0], atol=1e-6)


def test_the_readout_maps_heads_to_logits():
    module, model = gpt()
    acts = capture(model, TOKENS, ["resid_pre", "attn_out", "mlp_out", "resid_post", "z"])
    heads = acts.head_out().sum(2) + acts.readout.output_bias[:, None, None]
    assert torch.allclose(heads, acts["attn_out"], atol=1e-6)
    parts = torch.cat([acts["resid_pre"][:1], acts["attn_out"], acts["mlp_out"]])
    logits = acts.readout.attribute_logits(parts, acts["resid_post"][-1]).sum(0) + acts.readout.readout_bias
    assert torch.allclose(logits, module(TOKENS, TOKENS)[0], atol=1e-5)


def test_an_ablated_head_is_a_zeroed_slice_of_the_projections_input():
    module, model = gpt()
    edited = capture(
        model, TOKENS, ["output"], edits=Edit(site="z", where={"layer": 1, "head": 2}, fn=torch.zeros_like)
    )

    def zero_head(z):
        z[..., 8:12] = 0
        return z

    with change_input(module.transformer["h"][1].attn.c_proj, zero_head):
        assert torch.equal(edited["output"], module(TOKENS, TOKENS)[0])


def test_an_edited_pattern_mixes_the_values():
    module, _ = gpt(HandMadeAttention)
    hand_made = module.transformer["h"][0].attn
    _, other = gpt()
    other.module.load_state_dict(module.state_dict())
    uniform = torch.ones(12, 12).tril() / torch.arange(1, 13)[:, None]
    edited = capture(other, TOKENS, ["output"], edits=Edit(site="pattern", where={"layer": 0}, fn=lambda _: uniform))
    hand_made.mix = lambda query, key, value: uniform @ value
    assert torch.allclose(edited["output"], module(TOKENS, TOKENS)[0], atol=1e-5)


def test_interventions_run_in_branches():
    module, model = gpt()
    swept = sweep(model, TOKENS, zero("z"), ("layer", "head"))
    edited = capture(model, TOKENS, ["output"], edits=zero("z", {"layer": 2, "head": 3}))["output"]
    losses = [
        functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
        for logits in (edited, module(TOKENS, TOKENS)[0].detach())
    ]
    assert float(swept["effect"].sel(layer=2, head=3).mean()) == pytest.approx(float(losses[0] - losses[1]), abs=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_regression_transformer_around_gpt2_reads_pairs(implementation):
    module = RegressionTransformer(implementation=implementation).eval()
    xs, ys = torch.randn(2, 5, 3), torch.randn(2, 5)
    pairs = torch.stack([xs, functional.pad(ys[..., None], (0, 2))], 2).flatten(1, 2)
    acts = capture(wrap(module, forward=predictions_of_regression), pairs, [*STREAM, *ATTENTION, "output"])
    assert torch.equal(acts["output"][:, ::2, 0], module(xs, ys))
    assert acts.attn_implementation == implementation
    blocks = record_outputs(module.backbone.h, lambda: module.predict(pairs))
    assert torch.equal(acts["resid_post"], blocks)
    queries = record_outputs([block.attn.c_attn for block in module.backbone.h], lambda: module.predict(pairs))
    assert torch.equal(acts["query"], queries[..., :16].unflatten(-1, (4, 4)).transpose(2, 3))
    assert torch.allclose(acts["pattern"] @ acts["value"], acts["z"].transpose(2, 3), atol=1e-6)


def encoder(batch_first=True, causal=True):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first, norm_first=True)
    module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(64)

    def run(module, x):
        return module(x, mask=mask[: x.shape[1], : x.shape[1]], is_causal=True) if causal else module(x)

    return module, run


@pytest.fixture
def without_fast_path():
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.usefixtures("without_fast_path")
def test_multi_head_attention_of_pytorch_has_its_own_weights(causal):
    module, run = encoder(causal=causal)
    x = torch.randn(2, 10, 16)
    acts = capture(wrap(module, forward=run), x, [*STREAM, *ATTENTION, "output"])
    first = module.layers[0]
    normed = first.norm1(acts["resid_pre"][0])
    hidden = torch.ones(10, 10).triu(1).bool() if causal else None
    _, weights = first.self_attn(normed, normed, normed, attn_mask=hidden, average_attn_weights=False)
    assert torch.allclose(acts["pattern"][0], weights, atol=1e-6)
    assert torch.equal(acts["output"], run(module, x))
    assert torch.allclose(acts["resid_pre"] + acts["attn_out"] + acts["mlp_out"], acts["resid_post"], atol=1e-6)


def test_multi_head_attention_with_its_fast_path_is_refused():
    torch.backends.mha.set_fastpath_enabled(True)
    with pytest.raises(UnsupportedModel, match=r"fast path enabled; call torch\.backends\.mha\.set_fastpath_enabled"):
        wrap(encoder()[0])


@pytest.mark.usefixtures("without_fast_path")
def test_sequences_along_the_first_axis_are_refused():
    module, run = encoder(batch_first=False, causal=False)
    with pytest.raises(UnsupportedModel, match=r"scaled_dot_product_attention on \(batch, head, pos, d_head\)"):
        capture(wrap(module, forward=run), torch.randn(2, 10, 16))
    with pytest.raises(UnsupportedModel, match="use batch_first"):
        capture(
            wrap(module, forward=lambda module, x: module(x.transpose(0, 1)).transpose(0, 1), layers=module.layers),
            torch.randn(2, 10, 16),
        )


def test_attention_of_its_own_has_the_sites_of_the_stream_only():
    module, model = gpt(HandMadeAttention)
    with pytest.raises(UnsupportedModel, match=r"SmallGPT has no such call; pass layers= to wrap"):
        capture(model, TOKENS)
    blocks = module.transformer["h"]
    streams_only = wrap(module, forward=logits_of_gpt, layers=blocks)
    acts = capture(streams_only, TOKENS, ["resid_post", "output"])
    assert torch.equal(acts["resid_post"], record_outputs(blocks, lambda: module(TOKENS, TOKENS)))
    assert torch.equal(acts["output"], module(TOKENS, TOKENS)[0])
    assert attention_layers(streams_only, TOKENS) == []
    for site in ("attn_out", "pattern"):
        with pytest.raises(UnsupportedModel, match=f"{site} must exist in every requested layer"):
            capture(streams_only, TOKENS, [site])
    named = wrap(module, forward=logits_of_gpt, layers=blocks, attention="attn")
    acts = capture(named, TOKENS, ["attn_out", "mlp_out", "resid_mid"])
    assert torch.equal(acts["attn_out"], record_outputs([b.attn for b in blocks], lambda: module(TOKENS, TOKENS)))
    assert torch.equal(acts["mlp_out"], record_outputs([b.mlp for b in blocks], lambda: module(TOKENS, TOKENS)))
    with pytest.raises(UnsupportedModel, match="pattern must exist in every requested layer"):
        capture(named, TOKENS, ["pattern"])


def test_an_mlp_is_not_taken_for_attention():
    module, _ = gpt(HandMadeAttention)
    with pytest.raises(UnsupportedModel, match=r"must mix positions, but the output of module\.transformer\.h\.0\.mlp"):
        capture(wrap(module, forward=logits_of_gpt, layers=module.transformer["h"], attention="mlp"), TOKENS)


class AcrossHeads(FusedAttention):
    """A decoy: attention between the heads of one position, in the axes batch, pos, head."""

    def forward(self, x):
        query, key, value = (part.transpose(1, 2) for part in self.split(x))
        return self.c_proj(functional.scaled_dot_product_attention(query, key, value).flatten(2))


@pytest.mark.parametrize("length", [4, 8, 12])  # 4 heads
def test_attention_between_heads_is_not_taken_for_attention_between_positions(length):
    module, _ = gpt(AcrossHeads)
    model = wrap(module, forward=logits_of_gpt, layers=module.transformer["h"])
    with pytest.raises(UnsupportedModel, match=r"pattern must exist|calls it with \(batch, pos, head, d_head\)"):
        capture(model, TOKENS[:, :length], ["pattern"])


class Watched(FusedAttention):
    """A decoy: its output is another one while its modules have hooks."""

    def forward(self, x):
        return super().forward(x) * (1.001 if self.c_proj._forward_hooks else 1.0)


class Counting(FusedAttention):
    """A decoy: its output depends on earlier calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) + self.calls * 1e-3


class Dropping(FusedAttention):
    """A decoy: its attention drops weights in evaluation mode, too."""

    def mix(self, query, key, value):
        return functional.scaled_dot_product_attention(query, key, value, dropout_p=0.5, is_causal=True)


class Twice(FusedAttention):
    """A decoy: a block that attends twice."""

    def forward(self, x):
        return super().forward(x) + super().forward(2 * x)


class Gated(FusedAttention):
    """A decoy: the values of heads are scaled after attention."""

    def mix(self, query, key, value):
        return 1.5 * super().mix(query, key, value)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Watched, r"capturing must not change the output \(bitwise\)"),
        (Counting, r"capturing must not change the output \(bitwise\)"),
        (Dropping, r"no dropout in evaluation mode, but Dropping calls .* with dropout_p=0\.5"),
        (Twice, "a layer must call attention once, but .* calls it 2 times"),
    ],
)
def test_what_capturing_would_get_wrong_is_refused(kind, line):
    with pytest.raises(UnsupportedModel, match=line):
        capture(gpt(kind)[1], TOKENS)


def test_scaled_values_have_no_output_by_head():
    _, model = gpt(Gated)
    acts = capture(model, TOKENS, ["z", "attn_out"])
    with pytest.raises(UnsupportedModel, match="z passes through another operation"):
        acts.head_out()


class AddingPosition(nn.Module):
    """A decoy: a stream with one position more than the inputs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.ModuleList(Block(16, FusedAttention(16, 4)) for _ in range(2))

    def forward(self, x):
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return x[:, 1:]


def test_positions_that_a_module_adds_are_refused():
    module, x = AddingPosition().eval(), torch.randn(2, 6, 16)
    with pytest.raises(UnsupportedModel, match=r"on \(batch, head, pos, d_head\).* has no such call"):
        capture(wrap(module), x)
    with pytest.raises(UnsupportedModel, match=r"with the positions of the inputs, \(batch, pos\) = \(1, 6\), but"):
        capture(wrap(module, layers=module.blocks), x)


@pytest.mark.parametrize(
    ("options", "inputs", "line"),
    [
        ({}, TOKENS, r"must return outputs \(batch, pos, d_out\) at every position.*returned shape \(1, 1, 23\); pass"),
        ({"forward": lambda module, x: None}, TOKENS, "returned None; pass forward= to wrap"),
        ({"forward": logits_of_gpt}, TOKENS + 20, "tokens must be from 0 to 22"),
        ({"forward": logits_of_gpt}, torch.randn(2, 5, 16), "inputs must be tokens"),
        (
            {"forward": logits_of_gpt},
            {"input_ids": TOKENS, "attention_mask": TOKENS.ne(TOKENS[0, 0]).long()},
            "padding needs a forward function with a parameter attention_mask",
        ),
    ],
)
def test_inputs_and_outputs_that_do_not_fit_get_one_line(options, inputs, line):
    with pytest.raises(ValueError, match=line) as refusal:
        capture(wrap(SmallGPT(), **options), inputs)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"layers": []}, "layers must be modules, such as module.blocks, but got none"),
        ({"layers": [nn.Linear(1, 1)]}, "layers must be modules inside SmallGPT, but the Linear given is not"),
        ({"attention": "attn"}, "needs the blocks that contain it, but layers= is not given"),
        ({"context_length": 0}, "context_length must be 1 or more"),
    ],
)
def test_arguments_that_cannot_be_right_get_one_line(options, line):
    with pytest.raises(ValueError, match=line):
        wrap(SmallGPT(), **options)
    module = SmallGPT()
    blocks = list(module.transformer["h"])
    with pytest.raises(ValueError, match=r"must name a module of every block, but .*missing does not exist"):
        wrap(module, layers=blocks, attention="missing")
    with pytest.raises(ValueError, match="was given more than once"):
        wrap(module, layers=[blocks[0], blocks[0]])


def test_a_model_of_transformers_is_passed_as_it_is():
    with pytest.raises(UnsupportedModel, match="is a model of transformers; pass it to capture as it is"):
        wrap(RegressionTransformer().backbone)


def test_layers_in_another_order_are_refused():
    module, _ = gpt()
    blocks = list(module.transformer["h"])
    model = wrap(module, forward=logits_of_gpt, layers=reversed(blocks))
    with pytest.raises(UnsupportedModel, match="layers must be called as modules in the order of their list"):
        capture(model, TOKENS)


def test_blocks_outside_a_module_list_are_given_as_layers():
    module = nn.Sequential(Block(16, FusedAttention(16, 4)), Block(16, FusedAttention(16, 4)), nn.Linear(16, 2)).eval()
    x = torch.randn(2, 6, 16)
    with pytest.raises(UnsupportedModel, match="pass layers= to wrap"):
        capture(wrap(module), x)
    acts = capture(wrap(module, layers=module[:2]), x, ["pattern", "resid_post", "output"])
    assert torch.equal(acts["output"], module(x))
    assert torch.equal(acts["resid_post"][0], module[0](x))


def test_padding_reaches_a_forward_function_that_takes_a_mask():
    module, _ = gpt()

    def forward(module, tokens, attention_mask=None):
        return module(tokens, tokens)[0]  # causal: padding on the right changes nothing before it

    mask = torch.ones(3, 12, dtype=torch.long)
    mask[1, 9:] = 0
    acts = capture(wrap(module, forward=forward), TOKENS, ["resid_post"], attention_mask=mask)
    alone = capture(wrap(module, forward=forward), TOKENS[1:2, :9], ["resid_post"])
    assert torch.allclose(acts["resid_post"][:, 1, :9], alone["resid_post"][:, 0], atol=1e-5)
    with pytest.raises(UnsupportedModel, match="padding must not change the output at other positions"):
        capture(wrap(module, forward=forward), TOKENS, attention_mask=mask.flip(1))


def test_forward_passes_of_another_thread_are_not_intercepted():
    module, model = gpt()
    expected, outputs = module(TOKENS, TOKENS)[0], []

    def zeros_and_other_thread(z):
        thread = Thread(target=lambda: outputs.append(module(TOKENS, TOKENS)[0]))
        thread.start()
        thread.join()
        return torch.zeros_like(z)

    edited = capture(model, TOKENS, ["output"], check=False, edits=Edit(site="z", fn=zeros_and_other_thread))
    assert all(torch.equal(output, expected) for output in outputs)
    assert len(outputs) >= 3
    assert not torch.equal(edited["output"], expected)


def test_analyses_run_on_wrapped_modules():
    _, model = gpt()
    chosen = [analyses.norms, analyses.logit_lens, analyses.positional_attention, analyses.token_attribution]
    results = run_analyses(model, TOKENS, chosen)
    assert set(results) == {one.name for one in chosen}
    assert results["positional_attention"].sizes["head"] == 4


def test_activation_patching_restores_the_answer():
    _, model = gpt()
    metric = logit_difference(TOKENS[:, 0], TOKENS[:, 1])
    patched = patch(model, TOKENS, TOKENS.flip(0), metric, "resid_post", ("layer",))
    source = capture(model, TOKENS.flip(0), ["output"])["output"]
    assert float(patched["value"].isel(layer=-1)) == pytest.approx(float(metric(source).mean()), abs=1e-5)


def test_a_wrapped_module_is_not_saved_as_a_folder(tmp_path):
    with pytest.raises(UnsupportedModel, match="save the state_dict of the module with safetensors"):
        gpt()[1].save_pretrained(tmp_path)


def test_a_model_of_transformers_with_its_own_attention_has_its_stream():
    module = BloomForCausalLM(BloomConfig(vocab_size=23, hidden_size=16, n_layer=2, n_head=4)).eval()
    with pytest.raises(UnsupportedModel, match="implements its own attention"):
        capture(module, TOKENS)
    model = wrap(module, layers=module.transformer.h)
    acts = capture(model, TOKENS, ["resid_post", "output"])
    assert torch.equal(acts["output"], module(TOKENS).logits)
    assert torch.equal(acts["resid_post"][0], record_tensors(module.transformer.h[:1], lambda: module(TOKENS))[0])


def record_tensors(modules, run):
    """First elements of the outputs of modules that return tuples."""
    outputs = []
    handles = [module.register_forward_hook(lambda _, args, output: outputs.append(output[0])) for module in modules]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return outputs


def test_a_forward_pass_that_fails_is_named():
    tokens = torch.arange(12).reshape(2, 6)
    with pytest.raises(
        UnsupportedModel, match=r"^the wrapped Linear must accept its inputs, .* raised RuntimeError: mat"
    ):
        capture(wrap(nn.Linear(3, 3)), tokens, ["logits"])


def test_layers_that_are_a_number_are_refused():
    with pytest.raises(ValueError, match=r"layers must be modules, such as module\.blocks, but got"):
        wrap(nn.Linear(3, 3), layers=torch.tensor(1))


def test_attention_of_a_plain_module_is_not_exchanged():
    with pytest.raises(UnsupportedModel, match="that transformers can exchange, but SmallGPT has its own; omit it"):
        capture(gpt()[1], TOKENS, ["pattern"], attn_implementation="eager")
