"""What is put in place: exact where it is what was there, and the other run where it is all of the other run."""

from copy import deepcopy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

import small
from mesascope.activations import FORWARD_SITES, Edit, EditHadNoEffect, capture
from mesascope.interventions import mean, replace, resample, scale, steer, zero

EDITABLE = [name for name in FORWARD_SITES if name not in ("resid_mid", "final_norm", "output")]


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=20, n_embd=16, n_layer=3, n_head=4, n_positions=16, initializer_range=0.5)
    ).eval()


def llama() -> PreTrainedModel:
    return small.llama(initializer_range=0.5)


MODELS = {"gpt2": gpt2(), "llama": llama()}


def placed(name: str, device: str) -> PreTrainedModel:
    """One of the models on a device."""
    return MODELS[name] if device == "cpu" else deepcopy(MODELS[name]).to(device)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, device: str) -> PreTrainedModel:
    return placed(request.param, device)


def tokens(seed: int = 0, rows: int = 3, length: int = 8) -> torch.Tensor:
    return torch.randint(0, 20, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("site", EDITABLE)
def test_a_model_patched_with_its_own_activations_changes_no_bit(model, site):
    plain = capture(model, tokens(), [site, "output"])
    with pytest.warns(EditHadNoEffect, match=f"an edit of {site}"):
        again = capture(model, tokens(), ["output"], edits=[replace(site, plain)])
    assert torch.equal(again["output"], plain["output"])


@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_patching_everything_is_the_other_run_bit_for_bit(model, site, batch_size):
    other = capture(model, tokens(1), [site, "output"], batch_size=batch_size)
    edited = capture(model, tokens(), [site, "output"], edits=[replace(site, other)], batch_size=batch_size)
    assert torch.equal(edited[site], other[site])
    assert torch.equal(edited["output"], other["output"])


def test_a_patch_picks_the_same_places_of_the_other_run(model):
    other = capture(model, tokens(1), ["z"], layers=[1])
    plain = capture(model, tokens(), ["z"], batch_size=2)
    edit = replace("z", other, {"layer": 1, "head": [0, 2], "pos": -1, "batch": slice(1, None)})
    edited = capture(model, tokens(), ["z"], edits=[edit], batch_size=2)["z"]
    assert torch.equal(edited[1, 1:, -1, [0, 2]], other["z"][0, 1:, -1, [0, 2]])
    assert torch.equal(edited[1, :, :-1], plain["z"][1, :, :-1])
    assert torch.equal(edited[1, :, -1, [1, 3]], plain["z"][1, :, -1, [1, 3]])
    assert torch.equal(edited[1, 0], plain["z"][1, 0])


def test_a_mean_is_over_sequences_and_a_resampled_one_is_anothers(model):
    plain = capture(model, tokens(), ["mlp_out"])
    site = plain["mlp_out"]
    first = {"layer": 0}
    averaged = capture(model, tokens(), ["mlp_out"], edits=[mean("mlp_out", plain, first)])["mlp_out"][0]
    torch.testing.assert_close(averaged, site[0].mean(0, keepdim=True).expand_as(averaged))
    shuffled = capture(model, tokens(), ["mlp_out"], edits=[resample("mlp_out", plain, first)])["mlp_out"][0]
    origin = [[torch.equal(row, other) for other in site[0]].index(True) for row in shuffled]
    assert sorted(origin) == [0, 1, 2]
    assert all(origin[row] != row for row in range(3))
    with pytest.raises(ValueError, match="resample needs two or more sequences, but the source has one"):
        resample("mlp_out", capture(model, tokens(rows=1), ["mlp_out"]))


def test_scaling_steering_and_nothing(model):
    plain = capture(model, tokens(), ["resid_post"])["resid_post"]
    where, direction = {"layer": 2, "pos": 3}, torch.arange(16.0, device=model.device)
    for edit, expected in (
        (scale("resid_post", 2.0, where), 2 * plain[2, :, 3]),
        (steer("resid_post", direction, 0.5, where), plain[2, :, 3] + 0.5 * direction),
        (zero("resid_post", where), torch.zeros(3, 16, device=model.device)),
    ):
        edited = capture(model, tokens(), ["resid_post"], edits=[edit])["resid_post"]
        assert torch.equal(edited[2, :, 3], expected)
        assert torch.equal(edited[2, :, :3], plain[2, :, :3])
    with pytest.warns(EditHadNoEffect):
        capture(model, tokens(), ["resid_post"], edits=[scale("resid_post", 1.0)])


def runs_of(model: PreTrainedModel, length: int) -> list[int]:
    """A list that grows with every forward pass over sequences of this length."""
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(1) if next(iter(kwargs.values())).shape[1] == length else None,
        with_kwargs=True,
    )
    return seen


def test_what_cannot_be_is_refused_before_any_forward_pass_and_named():
    model = gpt2()
    x = tokens(length=12)
    shorter = capture(model, tokens(length=7), ["z"])
    partly = capture(model, x, ["z"], layers=[0])
    rows = capture(model, x, ["pattern"], queries=[1])
    single, lone = capture(model, x[:, :1], ["z"]), capture(model, x[:1], ["z"])
    padded = capture(model, x, ["z"], attention_mask=(torch.arange(12) < 9).long().expand(3, 12))
    passes = runs_of(model, 12)
    for edit, error, line in (
        (replace("z", shorter), ValueError, r"as long|\(3, 12, 4, 4\), but has \(3, 7, 4, 4\)"),
        (replace("z", single), ValueError, r"\(3, 12, 4, 4\), but has \(3, 1, 4, 4\)"),
        (replace("z", lone), ValueError, r"\(3, 12, 4, 4\), but has \(1, 12, 4, 4\)"),
        (mean("z", shorter), ValueError, r"\(1, 12, 4, 4\), but has \(1, 7, 4, 4\)"),
        (replace("z", partly, {"layer": 1}), ValueError, r"must have layer 1, but has only layers 0"),
        (zero("z", {"head": 9}), IndexError, r"where\['head'\] must lie within 4 entries, but got 9"),
        (zero("z", {"pos": 12}), IndexError, r"where\['pos'\] must lie within 12 entries, but got 12"),
        (zero("z", {"layer": 3}), IndexError, r"where\['layer'\] must lie within 3 entries, but got 3"),
        (zero("z", {"batch": 3}), IndexError, r"where\['batch'\] must lie within 3 entries, but got 3"),
        (steer("resid_pre", torch.ones(5)), ValueError, r"at resid_pre must have 16 entries, but got shape \(5,\)"),
        (mean("z", padded), ValueError, "must have the attention mask of the run"),
        (Edit(site="value", fn=lambda v: v[..., :2]), ValueError, r"must .* broadcasts to \(3, 4, 12, 4\)"),
    ):
        with pytest.raises(error, match=line):
            capture(model, x, ["output"], edits=[edit])
    for make, line in (
        (lambda: zero("heads"), "a site must be one of resid_pre, attn_out"),
        (lambda: replace("mlp_out", partly), "'mlp_out' was not recorded; recorded are z"),
        (lambda: replace("pattern", rows), "pattern must be recorded at all query positions"),
        (lambda: zero("attn_scores"), "attn_scores must stay -inf where a key is masked"),
        (lambda: scale("attn_scores", 2.0), "attn_scores must stay -inf where a key is masked"),
        (lambda: replace("output", partly), "an edit must act in a layer, but output is after"),
    ):
        with pytest.raises((ValueError, KeyError), match=line):
            make()
    assert not passes


def test_a_function_is_tried_in_the_model_s_own_precision_and_may_dislike_zeros():
    model = llama().bfloat16()
    turn = torch.eye(16, dtype=torch.bfloat16).flip(0)
    turned = capture(model, tokens(), ["resid_post"], edits=[Edit(site="resid_post", fn=lambda old: old @ turn)])
    assert turned["resid_post"].dtype == torch.bfloat16

    def unlike_zero(old: torch.Tensor) -> torch.Tensor:
        assert old.any()
        return 2 * old

    where = {"layer": 2}
    plain = capture(model, tokens(), ["mlp_out"])["mlp_out"][2]
    edit = Edit(site="mlp_out", where=where, fn=unlike_zero)
    assert torch.equal(capture(model, tokens(), ["mlp_out"], edits=[edit])["mlp_out"][2], 2 * plain)
