"""Python code that reproduces the numbers of a view with the public interface."""

import re
from collections.abc import Mapping, Sequence

from mesascope.explorer.sources import ExploredInput
from mesascope.explorer.subject import ExploredModel

IMPORTS = {
    "dataclasses.replace": "import dataclasses",
    "capture": "from mesascope.activations import capture",
    "decompose_logits": "from mesascope.analyses.stream.token_attribution import decompose_logits",
    "decompose_output": "from mesascope.analyses.stream.attribution import decompose_output",
    "run_analyses": "from mesascope.analyses import inner, run_analyses",
    "inner": "from mesascope.analyses.inner_objectives import objectives",
    "load_sample_text": "from mesascope.inspection import load_sample_text",
    "mean": "from mesascope.interventions import mean",
    "replace": "from mesascope.interventions import replace",
    "zero": "from mesascope.interventions import zero",
}
STREAM = 'torch.cat([acts["resid_pre"], acts["resid_post"][-1:]])[:, 0]'
PREDICTION = '["output"][0, {position}].softmax(-1)'


def write_tokens_code(subject: ExploredModel, inputs: ExploredInput) -> str:
    """Return code for the loss and the probability of every token, and the norms of the residual stream.

    Args:
        subject: the explored model.
        inputs: the prompt.
    """
    return join_code(
        subject,
        inputs,
        'acts = capture(model, tokens, ["resid_pre", "resid_post", "output"])\n'
        'log_probs = acts["output"][0].log_softmax(-1)\n'
        "next_log_prob = log_probs[:-1].gather(1, acts.inputs[0, 1:, None])[:, 0]\n"
        "loss, probability = -next_log_prob, next_log_prob.exp()  # of the tokens from position 1 on\n"
        f"norm = {STREAM}.norm(dim=-1)  # (depth, pos)",
    )


def write_pattern_code(subject: ExploredModel, inputs: ExploredInput, layer: int, head: int) -> str:
    """Return code for the attention pattern of a head.

    Args:
        subject: the explored model.
        inputs: the prompt.
        layer: the layer.
        head: the head.
    """
    return join_code(
        subject,
        inputs,
        f'acts = capture(model, {inputs.name}, ["pattern"], layers=[{layer}])\n'
        f'pattern = acts["pattern"][0, 0, {head}]  # (query, key)',
    )


def write_lens_code(subject: ExploredModel, inputs: ExploredInput, position: int, k: int) -> str:
    """Return code for the logit lens at a position.

    Args:
        subject: the explored model.
        inputs: the prompt.
        position: the position.
        k: tokens per depth.
    """
    return join_code(
        subject,
        inputs,
        'acts = capture(model, tokens, ["resid_pre", "resid_post"])\n'
        f"stream = {STREAM}[:, {position}]  # (depth, d_model)\n"
        f"probability, token = acts.readout.compute_output(stream).softmax(-1).topk({k})",
    )


def write_attribution_code(subject: ExploredModel, inputs: ExploredInput, position: int, token: int) -> str:
    """Return code for the contributions of all components to the logit of a token.

    Args:
        subject: the explored model.
        inputs: the prompt.
        position: the position after which the token is predicted.
        token: the token.
    """
    return join_code(
        subject,
        inputs,
        'acts = capture(model, tokens, ["resid_pre", "resid_post", "attn_out", "z"])\n'
        f"indices = torch.tensor([0]), torch.tensor([{position}]), torch.tensor([{token}])\n"
        "contributions = decompose_logits(acts, *indices, centred=True)",
    )


def write_ablation_code(
    subject: ExploredModel,
    inputs: ExploredInput,
    heads_by_layer: Mapping[int, Sequence[int]],
    position: int,
    references: str,
) -> str:
    """Return code for the prediction with heads switched off.

    Args:
        subject: the explored model.
        inputs: the prompt.
        heads_by_layer: the heads that are switched off.
        position: the position after which the next token is predicted.
        references: code that defines ``reference_tokens``, for mean ablation; empty for zero ablation.
    """
    prediction = PREDICTION.format(position=position)
    return join_code(
        subject,
        inputs,
        f"{write_ablation_edits(inputs, heads_by_layer, references)}\n"
        f'before = capture(model, tokens, ["output"]){prediction}\n'
        f'after = capture(model, tokens, ["output"], edits=edits){prediction}',
    )


def write_patching_code(
    subject: ExploredModel,
    inputs: ExploredInput,
    source: ExploredInput,
    site: str,
    where: Mapping[str, int],
    read_position: int,
) -> str:
    """Return code for the prediction with an activation from a second prompt.

    Args:
        subject: the explored model.
        inputs: the prompt.
        source: the second prompt.
        site: the site that is patched.
        where: index by axis.
        read_position: the position after which the next token is predicted.
    """
    prediction = PREDICTION.format(position=read_position)
    return join_code(
        subject,
        inputs,
        f"{write_patch(source, site, where)}\n"
        f'before = capture(model, tokens, ["output"]){prediction}\n'
        f'after = capture(model, tokens, ["output"], edits=edit){prediction}',
    )


def write_ablation_edits(inputs: ExploredInput, heads_by_layer: Mapping[int, Sequence[int]], references: str) -> str:
    """Return code that defines ``edits``, which switch heads off.

    Args:
        inputs: the input.
        heads_by_layer: the heads that are switched off.
        references: code that defines the references of mean ablation; empty for zero ablation.
    """
    wheres = [f'{{"layer": {layer}, "head": {list(heads)}}}' for layer, heads in heads_by_layer.items()]
    arguments = '"z", references, ' if references else '"z", '
    edits = "\n".join(f"    {'mean' if references else 'zero'}({arguments}{where})," for where in wheres)
    prepare = (
        f'{references}\nreferences = capture(model, reference_{inputs.name}, ["z"], layers={list(heads_by_layer)})\n'
        if references
        else ""
    )
    return f"{prepare}edits = [\n{edits}\n]"


def write_patch(source: ExploredInput, site: str, where: Mapping[str, int]) -> str:
    """Return code that defines ``source``, a capture of a second input, and ``edit``, which puts its activation.

    Args:
        source: the second input.
        site: the site that is patched.
        where: index by axis.
    """
    source_code = "\n".join(f"source_{line}" for line in source.code.splitlines())
    return (
        f"{source_code}\n"
        f'source = capture(model, source_{source.name}, ["{site}", "output"], layers=[{where["layer"]}])\n'
        f'edit = replace("{site}", source, {dict(where)})'
    )


def join_code(subject: ExploredModel, inputs: ExploredInput, body: str) -> str:
    """Return imports, the model and its input, and what is computed.

    Args:
        subject: the explored model.
        inputs: the input.
        body: code that computes the numbers of a view.
    """
    words = set(re.findall(r"[\w.]+(?=\()", body))
    imports = [line for name, line in IMPORTS.items() if name in words]
    return "\n".join(["import torch", *imports, subject.source.load_code, "", inputs.code, body, ""])
