"""What the command line does, as functions: run a study, open a model, draw a report."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mesascope.executors import executor
from mesascope.inspection import Answer, Progress, inspect_model, name_algorithms
from mesascope.report import draw as report
from mesascope.runner import Silent, Watcher, run_study
from mesascope.store import Run
from mesascope.studies.registry import find

RUNS = Path("runs")


def run(
    study: str,
    *,
    scale: str = "laptop",
    seeds: int | None = None,
    out: Path | str | None = None,
    device: str = "auto",
    on: str | None = None,
    watcher: Watcher | None = None,
) -> Run:
    """Run a study to its verdicts and its report, or go on with it where it was stopped.

    Args:
        study: the name of a study, or a ``.py`` file that holds ``STUDY``.
        scale: smoke, laptop or paper.
        seeds: training replicates; as many as the scale says by default.
        out: the run's directory; ``runs/STUDY-SCALE`` by default.
        device: auto, cpu or cuda (``cuda:1`` and so on too).
        on: here, processes or ray[:ADDRESS]; by default processes, but here for a smoke run or on a GPU.
        watcher: hears how it gets on.

    Returns:
        The run; its ``path`` holds ``report.html``, ``verdicts.json`` and ``results``.

    Raises:
        ValueError: something that is asked for does not exist; the message is one line.
    """
    entry = find(study)
    chosen = choose_device(device)
    place = Path(out) if out is not None else RUNS / f"{entry.name}-{scale}"
    spread = on or ("here" if scale == "smoke" or chosen != "cpu" else "processes")
    done = run_study(
        study,
        scale=scale,
        seeds=seeds,
        path=place,
        device=chosen,
        executor=executor(spread),
        watcher=watcher or Silent(),
    )
    report(done.path)
    return done


def inspect(
    model: str,
    *,
    text: Path | str | None = None,
    tokens: int | None = None,
    sequences: int = 4,
    out: Path | str | None = None,
    measures: Sequence[str] | None = None,
    steps: Sequence[str] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    progress: Progress | None = None,
) -> Run:
    """Open a causal language model on a text, measure it next to its controls, and write a report.

    Args:
        model: a Hub name, a folder, or a ``.gguf`` file.
        text: a UTF-8 file; English prose that ships with Python by default.
        tokens: of each sequence; 512 by default, or fewer where the text or the model's context is shorter.
        sequences: at most so many.
        out: the run's directory; ``runs/inspect-MODEL`` by default.
        measures: names of measures; all by default.
        steps: checkpoints over time: revisions of a Hub name, or folders; every result gains the axis ``step``.
        device: cpu, cuda or auto.
        dtype: of the weights in memory: float32, bfloat16, float16 or float64.
        progress: hears what is being done, how many stages are done, and how many there are.

    Raises:
        ValueError: something that is asked for does not exist; the message is one line.
    """
    done = inspect_model(
        model,
        text=Path(text) if text is not None else None,
        tokens=tokens,
        sequences=sequences,
        path=Path(out) if out is not None else RUNS / f"inspect-{Path(model).name}",
        chosen=measures,
        steps=steps,
        device=choose_device(device),
        dtype=dtype,
        progress=progress or (lambda what, done, total: None),
    )
    report(done.path)
    return done


def which_algorithm(
    subject: Path | str,
    *,
    study: str | None = None,
    sequences: int = 128,
    seed: int = 0,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> list[Answer]:
    """The algorithms that the models of a run, or one model, are nearest to; each with its numbers and its null.

    Args:
        subject: a run's directory, a folder with one of our decoders, or a causal language model.
        study: whose task is meant, for a decoder in a folder or a study in a file.
        sequences: that are drawn, 32 or more; numbers are fitted on one half, and judged on the other.
        seed: of the sequences.
        device: cpu, cuda or auto.
        say: hears what is being done.

    Raises:
        ValueError: something that is asked for does not exist; the message is one line.
    """
    return name_algorithms(
        str(subject), study=study, sequences=sequences, seed=seed, device=choose_device(device), say=say
    )


def choose_device(device: str) -> str:
    """The device that is meant, if it is there.

    Raises:
        ValueError: there is no such device on this machine.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise ValueError(f"a device must be auto, cpu or cuda, but got {device!r}")
    if not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count():
        raise ValueError(f"the device {device} must be on this machine, but is not; use --device cpu")
    return device
