"""Causal scrubbing: the ends of the scale, a planted circuit, wrong hypotheses, and how activations are resampled."""

from dataclasses import replace as with_other

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MiniMaxConfig,
    PreTrainedModel,
)

import small
from mesascope.activations import UnsupportedModel
from mesascope.interventions import log_probability
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.probes import ActivationClaim, Hypothesis, scrub, whole_input
from mesascope.probes.hypotheses import VariableFn, draw_agreeing
from probes.planted_sequences import (
    INDUCTION_HEAD,
    PREVIOUS_HEAD,
    TWO_BACK_HEAD,
    PlantedSequences,
    answer,
    build_induction_model,
    last_token,
    own_token,
    previous_token,
    two_back,
    untouched,
)

EMBEDDING = ActivationClaim(site="resid_pre", layer=0, variable=own_token)
PREVIOUS = ActivationClaim(site="z", layer=0, head=PREVIOUS_HEAD, variable=previous_token)
TWO_BACK = ActivationClaim(site="z", layer=0, head=TWO_BACK_HEAD, variable=two_back)
INDUCTION = ActivationClaim(site="z", layer=1, head=INDUCTION_HEAD, position=-1, variable=answer)
X = torch.randint(0, 20, (8, 5), generator=torch.Generator().manual_seed(0))


def gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=20, initializer_range=0.5, n_embd=16, n_layer=2, n_head=4, n_positions=8)
    return GPT2LMHeadModel(config).eval()


def gpt_neox() -> PreTrainedModel:
    shape = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = GPTNeoXConfig(use_parallel_residual=True, num_attention_heads=4, initializer_range=0.5, **shape)
    return GPTNeoXForCausalLM(config).eval()


FAMILIES = {"llama": lambda: small.llama(initializer_range=0.5), "gpt2": gpt2, "gpt_neox": gpt_neox}


def claim_everything(num_layers: int, variable: VariableFn) -> Hypothesis:
    layers = range(num_layers)
    claims = [
        ActivationClaim(site=site, layer=layer, variable=variable) for site in ("z", "mlp_out") for layer in layers
    ]
    return Hypothesis(claims=(ActivationClaim(site="resid_pre", layer=0, variable=variable), *claims))


class Planted:
    """A planted model and its sequences."""

    def __init__(self) -> None:
        self.model: Decoder = build_induction_model()
        self.sequences = PlantedSequences(40, 0)

    def recover(self, *claims: ActivationClaim, draws: int = 1) -> float:
        metric = log_probability(self.sequences.answer)
        found = scrub(self.model, self.sequences.tokens, Hypothesis(claims=claims), metric, draws=draws)
        return float(found["recovered"])


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_depends_on_the_input_and_nothing_is_the_random_end(family: str):
    torch.manual_seed(0)
    model = FAMILIES[family]()
    num_layers = 3 if family == "llama" else 2
    everything = scrub(model, X, claim_everything(num_layers, whole_input), "loss", draws=2)
    assert float(everything["recovered"]) == float(everything["recovered_low"]) == 1  # bit for bit
    assert everything["scrubbed"].values.tolist() == [float(everything["intact"])] * 2
    assert everything["resampled"].values.tolist() == [0.0] * (1 + 2 * num_layers)
    nothing = scrub(model, X, Hypothesis(claims=()), "loss", draws=2)
    assert abs(float(nothing["recovered"])) < 1e-5
    assert nothing["random"].equals(everything["random"])
    constant = scrub(model, X, claim_everything(num_layers, lambda x: x[:, 0] * 0), "loss", draws=2)
    assert float(constant["recovered"]) < 0.9


def test_a_stream_that_depends_on_the_input_makes_all_before_it_irrelevant():
    model = small.llama(initializer_range=0.5)
    last = ActivationClaim(site="resid_post", layer=2, variable=whole_input)
    assert float(scrub(model, X, Hypothesis(claims=(last,)), "loss", draws=1)["recovered"]) == pytest.approx(
        1, abs=1e-5
    )
    wrong = with_other(last, variable=lambda x: x[:, 0] * 0)
    assert float(scrub(model, X, Hypothesis(claims=(wrong,)), "loss", draws=1)["recovered"]) < 0.9


def test_the_planted_circuit_is_recovered_and_its_variables_are_needed(planted: Planted):
    x, metric = planted.sequences.tokens, log_probability(planted.sequences.answer)
    found = scrub(planted.model, x, Hypothesis(claims=(EMBEDDING, PREVIOUS, INDUCTION)), metric, draws=2)
    assert float(found["recovered"]) == pytest.approx(1, abs=1e-5)
    assert float(found["recovered_high"]) == pytest.approx(1, abs=1e-5)
    assert abs(found["recovered_shuffled"]).max() < 0.4
    assert found["resampled"].min() > 0.9
    assert list(found["claim"].values) == [
        "resid_pre L0: own_token",
        "z L0 H3: previous_token",
        "z L1 H5 pos -1: answer",
    ]
    assert float(found["intact"]) > -0.1
    assert float(found["random"].mean()) < -5
    assert all(one.attrs["units"] and one.attrs["description"] for one in found.data_vars.values())


def test_a_true_claim_that_is_not_needed_changes_nothing(planted: Planted):
    assert planted.recover(EMBEDDING, PREVIOUS, TWO_BACK, INDUCTION) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "claims",
    [
        (EMBEDDING, with_other(PREVIOUS, variable=own_token), INDUCTION),
        (EMBEDDING, PREVIOUS, with_other(INDUCTION, variable=last_token)),
        (with_other(EMBEDDING, variable=previous_token), PREVIOUS, INDUCTION),
        (EMBEDDING, TWO_BACK, INDUCTION),  # the decoy in the place of the head that is read
        (EMBEDDING, INDUCTION),
        (EMBEDDING, PREVIOUS),
    ],
    ids=["wrong token", "wrong answer", "wrong embedding", "decoy", "no previous token", "no induction"],
)
def test_wrong_hypotheses_are_not_recovered(planted: Planted, claims: tuple[ActivationClaim, ...]):
    assert planted.recover(*claims) < 0.5


def test_a_claim_without_earlier_ones_is_taken_from_the_intact_pass(planted: Planted):
    assert planted.recover(INDUCTION) == pytest.approx(1, abs=1e-5)


def test_agreeing_sequences_are_others_in_one_cycle():
    labels = torch.tensor([[0, 5], [1, 5], [0, 5], [0, 7], [1, 7]])
    for seed in range(5):
        order = draw_agreeing(labels, torch.Generator().manual_seed(seed))
        for column in range(2):
            chosen = order[:, column]
            assert sorted(chosen.tolist()) == [0, 1, 2, 3, 4]
            assert labels[chosen, column].equal(labels[:, column])
            assert not (chosen == torch.arange(5)).any()
    assert draw_agreeing(torch.arange(4), torch.Generator().manual_seed(0)).tolist() == [0, 1, 2, 3]
    large = torch.zeros(50, dtype=torch.long)
    steps, at, order = 0, 0, draw_agreeing(large, torch.Generator().manual_seed(0))
    while steps == 0 or at != 0:
        at, steps = int(order[at]), steps + 1
    assert steps == 50


def test_nothing_is_changed(planted: Planted):
    assert untouched(planted.model, lambda: planted.recover(EMBEDDING, PREVIOUS))


def test_draws_are_fixed_by_the_seed():
    model = small.llama(initializer_range=0.5)
    hypothesis = claim_everything(3, last_token)
    first, second, other = (scrub(model, X, hypothesis, "loss", draws=1, seed=seed) for seed in (0, 0, 1))
    assert first.equals(second)
    assert not first.equals(other)


def labels_of(x: Tensor) -> Tensor:
    return x[:, 0]


REFUSED = {
    "one sequence": (X[:1], (), "loss", "scrubbing needs two sequences and one draw or more, but got 1"),
    "the same outputs": (X[:1].repeat(4, 1), (), "loss", "the metric must differ between the intact outputs"),
    "a distance": (X, (), "kl_divergence", "needs a metric that differs between the runs"),
    "padding": ({"input_ids": X, "attention_mask": [[0] + [1] * 4] * 8}, (), "loss", "sequences of one length"),
    "no such layer": (X, ({"layer": 3},), "loss", r"a layer with z \(\[0, 1, 2\]\), but got z L3"),
    "no such head": (X, ({"head": 4},), "loss", "about heads from 0 to 3, but got z L0 H4"),
    "no such position": (X, ({"position": 5},), "loss", "about positions from 0 to 4, but got z L0 pos 5"),
    "two claims": (
        X,
        ({}, {"head": 1, "position": 2}),
        "loss",
        "an activation must have one claim, but z L0: labels_of",
    ),
    "labels of wrong length": (X, ({"variable": lambda x: x[1:, 0]},), "loss", "the variable of the claim z L0"),
    "real labels": (X, ({"variable": lambda x: x[:, 0] / 2},), "loss", "must be integers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_scrubbed_is_refused_by_name(name: str):
    inputs, changes, metric, message = REFUSED[name]
    claim = ActivationClaim(site="z", layer=0, variable=labels_of)
    hypothesis = Hypothesis(claims=tuple(with_other(claim, **one) for one in changes))
    with pytest.raises(ValueError, match=message) as caught:
        scrub(small.llama(), inputs, hypothesis, metric)
    assert len(str(caught.value).splitlines()) == 1


def test_claims_are_refused_by_name():
    with pytest.raises(
        ValueError, match="a claim must be about one of resid_pre, z, mlp_out, resid_post, but got 'key'"
    ):
        ActivationClaim(site="key", layer=0, variable=own_token)
    with pytest.raises(ValueError, match="head must be omitted at mlp_out"):
        ActivationClaim(site="mlp_out", layer=0, head=1, variable=own_token)
    with pytest.raises(ValueError, match="variable must be"):
        ActivationClaim(site="z", layer=0, variable=X)
    with pytest.raises(ValueError, match="claims must be a tuple of ActivationClaim"):
        Hypothesis(claims=[EMBEDDING])


def test_models_with_layers_without_heads_are_refused_by_name():
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "vocab_size": 20, "num_key_value_heads": 2, "num_local_experts": 2}
    config = MiniMaxConfig(
        hidden_size=16,
        intermediate_size=8,
        num_attention_heads=2,
        layer_types=["full_attention", "linear_attention"],
        **shape,
    )
    hybrid = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(
        UnsupportedModel, match="scrubbing needs attention heads in every layer, but layer 1 of MiniMax"
    ):
        scrub(hybrid, X, Hypothesis(claims=()), "loss")


def test_models_whose_output_has_other_sources_are_refused_by_name():
    class TokenBias(Decoder):
        def forward(self, input_ids: Tensor, **options: object) -> object:
            output = super().forward(input_ids, **options)
            output.logits = output.logits + torch.nn.functional.one_hot(input_ids, 20) * 5.0
            return output

    torch.manual_seed(0)
    biased = TokenBias(DecoderConfig(vocab_size=20, hidden_size=16, num_attention_heads=2, num_hidden_layers=2)).eval()
    with pytest.raises(UnsupportedModel, match="the embedding, heads and MLPs must determine the output, but"):
        scrub(biased, X, Hypothesis(claims=()), "loss")


def test_sequences_without_positions_have_no_number():
    with pytest.raises(ValueError, match=r"must be \(batch, pos\) and not empty, but got \(3, 0\)"):
        whole_input(torch.zeros(3, 0, dtype=torch.long))
