"""Write docs/architectures.md: ``python -m tests.architectures.table`` (``make architectures``)."""

from collections import Counter
from pathlib import Path

import torch
import transformers

from .pair_sweep import sweep_pairs
from .pair_table import pair_section, shorten
from .sweep import Outcome, sweep

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
ABOUT = """\
# Which language models can be captured

Every causal language model type of transformers {version}, as a tiny random model: {captured} of {total} types are
captured, {refused} are refused by name, {unbuilt} cannot be built so; {wrong} contradict the untouched model.

*Captured* means: with the attention implementation that transformers chooses and with the eager one, the logits are
bitwise equal to those of the untouched model; the residual streams and attention weights are those that the model
itself returns, if it returns any; wherever the updates of attention and MLP are available, they sum to the change
that a layer makes. A site that fails such a check is not available, and is listed. *Padding* says whether a batch of
sequences of different lengths gives the predictions of each sequence alone (the first has a single token), with the
padding on the left and on the right; where it does not, capture refuses the batch. *600 tokens* says whether a
sequence of that length has the untouched model's logits at every position, or is refused. At the end, all weights are
changed through `.data`, and a second capture must show the changed model.

In a layer that mixes positions without softmax attention, only the residual stream is available: pass the `layers=`
of the table to record the sites of attention.

Written by `make architectures`.

| type | class | outcome | sites that are missing, and why | padding | 600 tokens |
|---|---|---|---|---|---|
"""


def page(outcomes: list[Outcome]) -> str:
    """The table as Markdown."""
    words = Counter(outcome.word for outcome in outcomes)
    head = ABOUT.format(
        version=transformers.__version__,
        captured=words["captured"],
        total=len(outcomes),
        refused=words["refused"],
        unbuilt=words["not built"],
        wrong=sum(bool(outcome.wrong) for outcome in outcomes) or "none",
    )
    return head + "\n".join(row(outcome) for outcome in outcomes) + "\n"


def row(outcome: Outcome) -> str:
    """One type as a line."""
    cells = [outcome.kind, outcome.model, _word(outcome), _missing(outcome), _padding(outcome), _long(outcome)]
    return "| " + " | ".join(cells) + " |"


def _word(outcome: Outcome) -> str:
    """What became of it, in few words."""
    if outcome.wrong:
        return f"**wrong**: {shorten(outcome.wrong[0])}"
    if outcome.word == "not built":
        return f"cannot be built: {shorten(outcome.why)}"
    if outcome.word == "refused":
        return f"refused: {shorten(outcome.why)}"
    return "captured" if len(outcome.layers) == outcome.count else f"captured at layers {list(outcome.layers)}"


def _missing(outcome: Outcome) -> str:
    """The sites that are not offered, together where the reason is one."""
    if outcome.word != "captured":
        return ""
    reasons = dict.fromkeys(shorten(why) for why in outcome.missing.values())
    sites = {reason: [site for site, why in outcome.missing.items() if shorten(why) == reason] for reason in reasons}
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in sites.items())


def _padding(outcome: Outcome) -> str:
    """The sides on which padding changes nothing, and those on which it is refused."""
    if outcome.word != "captured":
        return ""
    return ", ".join(f"{side} refused" if side in outcome.padding else side for side in ("left", "right"))


def _long(outcome: Outcome) -> str:
    """Whether long sequences are captured."""
    if outcome.word != "captured":
        return ""
    return f"refused: {shorten(outcome.long)}" if outcome.long else "captured"


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page(sweep()) + pair_section(sweep_pairs()), encoding="utf-8")
