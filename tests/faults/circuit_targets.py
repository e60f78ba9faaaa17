"""Public functions of circuits and probes with valid arguments, to put odd values in their place."""

import torch

import mesascope
from faults.call_targets import Target, limit_counts
from mesascope import circuits, probes
from mesascope.activations.split_forward import SplitForward
from mesascope.interventions import logit_difference
from mesascope.models.transformer import Decoder


def build_circuit_targets(tokens: Decoder, words: torch.Tensor) -> dict[str, Target]:
    """Return the functions of `mesascope.circuits` for a model of tokens."""
    pair = {"model": tokens, "inputs": words, "source": words.flip(1), "metric": logit_difference(1, 2)}
    masks = {"attention_mask": None, "source_attention_mask": None}
    runs = {**pair, **masks, "ablation": "counterfactual", "seed": 0}
    found = circuits.attribute_edges(tokens, words, words.flip(1), logit_difference(1, 2), steps=0)
    score = {"score": found["score"], "by": "magnitude"}
    drawn = {"score_by_sequence": found["score_by_sequence"], "size": 3, "draws": 2, "by": "magnitude", "seed": 0}
    sizes = {"fractions": [0.0, 0.5], "random_draws": 1}
    return {
        "attribute_edges": Target(function=limit_counts(circuits.attribute_edges), arguments={**runs, "steps": 1}),
        "attribute_edges by mean": Target(
            function=limit_counts(circuits.attribute_edges), arguments={**runs, "ablation": "mean", "steps": 0}
        ),
        "patch_edges": Target(function=circuits.patch_edges, arguments={**runs, "edges": [("embedding", "L1.H0.q")]}),
        "patch_edges by resampling": Target(
            function=circuits.patch_edges,
            arguments={**runs, "edges": [("L0.H1", "output")], "ablation": "resample"},
        ),
        "measure_faithfulness": Target(
            function=limit_counts(circuits.measure_faithfulness), arguments={**runs, **score, **sizes}
        ),
        "bootstrap_edges": Target(function=limit_counts(circuits.bootstrap_edges), arguments=drawn),
        "rank_edges": Target(function=circuits.rank_edges, arguments=score),
        "select_edges": Target(function=circuits.select_edges, arguments={"score": found["score"], "fraction": 0.1}),
        "build_graph": Target(function=circuits.build_graph, arguments={**score, "size": 3}),
        "find_edges": Target(function=circuits.find_edges, arguments={"split": SplitForward(tokens, words)}),
    }


def build_probe_targets(tokens: Decoder, words: torch.Tensor) -> dict[str, Target]:
    """Return the functions of `mesascope.probes` for a model of tokens."""
    generator = torch.Generator().manual_seed(0)
    sequences = torch.randint(0, 12, (12, 6), generator=generator)
    acts = mesascope.capture(tokens, sequences, ["resid_post"])
    features, labels = acts["resid_post"][0, :, -1], torch.arange(12) % 2
    rows = {"features": features, "labels": labels, "mask": None}
    settings = {"train": None, "test": None, "control_draws": 1, "folds": 2, "seed": 0}
    basis = probes.draw_random_basis(2, 8, generator).float()
    claim = {"site": "z", "layer": 1, "variable": probes.whole_input, "head": 0, "position": None}
    parity = probes.ActivationClaim(site="resid_pre", layer=0, variable=lambda inputs: inputs[:, -1] % 2)
    eraser = probes.fit_eraser(features, labels)
    expected = tokens(words.flip(1)).logits[:, -1].argmax(-1)
    return {
        "fit_probe": Target(function=probes.fit_probe, arguments={**rows, "folds": 2, "seed": 0}),
        "probe": Target(function=limit_counts(probes.probe), arguments={**rows, "types": sequences[:, -1], **settings}),
        "probe_site": Target(
            function=limit_counts(probes.probe_site),
            arguments={"acts": acts, "site": "resid_post", "labels": labels, "types": None, "layers": [0]}
            | {"heads": None, "positions": -1, "mask": None, **settings},
        ),
        "fit_eraser": Target(function=probes.fit_eraser, arguments=rows),
        "Eraser": Target(function=eraser, arguments={"features": features}),
        "erase": Target(function=probes.erase, arguments={"site": "resid_post", "eraser": eraser, "where": None}),
        "find_orthonormal_basis": Target(
            function=probes.find_orthonormal_basis, arguments={"directions": torch.ones(2, 8)}
        ),
        "draw_random_basis": Target(
            function=probes.draw_random_basis, arguments={"rank": 2, "size": 8, "generator": torch.Generator()}
        ),
        "draw_control_labels": Target(
            function=probes.draw_control_labels,
            arguments={"types": torch.arange(12), "labels": labels, "generator": torch.Generator()},
        ),
        "replace_subspace": Target(
            function=probes.replace_subspace,
            arguments={"site": "resid_post", "source": acts, "basis": basis, "where": None, "order": None},
        ),
        "measure_interchange": Target(
            function=limit_counts(probes.measure_interchange),
            arguments={"model": tokens, "inputs": words, "source": words.flip(1), "expected": expected}
            | {"site": "resid_post", "layers": None, "where": None, "basis": None, "answers": None, "predict": None}
            | {"draws": 1, "seed": 0},
        ),
        "ActivationClaim": Target(function=probes.ActivationClaim, arguments=claim),
        "Hypothesis": Target(function=probes.Hypothesis, arguments={"claims": (probes.ActivationClaim(**claim),)}),
        "whole_input": Target(function=probes.whole_input, arguments={"inputs": words}),
        "scrub": Target(
            function=limit_counts(probes.scrub),
            arguments={"model": tokens, "inputs": sequences, "hypothesis": probes.Hypothesis(claims=(parity,))}
            | {"metric": "loss", "draws": 1, "seed": 0},
        ),
    }
