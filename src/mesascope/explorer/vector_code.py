"""Python code that reproduces the numbers of a view of vectors with the public interface."""

from collections.abc import Mapping, Sequence

from mesascope.explorer.code import STREAM, join_code, write_ablation_edits, write_patch
from mesascope.explorer.subject import ExploredModel
from mesascope.explorer.vector_sequences import VectorInput


def write_terms_code(subject: ExploredModel, inputs: VectorInput) -> str:
    """Return code for the prediction, its loss and those of the baselines, and the norms of the residual stream.

    Args:
        subject: the explored model.
        inputs: the sequence.
    """
    return join_code(
        subject,
        inputs,
        f"{inputs.batch_code}"
        'acts = capture(model, inputs, ["resid_pre", "resid_post", "output"])\n'
        'prediction = acts["output"].cpu()  # (1, pos, d_out)\n'
        "loss = task.loss(prediction, batch)[0]  # where weight is above 0\n"
        "baselines = task.baselines(batch)\n"
        f"norm = {STREAM}.norm(dim=-1)  # (depth, pos)",
    )


def write_term_lens_code(subject: ExploredModel, inputs: VectorInput) -> str:
    """Return code for the logit lens at every depth and position, and its loss.

    Args:
        subject: the explored model.
        inputs: the sequence.
    """
    return join_code(
        subject,
        inputs,
        f"{inputs.batch_code}"
        'acts = capture(model, inputs, ["resid_pre", "resid_post"])\n'
        f"prediction = acts.readout.compute_output({STREAM}).cpu()  # (depth, pos, d_out)\n"
        "loss = torch.stack([task.loss(each[None], batch)[0] for each in prediction])  # (depth, pos)\n"
        "mean_loss = (loss * weight[0]).sum(1) / weight[0].sum()",
    )


def write_objective_code(subject: ExploredModel, inputs: VectorInput, position: int, objective: str) -> str:
    """Return code for an inner objective at a position.

    Args:
        subject: the explored model.
        inputs: the sequence.
        position: the position.
        objective: its name.
    """
    return join_code(
        subject,
        inputs,
        f"analysis = inner(objectives.{objective})\n"
        f"results = run_analyses(model, inputs, [analysis], queries=[{position}])[analysis.name]  # (layer, sublayer)",
    )


def write_term_attribution_code(subject: ExploredModel, inputs: VectorInput, position: int, coordinate: int) -> str:
    """Return code for the contributions of all components to a coordinate of the prediction.

    Args:
        subject: the explored model.
        inputs: the sequence.
        position: the position.
        coordinate: the coordinate of the output.
    """
    return join_code(
        subject,
        inputs,
        'acts = capture(model, inputs, ["resid_pre", "resid_post", "attn_out", "z", "output"])\n'
        f"contributions = {{name: each[0, {position}, {coordinate}] for name, each in decompose_output(acts).items()}}",
    )


def write_term_ablation_code(
    subject: ExploredModel, inputs: VectorInput, heads_by_layer: Mapping[int, Sequence[int]], references: str
) -> str:
    """Return code for the predictions with heads switched off.

    Args:
        subject: the explored model.
        inputs: the sequence.
        heads_by_layer: the heads that are switched off.
        references: code that defines ``reference_inputs``, for mean ablation; empty for zero ablation.
    """
    return join_code(
        subject,
        inputs,
        f"{write_ablation_edits(inputs, heads_by_layer, references)}\n"
        'before = capture(model, inputs, ["output"])["output"].cpu()  # (1, pos, d_out)\n'
        'after = capture(model, inputs, ["output"], edits=edits)["output"].cpu()\n'
        f"{_write_losses(inputs)}",
    )


def write_term_patching_code(
    subject: ExploredModel, inputs: VectorInput, source: VectorInput, site: str, where: Mapping[str, int]
) -> str:
    """Return code for the predictions with an activation of a second sequence.

    Args:
        subject: the explored model.
        inputs: the sequence.
        source: the second sequence.
        site: the site that is patched.
        where: index by axis.
    """
    return join_code(
        subject,
        inputs,
        f"{write_patch(source, site, where)}\n"
        'before = capture(model, inputs, ["output"])["output"].cpu()  # (1, pos, d_out)\n'
        'after = capture(model, inputs, ["output"], edits=edit)["output"].cpu()\n'
        f"{_write_losses(inputs)}",
    )


def _write_losses(inputs: VectorInput) -> str:
    mean = "(task.loss({name}, batch) * weight).sum() / weight.sum()"
    return f"{inputs.batch_code}loss_before = {mean.format(name='before')}\nloss_after = {mean.format(name='after')}"
