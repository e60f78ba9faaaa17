"""The order of the sections of a report."""

SECTION_ORDER = (  # names of analyses; simulations of toy models come first, unlisted analyses last
    "circuit",
    "circuit_test",
    "circuit_faithfulness",
    "edge_scores",
    "text",
    "parameter_norms",
    "loss_vs_baselines",
    "inner",
    "error_by_label",
    "error_by_output",
    "clusters",
    "excess_risk_vs_context_length",
    "history_attention",
    "projections",
    "token_projections",
    "norms",
    "which_algorithm",
    "input_spectra",
    "logit_lens",
    "probe_and_logit_lens",
    "affine_lens",
    "preprocessing",
    "attn_out_probe",
    "direct_attribution",
    "saturation",
    "token_attribution",
    "lookahead_ablation",
    "positional_attention",
    "repeated_token_heads",
    "similarity",
    "token_similarity",
    "natural_induction",
    "same_label_attention",
    "value_copying",
    "refinement_heads",
    "ov_copying_score",
    "top_tokens",
    "head_ablation",
    "value_paths",
    "pruning",
    "attention_patterns",
)


def section_rank(analysis: str, simulation: str) -> int:
    """Return the position of a section on the page.

    Args:
        analysis: name of the analysis that computed the results; empty if there is none.
        simulation: name of the simulation of a toy model; empty for other results.

    >>> section_rank("", "toy_model"), section_rank("inner_linear", ""), section_rank("mine", "")
    (-1, 7, 41)
    """
    if simulation:
        return -1
    name = "inner" if analysis.startswith("inner_") else analysis
    return SECTION_ORDER.index(name) if name in SECTION_ORDER else len(SECTION_ORDER)
