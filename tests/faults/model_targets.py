"""Public functions of wrapped modules, encoder-decoders, generation and settings, to put odd values in their place."""

from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

import mesascope
from faults.call_targets import SHAPE, Target, build_analysis, limit_count, limit_counts
from faults.small_study import load_small_study
from mesascope import analyses, interventions
from mesascope.activations import wrap
from mesascope.models.encoder_decoder.config import EncoderDecoderConfig
from mesascope.models.encoder_decoder.model import EncoderDecoder
from mesascope.models.transformer import Decoder
from mesascope.studies.base import SCALES

VOCABULARY = 12


class PlainModel(nn.Module):
    """A module that is not a model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.blocks = nn.ModuleList(_PlainBlock() for _ in range(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = self.embed(inputs)
        for block in self.blocks:
            x = block(x)
        return x @ self.embed.weight.T


class _PlainBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        z = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        return x + self.out(z.transpose(1, 2).flatten(2))


def build_wrapping_targets(words: torch.Tensor) -> dict[str, Target]:
    """Return `wrap`, and functions that take a wrapped module."""
    torch.manual_seed(0)
    module = PlainModel().eval()
    options = {"forward": None, "layers": None, "attention": None, "context_length": None, "untrained": None}

    def wrap_and_capture(inputs: torch.Tensor, **arguments: Any) -> Any:
        return mesascope.capture(wrap(**arguments), inputs, ["z", "logits"])

    wrapped = wrap(module, context_length=12)
    return {
        "wrap": Target(
            function=wrap_and_capture,
            arguments={"module": module, "inputs": words, **options},
            models=frozenset({"module"}),
        ),
        "wrap with layers": Target(
            function=wrap,
            arguments={"module": module, **options, "layers": list(module.blocks), "attention": "qkv"},
            models=frozenset({"module"}),
        ),
        "capture of a wrapped module": Target(
            function=mesascope.capture,
            arguments={"model": wrapped, "inputs": words, "sites": ["pattern"], "layers": None, "attention_mask": None},
        ),
        "patch of a wrapped module": Target(
            function=interventions.patch,
            arguments={"model": wrapped, "inputs": words, "source": words.flip(1), "site": "resid_pre"}
            | {"metric": interventions.logit_difference(1, 2)},
        ),
    }


def build_generation_targets(tokens: Decoder, words: torch.Tensor) -> dict[str, Target]:
    """Return `apply_edits` in forward passes and in generation, with the interventions that only models need."""

    def run_edited(model: PreTrainedModel, edits: Any, inputs: torch.Tensor = words) -> torch.Tensor:
        with interventions.apply_edits(model, edits):
            return model(input_ids=inputs).logits

    pair = {"model": tokens, "inputs": words, "source": words.flip(1), "metric": interventions.logit_difference(1, 2)}
    acts = mesascope.capture(tokens, words, ["z"])
    edit = interventions.zero("z", {"layer": 0})
    sourced = {"site": "z", "source": acts, "where": None}
    return {
        "apply_edits": Target(function=run_edited, arguments={"model": tokens, "edits": [edit]}),
        "path_patch": Target(
            function=interventions.path_patch,
            arguments={**pair, "site": "z", "axes": ("layer", "head"), "receiver": "output", "receiver_where": None}
            | {"through": "residual", "where": None, "attention_mask": None, "source_attention_mask": None},
        ),
        "attribution_patch": Target(
            function=limit_counts(interventions.attribution_patch),
            arguments={"model": tokens, "inputs": words, "edit": interventions.mean("z", acts), "axes": ("layer",)}
            | {"metric": "loss", "attention_mask": None, "steps": 0, "compare": False},
        ),
        "mean": Target(function=interventions.mean, arguments=sourced),
        "replace": Target(function=interventions.replace, arguments=sourced),
        "resample": Target(function=interventions.resample, arguments=sourced),
        "total_head_contributions": Target(
            function=interventions.total_head_contributions, arguments={"model": tokens, "inputs": words}
        ),
        "logit_difference": Target(
            function=interventions.logit_difference, arguments={"correct": 1, "incorrect": torch.tensor([2, 3])}
        ),
        "log_probability": Target(function=interventions.log_probability, arguments={"answer": 1}),
    }


def build_encoder_decoder_targets(words: torch.Tensor) -> dict[str, Target]:
    """Return the functions for encoder-decoders, of this package and of transformers."""
    torch.manual_seed(0)
    ours = EncoderDecoder(EncoderDecoderConfig(**SHAPE, vocab_size=VOCABULARY, source_length=4)).eval()
    config = T5Config(vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    theirs = T5ForConditionalGeneration(config).eval()
    source, target = torch.arange(10).reshape(2, 5) + 1, torch.arange(8).reshape(2, 4) + 3
    pairs = {"input_ids": source, "decoder_input_ids": target}
    masks = {"attention_mask": torch.ones(2, 5, dtype=torch.long), "decoder_attention_mask": None, "prefix": None}
    sites = ["pattern", "cross_pattern", "cross_z", "decoder.resid_post"]
    acts = mesascope.capture(theirs, pairs, ["pattern", "cross_pattern", "cross_z", "resid_post"])
    options = {"layers": None, "edits": (), "batch_size": None, "attention_mask": None}
    slots = torch.tensor([[-1, -1, 0, 1, 1]] * 2)

    def capture_pairs(sites: Any, **inputs: Any) -> Any:
        return mesascope.capture(theirs, inputs, sites)

    def capture_edited(model: PreTrainedModel, **arguments: Any) -> Any:
        edit = interventions.knock_out_attention(**arguments)
        return mesascope.capture(model, pairs, ["encoder.pattern"], edits=edit)

    return {
        "capture of source and target": Target(
            function=mesascope.capture, arguments={"model": theirs, "inputs": pairs, "sites": sites, **options}
        ),
        "capture of source and target in one": Target(
            function=mesascope.capture, arguments={"model": ours, "inputs": words, "sites": sites, **options}
        ),
        "capture of parts": Target(function=capture_pairs, arguments={"sites": ["cross_pattern"], **pairs, **masks}),
        "knock_out_attention": Target(
            function=capture_edited,
            arguments={"model": theirs, "site": "encoder.attn_scores", "keys": range(2), "where": {"layer": 0}},
        ),
        **build_pair_intervention_targets(theirs, pairs),
        "lookup_heads": Target(
            function=limit_counts(analyses.lookup_heads),
            arguments={"acts": acts.encoder, "slots": slots, "draws": 3, "seed": 0},
        ),
        "cross_copying": Target(
            function=limit_counts(analyses.cross_copying),
            arguments={"acts": acts.decoder, "source": source.flip(1), "draws": 3, "seed": 0},
        ),
        "analyses of a stack": Target(
            function=analyses.run_analyses,
            arguments={"model": theirs, "inputs": pairs, "analyses": [analyses.positional_attention]}
            | {"stack": "encoder", "batch_size": None, "queries": None, "layers": None},
        ),
    }


def build_pair_intervention_targets(model: PreTrainedModel, pairs: dict[str, torch.Tensor]) -> dict[str, Target]:
    """Return the interventions that take an encoder-decoder."""
    metric, other = interventions.logit_difference(3, 4), pairs | {"input_ids": pairs["input_ids"].flip(1)}
    shared = {"model": model, "inputs": pairs, "metric": metric, "attention_mask": None, "max_positions": 512}
    patched = shared | {"source": other, "source_attention_mask": None, "where": None}
    receiver = {"receiver": "cross_value", "receiver_where": {"layer": 1}, "through": "residual"}
    edit = interventions.zero("cross_z")
    return {
        "sweep of source and target": Target(
            function=interventions.sweep, arguments={**shared, "edit": edit, "axes": ("layer", "head")}
        ),
        "attribution_patch of source and target": Target(
            function=interventions.attribution_patch,
            arguments={**shared, "edit": edit, "axes": ("layer", "head"), "steps": 0, "compare": False},
        ),
        "patch of source and target": Target(
            function=interventions.patch, arguments={**patched, "site": "encoder.z", "axes": ("layer", "head")}
        ),
        "path_patch of source and target": Target(
            function=interventions.path_patch,
            arguments={**patched, **receiver, "site": "encoder.z", "axes": ("layer", "head")},
        ),
    }


def build_run_targets(folder: Path) -> dict[str, Target]:
    """Return `mesascope.run` for a study that trains in a second, with settings; runs are below a folder."""
    study = replace(load_small_study(), seeds=dict.fromkeys(SCALES, 1))

    def run(seeds: Any = 1, **arguments: Any) -> None:
        mesascope.run(seeds=limit_count("seeds", seeds), out=mkdtemp(dir=folder), device="cpu", quiet=True, **arguments)

    def run_with(steps: Any, lr: Any, length: Any, width: Any) -> None:
        settings = {"training.steps": limit_count("steps", steps), "training.optimizer.lr": lr, "task.length": length}
        run(study=study, scale="smoke", settings={**settings, "model.hidden_size": width})

    options = {"study": study, "scale": "smoke", "seeds": 1, "on": "serial"}
    return {
        "run": Target(function=run, arguments={**options, "vary": None, "settings": {"training.steps": 2}}),
        "run of a sweep": Target(function=run, arguments={**options, "vary": {"training.steps": ["1", "2"]}}),
        "values of settings": Target(
            function=run_with, arguments={"steps": 2, "lr": 0.2, "length": 4, "width": 4}, models=frozenset()
        ),
    }


def build_analysis_targets(tokens: Decoder, words: torch.Tensor) -> dict[str, Target]:
    """Return the analyses of a model of tokens that other lists of targets lack, with their own arguments."""
    generator = torch.Generator().manual_seed(0)
    repeated = analyses.sample_repeated_tokens(torch.arange(1, 12), 4, 4, generator)
    again = torch.tensor([[1, 2, 3, 1, 2, 3], [4, 5, 4, 5, 6, 4]])
    sites = ["attn_scores", "pattern", "query", "key", "value", "z", "resid_pre", "resid_post", "attn_out"]

    def record(inputs: torch.Tensor) -> Any:
        return mesascope.capture(
            tokens, inputs, [*sites, "logits", "output"], reduce=analyses.repeated_token_heads.reductions
        )

    acts = record(again)
    places = {"batch_index": torch.tensor([0, 1]), "pos_index": torch.tensor([2, 3]), "tokens": torch.tensor([4, 5])}
    sampled = {"allowed": torch.arange(1, 12), "length": 4, "count": 4, "generator": generator, "bos": None}
    scores = analyses.run_analyses(tokens, again, [analyses.positional_attention])
    several = (
        *(analyses.attention_patterns, analyses.positional_attention, analyses.token_similarity),
        *(analyses.token_projections, analyses.token_attribution, analyses.logit_lens, analyses.affine_lens),
        *(analyses.natural_induction, analyses.ov_copying_score),
    )
    return {
        **{
            name: one
            for each in several
            for name, one in build_analysis(each, tokens, words.repeat(1, 2), None).items()
        },
        "top_tokens": Target(function=analyses.top_tokens, arguments={"acts": record(words[:1]), "k": 3}),
        "decompose_logits": Target(function=analyses.decompose_logits, arguments={"acts": acts, **places}),
        "repeated_token_heads": Target(function=analyses.repeated_token_heads, arguments={"acts": record(repeated)}),
        "sample_repeated_tokens": Target(function=analyses.sample_repeated_tokens, arguments=sampled),
        "label_head_roles": Target(function=analyses.label_head_roles, arguments={"results": scores}),
    }
