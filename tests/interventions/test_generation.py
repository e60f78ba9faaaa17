"""Edits during generation with a key-value cache: tokens and logits of edited passes without a cache, or a refusal."""

import inspect
import warnings

import pytest
import torch
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

import small
from cases import covering
from mesascope import Edit, UnsupportedModel, capture, wrap
from mesascope.activations import EditHadNoEffect
from mesascope.interventions import apply_edits, mean, replace, scale, steer, zero
from plain_modules import SmallGPT, logits_of_gpt

PROMPT = torch.randint(2, 20, (2, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
DIRECTION = 3 * torch.randn(16, generator=torch.Generator().manual_seed(1))
NEW_TOKENS = 5
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"


class RenamedCache(LlamaForCausalLM):
    """A model that takes its key-value cache under another name than transformers."""

    def forward(self, input_ids=None, memory=None, **options):
        return super().forward(input_ids, **{CACHE: memory}, **options)


def llama():
    return small.llama()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=3, n_head=4, n_positions=32)).eval()


def neox():
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 32}
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=20, hidden_size=16, intermediate_size=24, **shape)).eval()


def generate(model, prompt=PROMPT, mask=MASK, **options):
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "pad_token_id": 0} | options
    output = model.generate(
        prompt,
        attention_mask=mask,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=1,
        suppress_tokens=None,
        **options,
    )
    return output.sequences, torch.stack(output.logits, 1)


def existing_columns(edit, length):
    """The same edit, of the columns that exist so far; capture refuses others."""
    where = dict(edit.where)
    for axis in {"pos", "query", "key"} & where.keys():
        chosen = range(length)[where[axis]] if isinstance(where[axis], slice) else where[axis]
        where[axis] = [column for column in chosen if column < length]
    return Edit(site=edit.site, fn=edit.fn, where=where)


def generate_without_cache(model, edits, prompt=PROMPT, mask=MASK):
    """Greedy decoding by one capture of the whole sequence per token, with the same edits."""
    tokens, logits = prompt, []
    for _ in range(NEW_TOKENS):
        edited = [existing_columns(edit, tokens.shape[1]) for edit in edits]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EditHadNoEffect)
            output = capture(model, tokens, ["output"], attention_mask=mask, edits=edited)["output"]
        logits.append(output[:, -1])
        scores = output[:, -1].index_fill(1, torch.tensor([1]), -torch.inf)  # as min_new_tokens does
        tokens = torch.cat([tokens, scores.argmax(-1, keepdim=True)], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return tokens, torch.stack(logits, 1)


EDITS = {
    "steering everywhere": [steer("resid_post", DIRECTION, where={"layer": 1})],
    "steering from a column on": [steer("resid_pre", DIRECTION, where={"layer": 2, "pos": slice(6, None)})],
    "a column that does not exist yet": [steer("resid_post", DIRECTION, where={"layer": 0, "pos": [8]})],
    "constants in the prompt": [
        Edit(site="resid_post", where={"layer": 0, "pos": [4, 5]}, fn=lambda _: torch.stack([DIRECTION, -DIRECTION]))
    ],
    "a head": [zero("z", {"layer": 1, "head": 2})],
    "sublayers": [scale("attn_out", 0.5), scale("mlp_out", 2.0, {"layer": [0, 2]})],
    "queries": [scale("query", 300.0, {"head": 1})],
    "keys and values": [scale("key", 2.0), scale("value", -1.0, {"kv_head": 1, "pos": [4, 5, 6, 7]})],
    "attention to a column": [zero("pattern", {"key": [5]})],
    "attention of every query": [scale("pattern", 0.5, {"head": 0})],
    "scores": [Edit(site="attn_scores", where={"head": 3}, fn=lambda scores: 300 * scores)],
}


@pytest.mark.parametrize(("name", "build"), covering(EDITS, [llama, gpt2, neox]))
def test_cached_generation_is_that_of_edited_passes_over_the_whole_sequence(build, name):
    model, edits = build(), EDITS[name]
    expected_tokens, expected_logits = generate_without_cache(model, edits)
    with apply_edits(model, edits):
        tokens, logits = generate(model)
    assert torch.equal(tokens, expected_tokens)
    assert torch.allclose(logits, expected_logits, atol=1e-5, rtol=1e-4)
    with apply_edits(model, edits):
        tokens, uncached = generate(model, use_cache=False)
    assert torch.equal(tokens, expected_tokens)
    assert torch.allclose(uncached, expected_logits, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits, generate(model)[1], atol=1e-3)  # the edit had an effect


def test_nothing_is_left_after_the_block():
    model = llama()
    before = generate(model)[1]
    with pytest.raises(ValueError, match="max_new_tokens"), apply_edits(model, EDITS["a head"]):
        generate(model, max_new_tokens=-1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(generate(model)[1], before)


def test_an_edit_without_effect_leaves_every_bit_and_is_reported():
    model = llama()
    expected = generate(model)
    no_effect = pytest.warns(EditHadNoEffect, match="an edit of resid_post had no effect")
    with no_effect, apply_edits(model, scale("resid_post", 1.0)):
        tokens, logits = generate(model)
    assert torch.equal(tokens, expected[0])
    assert torch.equal(logits, expected[1])


def test_a_cache_of_the_block_can_be_continued_in_it():
    model, edit = llama(), EDITS["steering everywhere"]
    whole = capture(model, PROMPT, ["output"], edits=edit)["output"]
    with torch.no_grad(), apply_edits(model, edit):
        first = model(PROMPT[:, :4], use_cache=True)
        second = model(PROMPT[:, 4:], **{CACHE: first[CACHE]})
    assert torch.allclose(torch.cat([first.logits, second.logits], 1), whole, atol=1e-5)


@pytest.mark.parametrize("name", ["a column", "all columns from one on"])
def test_a_cache_is_found_under_any_name(name):
    where = {"layer": 0, "pos": {"a column": [0], "all columns from one on": slice(5, None)}[name]}
    model, edit = RenamedCache(llama().config).eval(), steer("resid_post", DIRECTION, where=where)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), apply_edits(model, edit):
        whole = model(PROMPT).logits
        parts = [model(PROMPT[:, :4], memory=cache).logits, model(PROMPT[:, 4:], memory=cache).logits]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_what_is_no_cache_is_refused(name):
    model, line = llama(), f"{name} must be a Cache of transformers, but got a tuple; use the default cache"
    with pytest.raises(UnsupportedModel, match=line), apply_edits(model, EDITS["a head"]):
        model(PROMPT, **{name: ()})


def test_two_caches_are_refused():
    model, first, second = RenamedCache(llama().config).eval(), DynamicCache(), DynamicCache()
    line = "a forward pass must have one cache, but got 2; pass one"
    with pytest.raises(UnsupportedModel, match=line), apply_edits(model, EDITS["a head"]):
        model(PROMPT, memory=first, **{CACHE: second})


def test_positions_in_a_cache_from_before_are_refused():
    model = llama()
    with torch.no_grad():
        cache = model(PROMPT[:, :4], **{CACHE: DynamicCache(config=model.config)})[CACHE]
    with (
        pytest.raises(ValueError, match=r"computed before, but the cache has 4 and the edit of resid_post selects col"),
        apply_edits(model, EDITS["steering everywhere"]),
    ):
        model(PROMPT[:, 4:], **{CACHE: cache})
    later = [steer("resid_post", DIRECTION, where={"layer": 1, "pos": slice(4, None)})]
    with torch.no_grad(), apply_edits(model, later):
        logits = model(PROMPT[:, 4:], **{CACHE: cache}).logits
    assert torch.allclose(logits, capture(model, PROMPT, ["output"], edits=later)["output"][:, 4:], atol=1e-5)


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda acts: replace("resid_post", acts), "must not have the activations of another run"),
        (lambda acts: mean("z", acts), "must not have the activations of another run"),
        (lambda acts: zero("z", {"batch": 0}), r"must not select sequences .*where\['batch'\]=0"),
        (lambda acts: zero("resid_post", {"pos": -1}), r"must not count from the end.*slice\(10, None\)"),
        (lambda acts: zero("pattern", {"query": slice(-3, None)}), "must not count from the end"),
        (lambda acts: zero("mlp_out", {"layer": 7}), r"where\['layer'\] must lie within 3"),
        (lambda acts: zero("z", {"head": 9}), r"where\['head'\] must lie within 4"),
    ],
)
def test_edits_that_fit_no_cache_are_refused_before_the_model_runs(edit, line):
    model = llama()
    acts = capture(model, PROMPT, ["resid_post", "z"])
    with pytest.raises((ValueError, IndexError), match=line), apply_edits(model, edit(acts)):
        raise AssertionError("the block must not be entered")


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (
            Edit(site="resid_post", fn=lambda old: old.mean(0, keepdim=True)),
            "must treat every sequence on its own.* depends on the other sequences",
        ),
        (
            Edit(site="resid_post", fn=lambda old: old - old.mean(1, keepdim=True)),
            "must treat every position on its own.* depends on other positions",
        ),
        (
            Edit(site="resid_post", fn=lambda old: torch.cat([old[:1], old[:1].expand(len(old) - 1, -1, -1)])),
            "must treat every sequence on its own",
        ),
        (
            Edit(site="resid_post", fn=lambda old: old + torch.arange(old.shape[1])[:, None]),
            "must treat every position on its own.* depends on other positions, or on their number",
        ),
        (
            Edit(site="resid_post", fn=lambda old: torch.cat([old[:, :-1], 0 * old[:, -1:]], 1)),
            "must treat every position on its own",
        ),
        (
            Edit(site="resid_post", fn=lambda old: old + torch.randn_like(old)),
            "must treat every (sequence|position) on its own",
        ),
        (
            Edit(site="resid_post", fn=lambda old: old + torch.ones(7, 1)),
            r"must take any number of positions.*where=\{'pos': ...\}",
        ),
        (
            Edit(site="pattern", fn=lambda old: torch.full_like(old, 1 / old.shape[-1])),
            "must treat every row of attention on its own.* depends on keys that it does not see",
        ),
    ],
)
def test_functions_that_mix_sequences_or_positions_are_refused(edit, line):
    model = llama()
    with pytest.raises(ValueError, match=line), apply_edits(model, edit):
        generate(model, PROMPT, torch.ones_like(MASK))


def test_a_cache_with_a_sliding_window_lacks_keys():
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4}
    model = MistralForCausalLM(MistralConfig(vocab_size=20, hidden_size=16, intermediate_size=24, **shape)).eval()
    mask = torch.ones_like(MASK)
    line = "its cache may be static or a sliding window"
    with pytest.raises(UnsupportedModel, match=line), apply_edits(model, scale("value", 0.5)):
        generate(model, mask=mask)
    edits = EDITS["steering everywhere"]
    expected = generate_without_cache(model, edits, mask=mask)
    with apply_edits(model, edits):
        tokens, logits = generate(model, mask=mask)
    assert torch.equal(tokens, expected[0])
    assert torch.allclose(logits, expected[1], atol=1e-5, rtol=1e-4)


def test_beams_share_an_edit_of_all_sequences():
    model, edits = llama(), EDITS["steering everywhere"]
    with apply_edits(model, edits):
        cached = model.generate(PROMPT, attention_mask=MASK, num_beams=3, max_new_tokens=5, pad_token_id=0)
        plain = model.generate(
            PROMPT, attention_mask=MASK, num_beams=3, max_new_tokens=5, pad_token_id=0, use_cache=False
        )
    assert torch.equal(cached, plain)


def test_a_wrapped_module_is_refused():
    model = wrap(SmallGPT(), forward=logits_of_gpt)
    line = "a wrapped module is not what its own code runs"
    with pytest.raises(UnsupportedModel, match=line), apply_edits(model, EDITS["a head"]):
        raise AssertionError("the block must not be entered")


def test_the_model_is_in_evaluation_mode_inside_only():
    model = llama().train()
    with apply_edits(model, EDITS["a head"]):
        assert not model.training
        generate(model)
    assert model.training
