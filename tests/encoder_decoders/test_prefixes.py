"""Soft prefixes count as positions of the source, with labels of their own."""

import pytest
import torch
from peft import PromptTuningConfig, TaskType, get_peft_model
from torch.testing import assert_close

from mesascope.activations import UnsupportedModel, capture
from mesascope.interventions import knock_out_attention, logit_difference, patch, sweep, zero

from .pairs import SOURCE, build, pair, run

SLOTS = 3


def prefix():
    return torch.randn(SLOTS, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("side", ["", "right"])
@pytest.mark.parametrize("name", ["t5", "bart", "marian", "pegasus"])
def test_a_prefix_stands_before_the_embeddings_of_the_source(name, side):
    model, inputs = build(name), pair(side)
    acts = capture(model, inputs | {"prefix": prefix()}, ["pattern", "cross_pattern", "logits"])
    embedded = torch.cat([prefix().expand(3, -1, -1), model.get_input_embeddings()(inputs["input_ids"])], 1).detach()
    plain = {key: value for key, value in inputs.items() if key != "input_ids"} | {"inputs_embeds": embedded}
    if side:
        plain["attention_mask"] = torch.cat([torch.ones(3, SLOTS).long(), inputs["attention_mask"]], 1)
    assert torch.equal(acts["logits"], run(model, plain).logits)
    assert torch.equal(acts["logits"], capture(model, plain, ["logits"])["logits"])
    assert not torch.allclose(acts["logits"], run(model, inputs).logits, atol=1e-3)
    assert acts.encoder["pattern"].shape[-1] == acts["cross_pattern"].shape[-1] == SLOTS + SOURCE


def test_positions_of_a_prefix_have_labels():
    acts = capture(build("t5"), pair() | {"prefix": prefix()}, ["pattern", "cross_pattern", "encoder.resid_post"])
    labels = ["prefix 0", "prefix 1", "prefix 2", *map(str, range(SOURCE))]
    assert acts.encoder.source_labels == acts.decoder.source_labels == labels
    pattern, cross = acts.encoder.to_xarray("pattern"), acts.decoder.to_xarray("cross_pattern")
    assert pattern["key_label"].values.tolist() == pattern["query_label"].values.tolist() == labels
    assert cross["source_label"].values.tolist() == labels
    assert "query_label" not in cross.coords
    assert acts.encoder.to_xarray("resid_post")["pos_label"].values.tolist() == labels
    without = capture(build("t5"), pair(), ["pattern"])
    assert "key_label" not in without.encoder.to_xarray("pattern").coords


def test_a_prefix_in_an_own_model_replaces_the_first_embeddings():
    model, inputs = build("own"), pair("left")  # the first three tokens of the other rows are padding
    tokens = torch.cat([inputs["input_ids"], inputs["decoder_input_ids"]], 1)
    acts = capture(model, {"input_ids": tokens, "prefix": prefix()}, ["pattern", "logits"])
    with torch.no_grad():
        expected = model(tokens, prefix=prefix()).logits[:, SOURCE:]
    assert torch.equal(acts["logits"], expected)
    assert acts.encoder.attention_mask is None  # vectors are no padding
    assert acts.encoder.prefix_length == SLOTS
    halves = capture(model, inputs | {"prefix": prefix()}, ["logits"])
    assert torch.equal(halves["logits"], expected)


def test_attention_to_a_prefix_is_knocked_out():
    model, where = build("t5"), {"layer": 1, "head": 2}
    edit = knock_out_attention("encoder.attn_scores", range(SLOTS), where)
    sites = ["encoder.pattern", "logits"]
    before, after = (capture(model, pair() | {"prefix": prefix()}, sites, edits=each) for each in ((), edit))
    kept = before.encoder["pattern"][1, :, 2, :, SLOTS:]
    assert not after.encoder["pattern"][1, :, 2, :, :SLOTS].any()
    assert_close(after.encoder["pattern"][1, :, 2, :, SLOTS:], kept / kept.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert not torch.equal(before["logits"], after["logits"])


@pytest.fixture
def prompt_tuned():
    """A model of PEFT whose prompt was tuned for a step, and the prompt."""
    torch.manual_seed(0)
    config = PromptTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=SLOTS, num_transformer_submodules=1)
    model = get_peft_model(build("t5"), config)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1.0)
    model(**pair("right")).logits.logsumexp(-1).mean().backward()
    optimizer.step()
    with torch.no_grad():
        return model.eval(), model.get_prompt(batch_size=1)[0]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("side", ["", "right"])
def test_a_prompt_that_peft_has_tuned_is_a_prefix(prompt_tuned, side):
    model, prompt = prompt_tuned
    inputs = pair(side)
    with torch.no_grad():
        expected = model(**inputs).logits
    assert prompt.shape == (SLOTS, 32)
    acts = capture(model.get_base_model(), inputs | {"prefix": prompt}, ["pattern", "cross_pattern", "logits"])
    assert torch.equal(acts["logits"], expected)
    labels = ["prefix 0", "prefix 1", "prefix 2", *map(str, range(SOURCE))]
    assert acts.encoder.to_xarray("pattern")["key_label"].values.tolist() == labels
    assert acts.decoder.to_xarray("cross_pattern")["source_label"].values.tolist() == labels
    with pytest.raises(UnsupportedModel, match=r"got PeftModelForSeq2SeqLM; pass model\.get_base_model\(\)"):
        capture(model, inputs, ["logits"])


def test_positions_of_a_prefix_are_swept_and_patched():
    model, inputs = build("t5"), pair("right")
    with_prefix, other = ({**inputs, "prefix": each} for each in (prefix(), prefix().flip(0)))
    metric = logit_difference(7, 9)
    effects = sweep(model, with_prefix, zero("cross_pattern"), ("source",), metric)
    assert effects["effect"].sizes == {"source": SLOTS + SOURCE}
    assert effects["num_sequences"].values.tolist() == [3] * (SLOTS + 6) + [1] * 3
    found = patch(model, with_prefix, other, metric, "encoder.resid_pre", ("pos",), where={"layer": 0})
    assert found["changed"].values.tolist() == [1, 0, 1] + [0] * SOURCE  # the one in the middle stays in its slot
    whole = patch(model, with_prefix, other, metric, "encoder.resid_post", ("layer",))
    assert float(whole["recovered"].sel(layer=2)) == pytest.approx(1.0, abs=1e-4)


def test_a_prefix_that_is_none_is_refused():
    model, inputs = build("t5"), pair()
    for wrong, message in (
        (torch.ones(SLOTS, 31), r"prefix must be \(slot, 32\)"),
        (torch.ones(2, SLOTS, 32), r"prefix must be \(slot, 32\)"),
        (torch.ones(SLOTS, 32).long(), "prefix must be vectors of finite numbers"),
        (torch.full((SLOTS, 32), torch.nan), "prefix must be vectors of finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            capture(model, inputs | {"prefix": wrong}, ["logits"])
    with pytest.raises(ValueError, match="with at most 9 slots, the positions of the source"):
        capture(build("own"), inputs | {"prefix": torch.ones(SOURCE + 1, 32)}, ["logits"])


def test_embeddings_that_do_not_replace_tokens_are_refused():
    model = build("t5")
    embedding = model.encoder.embed_tokens

    class Doubled(torch.nn.Module):
        def forward(self, tokens):
            return 2 * embedding(tokens)

    given = model.get_encoder().get_input_embeddings
    try:
        model.encoder.get_input_embeddings = Doubled
        with pytest.raises(UnsupportedModel, match=r"embeddings must give the output of their tokens \(bitwise\)"):
            capture(model, pair() | {"prefix": prefix()}, ["logits"])
    finally:
        model.encoder.get_input_embeddings = given
