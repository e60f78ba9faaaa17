"""The section on encoder-decoders of docs/architectures.md: ``python -m tests.architectures.pair_table``."""

import re
from collections import Counter
from pathlib import Path

import torch

from .pair_sweep import PairOutcome, sweep_pairs

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
HEADING = "\n## Encoder-decoders\n"
ABOUT = """
Sequence-to-sequence model types of transformers whose inputs are text, as tiny random models: {captured} of {total}
types are captured, {refused} are refused by name, {unbuilt} cannot be built so; {wrong} contradict the untouched model.

*Captured* means: encoder, decoder and cross-attention are recorded, with the attention implementation that
transformers chooses and with the eager one; the logits are bitwise equal to those of the untouched model; the streams,
and the weights of all three attentions, are those that the model returns in eager mode; wherever updates are
available, they sum to the change that a layer makes. *Padding* says on which sides of source and target a padded
batch gives the predictions of each pair alone; on the others, capture refuses the batch. At the end, all weights are
changed through `.data`, and a second capture must show the changed model. A site without a stack is missing in encoder
and decoder.

| type | class | outcome | sites that are missing, and why | padding of source | padding of target |
|---|---|---|---|---|---|
"""


def pair_section(outcomes: list[PairOutcome]) -> str:
    """The section as Markdown."""
    words = Counter(outcome.word for outcome in outcomes)
    head = ABOUT.format(
        captured=words["captured"],
        total=len(outcomes),
        refused=words["refused"],
        unbuilt=words["not built"],
        wrong=sum(bool(outcome.wrong) for outcome in outcomes) or "none",
    )
    return HEADING + head + "\n".join(_row(outcome) for outcome in outcomes) + "\n"


def _row(outcome: PairOutcome) -> str:
    """One type as a line."""
    cells = [outcome.kind, outcome.model, _word(outcome), _missing(outcome)]
    return "| " + " | ".join([*cells, _padding(outcome, 0), _padding(outcome, 1)]) + " |"


def _word(outcome: PairOutcome) -> str:
    """What became of it, in few words."""
    if outcome.wrong:
        return f"**wrong**: {shorten(outcome.wrong[0])}"
    if outcome.word == "not built":
        return f"cannot be built: {shorten(outcome.why)}"
    return f"refused: {shorten(outcome.why)}" if outcome.word == "refused" else "captured"


def _missing(outcome: PairOutcome) -> str:
    """The sites that are not offered, together where the reason is one."""
    if outcome.word != "captured":
        return ""
    by_reason: dict[str, list[str]] = {}
    for site, why in outcome.missing.items():
        by_reason.setdefault(shorten(why), []).append(site)
    return "; ".join(f"{', '.join(_merge(sites))}: {reason}" for reason, sites in by_reason.items())


def _merge(sites: list[str]) -> list[str]:
    """Names of sites, without the stack where both stacks lack the site."""
    both = {site.partition(".")[2] for site in sites if f"encoder.{site.partition('.')[2]}" in sites}
    both = {name for name in both if f"decoder.{name}" in sites}
    return list(dict.fromkeys(name if (name := site.partition(".")[2]) in both else site for site in sites))


def _padding(outcome: PairOutcome, side: int) -> str:
    """The sides on which padding changes nothing, and those on which it is refused."""
    if outcome.word != "captured":
        return ""
    chosen = {True: "source", False: "target"}[side == 0]
    refused = {sides.split(", ")[side] for sides, why in outcome.padding.items() if f"padding of the {chosen}" in why}
    return ", ".join(f"{each} refused" if each in refused else each for each in ("left", "right"))


def shorten(reason: str) -> str:
    """The first clause of a reason, without its numbers, which differ between machines."""
    clause = re.split(r";|, as where|\. |\n\s*\n", " ".join(reason.split()))[0]
    return re.sub(r" by [\d.]+(e[+-]?\d+)?( of it)?", "", clause).replace("|", "\\|").rstrip(". ")


if __name__ == "__main__":
    torch.set_num_threads(1)
    before = PAGE.read_text(encoding="utf-8").split(HEADING)[0]
    PAGE.write_text(before + pair_section(sweep_pairs()), encoding="utf-8")
