"""Texts longer than those that were checked before, and batches that begin with padding."""

import pytest
import torch
from transformers import AttentionInterface, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import small
from mesascope import UnsupportedModel, capture
from mesascope.activations import BatchedEdits

LONG = 320


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(1, 20, shape, generator=torch.Generator().manual_seed(0))


def padded(*rows: tuple[int, str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of some lengths, each padded on its side."""
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for row, (count, side) in enumerate(rows):
        part = slice(length - count, None) if side == "left" else slice(count)
        ids[row, part], mask[row, part] = tokens(count), 1
    return ids, mask


class BranchesLate(LlamaForCausalLM):
    """Its logits depend on the name of the attention implementation in texts longer than a threshold."""

    threshold = 300

    def forward(self, input_ids=None, **given):
        output = super().forward(input_ids, **given)
        if input_ids.shape[1] > self.threshold and self.config._attn_implementation in ("eager", "sdpa"):
            return self.lm_head_twice(output)
        return output

    def lm_head_twice(self, output):
        output.logits = output.logits * 2
        return output


@pytest.fixture
def model():
    return small.llama(max_position_embeddings=512)


def test_what_begins_after_256_positions_is_refused():
    model = BranchesLate(small.llama(max_position_embeddings=512).config).eval()
    capture(model, tokens(2, 40))
    capture(model, tokens(2, 280))
    for sites in (["resid_pre", "output"], ["pattern"]):
        with pytest.raises(UnsupportedModel, match="must not change the output"):
            capture(model, tokens(2, LONG), sites)


def test_what_begins_in_a_shorter_text_than_was_checked_is_refused():
    model = BranchesLate(small.llama(max_position_embeddings=512).config).eval()
    model.threshold = 20
    capture(model, tokens(2, 16))
    with pytest.raises(UnsupportedModel, match="must not change the output"):
        capture(model, tokens(2, 21))


def test_edits_of_a_long_text_are_refused_alike():
    model = BranchesLate(small.llama(max_position_embeddings=512).config).eval()
    BatchedEdits(model, tokens(2, 40), "z").validate_sites({"z": [0]})
    with pytest.raises(UnsupportedModel, match="must not change the output"):
        BatchedEdits(model, tokens(2, LONG), "z").validate_sites({"z": [0]})


def test_attention_weights_that_are_others_in_long_texts_are_refused():
    def forgets_early_keys(module, query, key, value, mask, **given):
        if key.shape[2] > 300:
            mask = torch.ones(1, 1, *2 * key.shape[2:3], dtype=torch.bool).tril().triu(-100)
        return sdpa_attention_forward(module, query, key, value, mask, **given)

    AttentionInterface.register("sdpa_sparse_when_long", forgets_early_keys)
    try:
        model = small.llama(max_position_embeddings=512, attn_implementation="sdpa_sparse_when_long")
        capture(model, tokens(1, 40), ["pattern", "resid_pre"])
        capture(model, tokens(1, LONG), ["resid_pre"])
        with pytest.raises(UnsupportedModel, match="must reproduce z"):
            capture(model, tokens(1, LONG), ["pattern"])
    finally:
        AttentionInterface._global_mapping.pop("sdpa_sparse_when_long")


def test_a_long_text_is_captured_as_the_model_computes_it(model):
    x = tokens(2, LONG)
    acts = capture(model, x, ["resid_pre", "pattern", "output"])
    with torch.no_grad():
        own = model(x, output_hidden_states=True)
    assert torch.equal(acts["output"], own.logits)
    assert torch.equal(acts["resid_pre"], torch.stack(own.hidden_states[:3]))


@pytest.mark.parametrize("rows", [((10, "left"), (300, "left")), ((10, "right"), (300, "left"), (7, "left"))])
def test_more_than_256_pads_before_the_first_prompt(model, rows):
    ids, mask = padded(*rows, length=300)
    acts = capture(model, ids, ["resid_pre", "pattern", "output"], attention_mask=mask)
    for row in range(len(rows)):
        kept = mask[row].bool()
        alone = capture(model, ids[row : row + 1, kept], ["pattern", "output"])
        assert torch.allclose(acts["output"][row, kept], alone["output"][0], atol=1e-5)
        assert torch.allclose(acts["pattern"][:, row][..., kept, :][..., kept], alone["pattern"][:, 0], atol=1e-5)


def test_a_first_sequence_of_padding_alone_hides_no_other(model):
    ids, mask = padded((0, "right"), (9, "left"), length=12)
    acts = capture(model, ids, ["output"], attention_mask=mask)
    assert torch.allclose(acts["output"][1, 3:], capture(model, ids[1:, 3:], ["output"])["output"][0], atol=1e-5)
    with pytest.raises(ValueError, match="must not be all padding"):
        capture(model, ids, ["output"], attention_mask=torch.zeros_like(mask))


def test_every_kind_of_padding_is_checked_not_the_first_alone():
    """A model that counts squares of columns is right with pads after the text, and wrong with pads before it."""
    model = small.llama()

    def count_squares(module, args, named):
        return args, named | {"position_ids": torch.arange(args[0].shape[1])[None] ** 2}

    model.model.rotary_emb.register_forward_pre_hook(count_squares, with_kwargs=True)
    ids, mask = padded((8, "right"), (8, "left"), length=12)
    capture(model, ids[:1], ["output"], attention_mask=mask[:1])
    with pytest.raises(UnsupportedModel, match=r"padding must not change the output .* in sequence 1"):
        capture(model, ids, ["output"], attention_mask=mask)
