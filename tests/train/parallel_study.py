"""A study of a language model that trains in seconds, and the command that trains it with torchrun."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STUDY = """
from mesascope import analyses
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import SCALES, Citation, Condition, ScaleConfig, Study
from mesascope.tasks.text import TextTask
from mesascope.train import AdamW, TrainingConfig

STUDY = Study(
    name="shared-out",
    title="A study for a test",
    description="For a test.",
    citation=Citation(key="k", authors="A", title="T", year=2024, venue="V", url="https://example.org"),
    conditions=(
        Condition(
            task=TextTask(length=16, vocab_size=260, source="prose", max_characters=5_000),
            model=DecoderConfig(
                vocab_size=260,
                num_hidden_layers=2,
                hidden_size=16,
                num_attention_heads=2,
                max_position_embeddings=16,
                norm="layer",
                intermediate_size=20,
                tie_word_embeddings=True,
            ),
            scales={
                name: ScaleConfig(
                    training=TrainingConfig(
                        steps=50, batch_size=12, optimizer=AdamW(lr=3e-3), warmup=5, checkpoints=6, spacing="even"
                    ),
                    sequences=4,
                )
                for name in SCALES
            },
            analyses=(analyses.norms,),
        ),
    ),
    claims=(),
    seeds=dict.fromkeys(SCALES, 1),
    minutes=dict.fromkeys(SCALES, 1.0),
)
"""


def start(processes: int, *words: object) -> subprocess.Popen:
    """Start `mesascope` with torchrun, which reaches its processes on 127.0.0.1 only."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    found = {"PYTHONPATH": str(ROOT / "src"), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "-m", "mesascope", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **found},
        start_new_session=True,
    )


def run(processes: int, *words: object) -> tuple[int, str]:
    """Run `mesascope` with torchrun; return its exit code and what it printed."""
    with start(processes, *words) as launcher:
        told, _ = launcher.communicate(timeout=800)
    return launcher.returncode, told
