"""Passes of an inspection: each runs the model in one way and shares it between several analyses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope import analyses
from mesascope.activations import UnsupportedModel, WrappedModule, attention_layers
from mesascope.activations.validation.inputs import find_input_device
from mesascope.analyses import Analysis, inner, run_analyses, sample_repeated_tokens
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.nulls import NUM_UNTRAINED_DRAWS
from mesascope.analyses.stream.input_spectra import input_spectra, sample_without_sinks, spectra_of_samples
from mesascope.statistics import evenly_spaced_indices

TOKENS_PER_BATCH = 2048  # tokens per forward pass
MAX_LENS_TOKENS = 512  # tokens for the lenses, over all sequences; one sequence of a control has about as many
MAX_INNER_TOKENS, MAX_INNER_LENGTH, MAX_INNER_QUERIES = (
    1024,
    256,
    64,
)  # inner objectives: total, per sequence, query positions
NUM_SHORT_SEQUENCES, MAX_SHORT_LENGTH = 2, 256  # number and length of the sequences for attribution and similarity
MAX_REPEATED_TOKENS, NUM_REPEATED_SEQUENCES = 24, 8  # tokens before the repetition, number of sequences
EXCERPT_LENGTH = 48  # positions whose attention is stored
EVERY_LAYER_SITES = frozenset(("resid_pre", "resid_post"))  # available in every layer, also of hybrid models
MAX_INPUT_TOKENS = 512  # tokens from which the inputs of linear modules are sampled


@dataclass(frozen=True, kw_only=True, eq=False)
class InspectionInputs:
    """Inputs of the inspected model.

    Attributes:
        token_ids: The tokenized text.
        allowed_tokens: Tokens from which random sequences are drawn.
        prefix: Tokens with which every sequence begins, such as BOS.
        seed: The seed of all random draws.
    """

    token_ids: Int[Tensor, "batch pos"]
    allowed_tokens: Int[Tensor, " token"]
    prefix: tuple[int, ...] = ()
    seed: int = 0


AnalysisResults = dict[str, xr.Dataset]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One way of running the model, shared by several analyses.

    Attributes:
        name: The name shown while the pass runs.
        analyses: The analyses, by name.
        run: Called with the model, the inputs and the selected analyses; returns the result of each analysis.
        control_draws: Number of draws of each control.
        expensive: Analyses that are limited to one draw of each control.
    """

    name: str
    analyses: Mapping[str, Analysis]
    run: Callable[[PreTrainedModel, InspectionInputs, Sequence[Analysis]], AnalysisResults]
    control_draws: Mapping[str, int]
    expensive: tuple[str, ...] = ()

    def for_draw(self, draw: int) -> "Pass":
        """Return the pass for one draw of a control; expensive analyses run in the first draw only.

        Args:
            draw: The number of the draw.

        Returns:
            The pass.
        """
        cheap = {name: analysis for name, analysis in self.analyses.items() if draw == 0 or name not in self.expensive}
        return replace(self, analyses=cheap)


def _run_whole_text(model: PreTrainedModel, inputs: InspectionInputs, selected: Sequence[Analysis]) -> AnalysisResults:
    """Analyse the whole text."""
    count, length = inputs.token_ids.shape
    return _run_shared_capture(
        model,
        inputs.token_ids,
        selected,
        evenly_spaced_indices(length - 1, max(2, MAX_LENS_TOKENS // count)).tolist(),
    )


def _run_inner_objectives(
    model: PreTrainedModel, inputs: InspectionInputs, selected: Sequence[Analysis]
) -> AnalysisResults:
    """Compute inner objectives, which need gradients, on the beginnings of some sequences."""
    ids = inputs.token_ids[:, :MAX_INNER_LENGTH]
    ids = ids[: max(1, MAX_INNER_TOKENS // ids.shape[1])]
    return _run_shared_capture(
        model, ids, selected, evenly_spaced_indices(ids.shape[1] - 1, MAX_INNER_QUERIES).tolist()
    )


def _run_short_sequences(
    model: PreTrainedModel, inputs: InspectionInputs, selected: Sequence[Analysis]
) -> AnalysisResults:
    """Analyse complete residual streams, on the beginnings of two sequences."""
    return _run_shared_capture(model, inputs.token_ids[:NUM_SHORT_SEQUENCES, :MAX_SHORT_LENGTH], selected)


def _run_repeated_tokens(
    model: PreTrainedModel, inputs: InspectionInputs, selected: Sequence[Analysis]
) -> AnalysisResults:
    """Analyse random tokens that occur twice, after BOS if the tokenizer puts it before every text."""
    bos = inputs.prefix[-1] if inputs.prefix else None
    context = _find_context(model, inputs)
    length = min(MAX_REPEATED_TOKENS, (context - (bos is not None)) // 2, len(inputs.allowed_tokens.unique()) // 2)
    generator = torch.Generator().manual_seed(inputs.seed)
    ids = sample_repeated_tokens(inputs.allowed_tokens, length, NUM_REPEATED_SEQUENCES, generator, bos)
    return _run_shared_capture(model, ids, selected)


def _find_context(model: PreTrainedModel, inputs: InspectionInputs) -> int:
    """Return the largest length that is known to fit: of a wrapped module without a context, that of its inputs."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is None and isinstance(model, WrappedModule):
        return inputs.token_ids.shape[1]
    return context or 3 * MAX_REPEATED_TOKENS


def _run_excerpt(model: PreTrainedModel, inputs: InspectionInputs, selected: Sequence[Analysis]) -> AnalysisResults:
    """Store the attention of every head on the first tokens of the text."""
    return _run_shared_capture(model, inputs.token_ids[:1, :EXCERPT_LENGTH], selected)


def _run_linear_inputs(
    model: PreTrainedModel, inputs: InspectionInputs, selected: Sequence[Analysis]
) -> AnalysisResults:
    """Analyse the inputs of linear modules, at a sample of tokens without attention sinks."""
    ids = inputs.token_ids[:1, :MAX_INPUT_TOKENS].to(find_input_device(model))
    layers = attention_layers(model, ids)
    if not layers:
        raise UnsupportedModel(
            "linear maps need a layer with attention, whose sinks are left out, but no layer has any"
        )
    sampled = sample_without_sinks(model, ids, layers=layers, seed=inputs.seed)
    return {analysis.name: analysis(sampled) for analysis in selected}


def _run_shared_capture(
    model: PreTrainedModel,
    ids: Int[Tensor, "batch pos"],
    selected: Sequence[Analysis],
    queries: list[int] | None = None,
) -> AnalysisResults:
    """Run analyses that share one capture."""
    capture_analyses = [analysis for analysis in selected if analysis.input == "capture"]
    ids, batch_size, attending_layers = (
        ids.to(find_input_device(model)),
        max(1, TOKENS_PER_BATCH // ids.shape[1]),
        attention_layers(model, ids[:1]),
    )
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", len(attending_layers))
    if len(attending_layers) == depth:
        return run_analyses(model, ids, capture_analyses, batch_size=batch_size, queries=queries)
    stream_analyses, head_analyses = (
        [analysis for analysis in capture_analyses if (analysis.required_sites <= EVERY_LAYER_SITES) == streams]
        for streams in (True, False)
    )
    results = (
        run_analyses(model, ids, stream_analyses, batch_size=batch_size, queries=queries) if stream_analyses else {}
    )
    if head_analyses:
        results |= run_analyses(
            model, ids, head_analyses, batch_size=batch_size, queries=queries, layers=attending_layers
        )
    return results


def _index_by_name(*analyses_to_index: Analysis) -> dict[str, Analysis]:
    return {analysis.name: analysis for analysis in analyses_to_index}


RANDOM_WEIGHTS, SHUFFLED_TEXT = "random weights", "positions shuffled"
BOTH_CONTROLS = {RANDOM_WEIGHTS: 2, SHUFFLED_TEXT: 2}
PASSES = (
    Pass(
        name="the text",
        analyses=_index_by_name(
            analyses.norms, analyses.logit_lens, analyses.affine_lens, analyses.positional_attention
        ),
        run=_run_whole_text,
        control_draws=BOTH_CONTROLS,
        expensive=("logit_lens", "affine_lens"),
    ),
    Pass(
        name="inner objectives",
        analyses=_index_by_name(*map(inner, objectives.OBJECTIVES)),
        run=_run_inner_objectives,
        control_draws=BOTH_CONTROLS,
        expensive=("inner_readout",),
    ),
    Pass(
        name="linear maps",
        analyses=_index_by_name(replace(input_spectra, compute=spectra_of_samples)),
        run=_run_linear_inputs,
        control_draws={RANDOM_WEIGHTS: 1},
    ),
    Pass(
        name="attribution and similarity",
        analyses=_index_by_name(analyses.token_attribution, analyses.token_similarity),
        run=_run_short_sequences,
        control_draws=BOTH_CONTROLS,
    ),
    Pass(
        name="projections",
        analyses=_index_by_name(analyses.token_projections),
        run=_run_short_sequences,
        control_draws={},
    ),
    Pass(
        name="repeated tokens",
        analyses=_index_by_name(analyses.repeated_token_heads, analyses.ov_copying_score),
        run=_run_repeated_tokens,
        control_draws={RANDOM_WEIGHTS: NUM_UNTRAINED_DRAWS},
        expensive=("ov_copying_score",),
    ),
    Pass(
        name="an excerpt",
        analyses=_index_by_name(analyses.attention_patterns, analyses.top_tokens),
        run=_run_excerpt,
        control_draws={},
    ),
)
NO_RANDOM_WEIGHTS = "it needs a model of random weights in memory, but the weights of this model are not all in memory"
NO_QUANTIZED_CONTROL = "it would be a model whose weights are not quantised, but those of this model are"
ANALYSIS_GROUPS = {"inner": [f"inner_{objective.name}" for objective in objectives.OBJECTIVES]}
ANALYSIS_NAMES = (
    *ANALYSIS_GROUPS,
    *(name for part in PASSES for name in part.analyses if not name.startswith("inner_")),
)


def without_control(passes: Sequence[Pass], control: str) -> list[Pass]:
    """Return passes that are not compared with a control.

    Args:
        passes: The passes.
        control: The name of the control.
    """
    return [
        replace(part, control_draws={name: count for name, count in part.control_draws.items() if name != control})
        for part in passes
    ]


def select_passes(names: Sequence[str] | None) -> list[Pass]:
    """Select the passes that contain the given analyses.

    Args:
        names: Names of analyses or of groups; all analyses by default.

    Returns:
        The passes, limited to the given analyses.

    Raises:
        ValueError: If there is no analysis of a given name.
    """
    known_names = {name for part in PASSES for name in part.analyses} | set(ANALYSIS_GROUPS)
    unknown = [name for name in names or () if name not in known_names]
    if unknown:
        raise ValueError(f"analyses must be among {', '.join(ANALYSIS_NAMES)}, but got {', '.join(unknown)}")
    selected_names = {member for name in names or known_names for member in ANALYSIS_GROUPS.get(name, [name])}
    chosen = (
        replace(part, analyses={name: analysis for name, analysis in part.analyses.items() if name in selected_names})
        for part in PASSES
    )
    return [part for part in chosen if part.analyses]
