"""Captures that go to another process or to disk."""

import copy
import io
import pickle

import pytest
import torch

import small
from mesascope import capture
from mesascope.activations import BatchedEdits, Edit

X = torch.randint(1, 20, (2, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(X).index_put((torch.tensor([0]), torch.tensor([0])), torch.tensor(0))


def saved(acts):
    file = io.BytesIO()
    torch.save(acts, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("keep", [lambda acts: pickle.loads(pickle.dumps(acts)), saved])
def test_a_capture_comes_back_without_its_model(keep):
    model = small.llama()
    acts = capture(model, X, ["z", "pattern"], attention_mask=MASK)
    again = keep(acts)
    assert all(torch.equal(again[site], acts[site]) for site in acts.sites)
    assert torch.equal(again.attention_mask, MASK)
    assert (again.layers, again.queries, again.axes) == (acts.layers, acts.queries, acts.axes)
    assert again.to_xarray("pattern").equals(acts.to_xarray("pattern"))
    for use in (lambda: again.head_out(), lambda: again.readout, lambda: again.model):
        with pytest.raises(RuntimeError, match="a capture that was pickled has no"):
            use()
    assert not hasattr(again, "something")


def test_copies_keep_the_model():
    acts = capture(small.llama(), X, ["z"])
    for duplicate in (copy.copy(acts), copy.deepcopy(acts)):
        assert torch.equal(duplicate.head_out(), acts.head_out())
        assert duplicate.model is acts.model
    copy.deepcopy(acts)["z"].zero_()
    assert acts["z"].any()


def test_a_readout_says_that_it_cannot_be_pickled():
    with pytest.raises(TypeError, match="a readout cannot be pickled"):
        pickle.dumps(capture(small.llama(), X, ["z"]).readout)


def test_batched_edits_read_the_mask_of_a_tokenizer():
    model, edit = small.llama(), Edit(site="z", where={"layer": 1}, fn=torch.zeros_like)
    found = BatchedEdits(model, {"input_ids": X, "attention_mask": MASK}, "z").run_edits([[edit]])[0]
    expected = capture(model, X, ["output"], edits=[edit], attention_mask=MASK)["output"]
    kept = torch.as_tensor(MASK).bool()
    torch.testing.assert_close(found[kept], expected[kept])
    assert not torch.allclose(found[kept], capture(model, X, ["output"], edits=[edit])["output"][kept])
