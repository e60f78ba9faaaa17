"""Commands that compute: run, inspect, circuit, which-algorithm."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mesascope.cli._app import (
    AsJson,
    Device,
    Quantize,
    StudyName,
    TokenIdsFile,
    TrustRemoteCode,
    app,
    err,
    print_line,
)
from mesascope.cli._exit_codes import EXIT_CONTRADICTED
from mesascope.cli._output import print_cells, print_circuit, print_ranking, print_verdicts, split_names


@app.command("run")
def run_command(
    study: StudyName,
    scale: Annotated[str, typer.Option(help="smoke, laptop or paper.")] = "laptop",
    seeds: Annotated[int | None, typer.Option(help="Number of training seeds; by default that of the scale.")] = None,
    out_dir: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="RUN",
            help="Run directory, by default runs/STUDY-SCALE; or a URL of shared storage, such as s3://bucket/name.",
        ),
    ] = None,
    device: Device = "auto",
    on: Annotated[
        str | None,
        typer.Option(
            help="Executor: serial, processes, ray[:ADDRESS], slurm or torchrun; with options such as slurm,time=60."
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FACTOR=LEVEL,...",
            help="Also run other levels of a factor, or values of a setting such as training.optimizer.lr; repeatable. "
            "Default: the study's grid.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="Change a field of task, model or training, such as training.steps=500; repeatable.",
        ),
    ] = None,
    log_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOGGER",
            help="Also log the curves of the finished run to tensorboard[:FOLDER], wandb or trackio; repeatable.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option(help="Exit with code 1 if a claim is contradicted.")] = False,
) -> None:
    """Run a study: train models, analyse them, judge the claims and write a report. Run again to resume."""
    from mesascope import api
    from mesascope.executors import TorchrunExecutor, create_executor
    from mesascope.progress import ProgressDisplay
    from mesascope.runner import load_verdicts
    from mesascope.studies.cells import load_cells

    varied, changed = parse_varied(vary), parse_settings(settings)
    if varied and changed:
        path, value = next(iter(changed.items()))
        raise ValueError(f"--set must be given without --vary, but got both; write --vary {path}={value}")
    executor = create_executor(on) if on else None
    with ProgressDisplay(err) as display:
        finished_run = api.run(
            study,
            scale=scale,
            seeds=seeds,
            out=out_dir,
            device=device,
            on=executor,
            vary=varied,
            settings=changed,
            loggers=log_to or (),
            progress=display,
        )
    if isinstance(executor, TorchrunExecutor) and not executor.is_first:
        return
    verdicts, cells = load_verdicts(finished_run), load_cells(finished_run.path)
    print_verdicts(verdicts, scale)
    if len(cells) > 1:
        print_cells(cells)
    print_line(f"\nReport: {finished_run.path / 'report.html'}")
    if strict and any(verdict.status == "contradicted" for verdict in verdicts):
        raise typer.Exit(EXIT_CONTRADICTED)


@app.command("inspect")
def inspect_command(
    model: Annotated[str, typer.Argument(help="Hugging Face Hub name, folder or .gguf file.")],
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text file; by default a story that comes with mesascope.")
    ] = None,
    token_ids: TokenIdsFile = None,
    study: Annotated[
        str | None, typer.Option(help="Study whose task of tokens gives the sequences, instead of a text.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Number of tokens per sequence; by default up to 512.")] = None,
    sequences: Annotated[int, typer.Option(help="Maximum number of sequences.")] = 4,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Run directory; by default runs/inspect-MODEL.")] = None,
    analyses: Annotated[str | None, typer.Option(help="Comma-separated names of analyses; all by default.")] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            help="Checkpoints to compare: comma-separated Hub revisions or folders, or all (checkpoint-N of a folder)."
        ),
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    trust_remote_code: TrustRemoteCode = False,
    stream_layers: Annotated[
        bool,
        typer.Option(
            "--stream-layers", help="Read each layer from disk when it runs, for a model that exceeds the memory."
        ),
    ] = False,
    quantize: Quantize = None,
    device_map: Annotated[
        str | None,
        typer.Option(
            help="Spread the weights over devices, memory and disk: auto, balanced, balanced_low_0 or sequential."
        ),
    ] = None,
) -> None:
    """Analyse a causal language model on a text or on token ids and write a report. Run again to resume."""
    from mesascope import api
    from mesascope.progress import StageProgressBar

    with StageProgressBar(err) as stages:
        finished_run = api.inspect(
            model,
            text=text,
            token_ids=token_ids,
            study=study,
            tokens=tokens,
            sequences=sequences,
            out=out_dir,
            analyses=split_names(analyses),
            steps=split_names(steps),
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            stream_layers=stream_layers,
            quantize=quantize,
            device_map=device_map,
            progress=stages,
        )
    for name, reason in finished_run.read_json("model")["skipped"].items():
        print_line(f"{name} was skipped: {reason}")
    print_line(f"Report: {finished_run.path / 'report.html'}")


@app.command("circuit")
def circuit_command(
    subject: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="Hub name, folder, .gguf file or run directory.")],
    pairs: Annotated[
        Path | None,
        typer.Option(help="Of a model: JSON lines with the keys clean, counterfactual, answer and wrong_answer."),
    ] = None,
    study: Annotated[str | None, typer.Option(help="Of a run: its study, if that is a file.")] = None,
    condition: Annotated[str | None, typer.Option(help="Of a run: condition; by default the first one.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of a run: training seed; by default the first one.")] = None,
    num_pairs: Annotated[int, typer.Option(help="Of a run: number of pairs of sequences.")] = 32,
    steps: Annotated[int, typer.Option(help="Gradients that are averaged; 0 takes one at the clean run.")] = 5,
    ablation: Annotated[
        str,
        typer.Option(help="What edges outside the circuit carry: counterfactual, mean or resample (of references)."),
    ] = "counterfactual",
    by: Annotated[
        str, typer.Option(help="Ranking of edges by their scores: magnitude, or signed (ablation lowers the metric).")
    ] = "magnitude",
    size: Annotated[int | None, typer.Option(help="Edges of the circuit; by default 1 % of all edges.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Directory; by default runs/circuit-SUBJECT.")] = None,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="Of a model: float32, bfloat16, float16 or float64.")] = "float32",
    trust_remote_code: TrustRemoteCode = False,
    quantize: Quantize = None,
) -> None:
    """Find the edges that a behaviour depends on, test them on other pairs and write a report. Run again to resume."""
    from mesascope import api
    from mesascope.progress import StageProgressBar

    with StageProgressBar(err) as stages:
        finished_run = api.circuit(
            subject,
            pairs=pairs,
            study=study,
            condition=condition,
            seed=seed,
            num_pairs=num_pairs,
            steps=steps,
            ablation=ablation,
            by=by,
            size=size,
            out=out_dir,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            quantize=quantize,
            progress=stages,
        )
    print_circuit(finished_run)
    print_line(f"Report: {finished_run.path / 'report.html'}")


@app.command("which-algorithm")
def which_algorithm_command(
    subject: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="Run directory, decoder folder, Hub name or .gguf file.")
    ],
    study: Annotated[str | None, typer.Option(help="Study whose task the model in a folder is tested on.")] = None,
    token_ids: TokenIdsFile = None,
    sequences: Annotated[int, typer.Option(help="Number of sequences to sample, at least 32.")] = 128,
    seed: Annotated[int, typer.Option(help="Random seed of the sequences.")] = 0,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Also write results and a report to this directory."),
    ] = None,
    device: Device = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Rank in-context algorithms by how similar their predictions are to those of a model."""
    from mesascope import api
    from mesascope.inspection.algorithm_table import summarise_report

    def print_log_line(line: str) -> None:
        print_line(line, err)

    reports = api.rank_algorithms(
        subject,
        study=study,
        token_ids=token_ids,
        sequences=sequences,
        seed=seed,
        out=out_dir,
        device=device,
        trust_remote_code=trust_remote_code,
        log=print_log_line,
    )
    summaries = [summarise_report(answer) for answer in reports]
    if as_json:
        print(json.dumps(summaries, indent=2))
        return
    for summary_row in summaries:
        print_ranking(summary_row)
    if out_dir is not None:
        print_line(f"Report: {out_dir / 'report.html'}")


def parse_settings(options: list[str] | None) -> dict[str, str] | None:
    """Return the settings that ``--set`` names.

    Args:
        options: The values of the option, such as ``training.steps=500``.

    Returns:
        Values as text by path; None without the option.

    Raises:
        ValueError: If a value has another form, or a path is named twice.

    >>> parse_settings(["training.steps=500", "model.norm=rms"])
    {'training.steps': '500', 'model.norm': 'rms'}
    """
    if not options:
        return None
    settings: dict[str, str] = {}
    for option in options:
        path, _, value = (part.strip() for part in option.partition("="))
        if not path or not value or path in settings:
            raise ValueError(f"--set must name each field once, as in --set training.steps=500, but got {option!r}")
        settings[path] = value
    return settings


def parse_varied(options: list[str] | None) -> dict[str, list[str]] | None:
    """Return the levels of each factor that ``--vary`` names.

    Args:
        options: The values of the option, such as ``block=bare,prenorm``.

    Returns:
        Names of levels by factor; None without the option.

    Raises:
        ValueError: If a value has another form, or a factor is named twice.

    >>> parse_varied(["block=bare,prenorm", "heads=1"])
    {'block': ['bare', 'prenorm'], 'heads': ['1']}
    """
    if not options:
        return None
    varied: dict[str, list[str]] = {}
    for option in options:
        factor, _, levels = option.partition("=")
        names = split_names(levels)
        if not factor.strip() or not names or factor.strip() in varied:
            raise ValueError(f"--vary must name each factor once, as in --vary FACTOR=LEVEL,LEVEL, but got {option!r}")
        varied[factor.strip()] = names
    return varied
