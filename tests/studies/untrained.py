"""Untrained models passed through whole studies as if they were trained: no claim of a paper may be supported.

``python -m tests.studies.untrained [STUDY...]`` writes the number of verdicts over 5 draws of each study into
docs/verdicts.md. A draw can take an hour: finished draws are kept in runs/untrained with the revision of their code,
and are computed again only if they are deleted; an unfinished one resumes.
"""

import json
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mesascope import api
from mesascope.runner import load_verdicts
from mesascope.store import write_atomically
from mesascope.store.provenance import collect_provenance
from mesascope.studies import base, registry
from mesascope.studies.base import Condition, ScaleConfig, Study
from mesascope.studies.published import DECIDED_STATUSES as STATUSES
from mesascope.train import SGD, ConstantSchedule, TrainingConfig

PAGE = Path(__file__).parents[2] / "docs" / "verdicts.md"
BEGIN, END = "<!-- untrained: begin -->", "<!-- untrained: end -->"
RUNS = Path("runs") / "untrained"
DRAWS = 5
FIRST_SEED = 100_000  # no other run uses these seeds
SCALE = "laptop"
SEQUENCES = 512
STEPS_PER_CHECKPOINT = 4


@dataclass(frozen=True, kw_only=True)
class Redraw:
    """An optimizer that initialises the model anew at every step, so that every checkpoint is an untrained model."""

    lr: float = 1e-3

    def build_optimizer(self, model: PreTrainedModel) -> torch.optim.Optimizer:
        return RedrawOptimizer(model)


class RedrawOptimizer(torch.optim.SGD):
    """See :class:`Redraw`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model.parameters(), lr=1e-3)
        self.model = model

    def step(self, closure: None = None) -> None:
        first = next(self.model.parameters())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash(tuple(first.detach().flatten()[:8].tolist())) % 2**63)
            for module in self.model.modules():
                self.model._init_weights(module)


def make_untrained(name: str, draw: int) -> Study:
    """Return a study whose models are never trained, with the claims of its paper that laptop scale can decide.

    The claims have no requirements. Its seeds are those of the draw. A condition that records its training history has
    a learning rate of almost 0 instead, since the history is of SGD.
    """
    base.FIRST_SEEDS = {**base.FIRST_SEEDS, SCALE: FIRST_SEED + 100 * draw}
    study = registry.load_study(name)
    return replace(
        study,
        name=f"untrained-{name}",
        conditions=tuple(replace(one, scales=_leave_untrained(one)) for one in study.conditions),
        simulations=(),
        claims=tuple(
            replace(claim, requirements=())
            for claim in study.claims
            if claim.by_paper and claim.kind == "replication" and SCALE in claim.scales
        ),
        factors=(),
        grid={},
    )


def _leave_untrained(condition: Condition) -> dict[str, ScaleConfig]:
    return {name: _change_training(config) for name, config in condition.scales.items()}


def _change_training(config: ScaleConfig) -> ScaleConfig:
    training = config.training
    return replace(
        config,
        sequences=min(config.sequences, SEQUENCES),
        training=TrainingConfig(
            steps=STEPS_PER_CHECKPOINT * training.checkpoints,
            batch_size=training.batch_size,
            optimizer=SGD(lr=1e-30) if training.history else Redraw(),
            schedule=ConstantSchedule(),
            checkpoints=training.checkpoints,
            spacing=training.spacing,
            dtype=training.dtype,
            history=training.history,
        ),
    )


def load_draw(name: str, draw: int, folder: Path = RUNS) -> dict[str, str]:
    """Return the verdicts of a finished draw, or compute and keep them."""
    file = folder / f"{name}-{draw}.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        verdicts = judge_untrained(name, draw, folder)
        write_atomically(file, json.dumps({"revision": collect_provenance()["revision"], "verdicts": verdicts}))
        shutil.rmtree(folder / f"{name}-{draw}")
    return json.loads(file.read_text(encoding="utf-8"))["verdicts"]


def judge_untrained(name: str, draw: int, folder: Path) -> dict[str, str]:
    """Return the verdict on each claim of a paper, for untrained models."""
    file = folder / f"untrained_{name.replace('-', '_')}_{draw}.py"
    file.write_text(
        f"from tests.studies.untrained import make_untrained\n\nSTUDY = make_untrained({name!r}, draw={draw})\n"
    )
    run = api.run(str(file), scale=SCALE, out=folder / f"{name}-{draw}", device="cpu")
    return {verdict.name: verdict.status for verdict in load_verdicts(run)}


def format_row(name: str) -> str:
    """Return the row of a study: the number of claims by verdict over all draws, and the claims that are supported."""
    verdicts = [load_draw(name, draw) for draw in range(DRAWS)]
    counts = Counter(status for one in verdicts for status in one.values())
    numbers = [str(counts.pop(status, 0)) for status in STATUSES]
    if counts:
        raise ValueError(f"a verdict on a claim of a paper must be one of {STATUSES}, but got {list(counts)}")
    wrong = sorted({claim for one in verdicts for claim, status in one.items() if status == "supported"})
    return f"| `{name}` | {' | '.join(numbers)} | {', '.join(wrong)} |"


def main() -> None:
    """Write the rows of the studies on the command line into the page, and keep other rows.

    By default, those of all studies that judge claims of a paper about trained models at laptop scale.
    """
    known = [entry.name for entry in registry.list_studies()]
    text = PAGE.read_text(encoding="utf-8")
    before, table, after = text.split(BEGIN)[0], text.split(BEGIN)[1].split(END)[0], text.split(END)[1]
    rows = {row.split("`")[1]: row for row in table.splitlines() if row.startswith("| `")}
    judged = [name for name in known if make_untrained(name, draw=0).claims]
    if wrong := [name for name in sys.argv[1:] if name not in judged]:
        sys.exit(f"a study must judge claims of its paper about trained models, but {wrong[0]!r} does not: {judged}")
    for name in sys.argv[1:] or judged:
        rows[name] = format_row(name)
        head = [f"| study | {' | '.join(STATUSES)} | claims supported |", "|---" * (2 + len(STATUSES)) + "|"]
        lines = [*head, *(rows[one] for one in known if one in rows)]
        PAGE.write_text("\n".join([before + BEGIN, *lines, END + after]), encoding="utf-8")


if __name__ == "__main__":
    main()
