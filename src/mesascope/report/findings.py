"""Findings of an inspection as sentences, with which its page begins. Every number is read from the results."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import xarray as xr

from mesascope.report.load_run import ResultFile
from mesascope.report.text import format_count, format_number

REPORTED_ROLES = MappingProxyType(  # role: what its heads attend to
    {
        "induction": "the token after an earlier occurrence of the current one",
        "previous token": "the token before the current one",
        "duplicate token": "an earlier occurrence of the current token",
    }
)


@dataclass(frozen=True)
class Finding:
    """A sentence about the model.

    Attributes:
        text: the sentence.
        file: the result file from which its numbers are read.
    """

    text: str
    file: str


@dataclass(frozen=True)
class Description:
    """A function that yields sentences on the results of an analysis, and the variables that it reads."""

    describe: Callable[[xr.Dataset], Iterator[str]]
    variables: frozenset[str]


def list_findings(results: Sequence[ResultFile]) -> list[Finding]:
    """List what the analyses of a model found, in the order of the page.

    Args:
        results: the result files; of several checkpoints, the last one is described.

    Returns:
        The findings. Analyses that did not run, whose files are damaged or lack a variable, or for which there is no
        sentence, have none.
    """
    findings: list[Finding] = []
    for result in results:
        description = DESCRIPTIONS.get(str(result.data.attrs.get("analysis", ""))) if result.data is not None else None
        if result.data is None or description is None or not description.variables <= set(result.data.data_vars):
            continue
        data = result.data.isel(step=-1) if "step" in result.data.dims else result.data
        findings += [Finding(text, result.file) for text in description.describe(data)]
    return findings


def describe_repeated_token_heads(data: xr.Dataset) -> Iterator[str]:
    """Describe the heads with a role on repeated random tokens, and what the repetition does to the loss.

    Args:
        data: results of the analysis ``repeated_token_heads``.

    Yields:
        One sentence for each role, and one for the loss.
    """
    score, num_heads = data["score"], data["score"].sizes["layer"] * data["score"].sizes["head"]
    has_role = score > data["score_threshold"]
    for role, target in REPORTED_ROLES.items():
        scores, count = score.sel(stat=role), int(has_role.sel(stat=role).sum())
        attend = "attends" if count == 1 else "attend"
        sentence = f"{count} of {num_heads} heads {attend} to {target} ({role.replace(' ', '-')} heads)"
        if count:
            strongest = scores.where(has_role.sel(stat=role)).argmax(...)
            strength = f"{format_number(float(scores[strongest]))} of its attention on repeated random tokens"
            null_score = f"{format_number(float(data['score_null'].sel(stat=role)[strongest]))} with shuffled keys"
            sentence += f"; the strongest, {_name_head(scores[strongest])}, spends {strength}, {null_score}"
        yield f"{sentence}.{_count_in_random_models(data, role)}"
    first, again = (float(data[name]) for name in ("loss_first", "loss_again"))
    yield (
        f"The loss on random tokens is {format_number(first)} nat at their first occurrence and {format_number(again)} "
        "nat at their repetition."
    )


def describe_positional_attention(data: xr.Dataset) -> Iterator[str]:
    """Describe how much attention goes to the first position.

    Args:
        data: results of the analysis ``positional_attention``.

    Yields:
        One sentence.
    """
    first, uniform = data["score"].sel(stat="first"), data["score_null"].sel(stat="first")
    most = int((first > 0.5).sum())
    yield (
        f"{most} of {first.size} heads spend more than half of their attention on the first position of the "
        f"text; the mean over heads is {format_number(float(first.mean()))}, and that of uniform attention "
        f"{format_number(float(uniform.mean()))}."
    )


def describe_norms(data: xr.Dataset) -> Iterator[str]:
    """Describe the norm of the first token, and how the norm of the others grows over depth.

    Args:
        data: results of the analysis ``norms``.

    Yields:
        Two sentences.
    """
    mean, ratio = data["mean"], data["first_token"] / data["mean"]
    largest = int(ratio.argmax("layer"))
    yield (
        f"The norm of the first token is at most {format_number(float(ratio[largest]))} times the mean norm of the "
        f"other tokens ({_name_depth(ratio[largest])})."
    )
    yield (
        f"The mean norm of the other tokens is {format_number(float(mean[0]))} at the embedding and "
        f"{format_number(float(mean[-1]))} at the end."
    )


def describe_logit_lens(data: xr.Dataset) -> Iterator[str]:
    """Describe the loss on the text, and the depth at which predictions are settled.

    Args:
        data: results of the analysis ``logit_lens``.

    Yields:
        Two sentences, or one if the final prediction is never the top token before the end.
    """
    loss, agrees = data["loss"], data["agrees_with_final"]
    yield f"The loss on the text is {format_number(float(loss[-1]))} nat per token."
    settled = np.flatnonzero(agrees.values >= 0.5)
    if settled.size and settled[0] < agrees.sizes["layer"] - 1:
        yield (
            f"{_name_depth(agrees[settled[0]]).capitalize()} (of {format_count(agrees.sizes['layer'] - 1, 'layer')}), "
            "the model's own readout already has the final prediction as its top token at "
            f"{format_number(100 * float(agrees[settled[0]]))} % of the positions."
        )


def _count_in_random_models(data: xr.Dataset, role: str) -> str:
    """Return a sentence on the number of heads with a role in models with random weights, if there are any."""
    name = "role_count_null_random_weights"
    if name not in data or role not in data[name]["role_name"].values:
        return ""
    counts = data[name].sel(role_name=role).sum("layer")
    draws = f"mean of {format_count(counts.size, 'draw')}"
    return f" With random weights there are {format_number(float(counts.mean()))} ({draws})."


def _name_head(score: xr.DataArray) -> str:
    return f"L{int(score['layer'])}H{int(score['head'])}"


def _name_depth(value: xr.DataArray) -> str:
    depth = str(value["layer"].values)
    return f"{depth.replace('after ', 'after layer ')}" if depth.startswith("after ") else f"at the {depth}"


DESCRIPTIONS: Mapping[str, Description] = MappingProxyType(
    {
        "logit_lens": Description(describe_logit_lens, frozenset({"loss", "agrees_with_final"})),
        "repeated_token_heads": Description(
            describe_repeated_token_heads,
            frozenset({"score", "score_null", "score_threshold", "loss_first", "loss_again"}),
        ),
        "positional_attention": Description(describe_positional_attention, frozenset({"score", "score_null"})),
        "norms": Description(describe_norms, frozenset({"mean", "first_token"})),
    }
)
