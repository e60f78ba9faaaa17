"""Python functions for the commands of the command line."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.quantization_config import QuantizationConfigMixin

from mesascope.argument_types import validate_arguments
from mesascope.executors import SerialExecutor, SlurmExecutor, TorchrunExecutor, create_executor
from mesascope.formulas import render_plain
from mesascope.inspection import (
    MIN_PAIRS,
    AlgorithmReport,
    CircuitSearch,
    StageProgressFn,
    TokenIdsLike,
    describe_ranking,
    find_circuit,
    find_token_task,
    get_model_name,
    identify_algorithms,
    inspect_model,
    open_language_model,
    open_run,
    write_rankings,
)
from mesascope.loggers import RunLogger, create_loggers, log_run
from mesascope.progress import ProgressDisplay, StageProgressBar, open_console
from mesascope.report import write_report
from mesascope.report.export import collect_figures, collect_tables
from mesascope.runner import Executor, ProgressCallback, run_study
from mesascope.store import Run
from mesascope.store.remote import fetch_run, is_url, keep_synchronised, make_local_path, sync_run
from mesascope.studies.base import Study
from mesascope.studies.cell_names import format_cell
from mesascope.studies.cells import load_cells
from mesascope.studies.factors import is_setting
from mesascope.studies.registry import hold_value, load_study
from mesascope.tasks.base import Task

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

RUNS_FOLDER = Path("runs")


@validate_arguments
def run(
    study: str | Study,
    *,
    scale: str = "laptop",
    seeds: int | None = None,
    out: Path | str | None = None,
    device: str = "auto",
    on: str | Executor | None = None,
    vary: Mapping[str, Sequence[str]] | None = None,
    settings: Mapping[str, str | float | bool | None] | None = None,
    progress: ProgressCallback | None = None,
    loggers: Sequence[str | RunLogger] = (),
    quiet: bool = False,
) -> Run:
    """Run a study up to its verdicts and its report, or resume a run that was stopped.

    Args:
        study: The name of a study, a ``.py`` file that defines ``STUDY``, or a study as a value.
        scale: smoke, laptop or paper.
        seeds: Number of training replicates; the default of the scale if None.
        out: The run's directory; ``runs/STUDY-SCALE`` by default, followed by the settings. Or a URL of shared storage,
            such as ``s3://bucket/affine``: the run is then written to ``runs/s3/bucket/affine`` and synchronised.
        device: auto, cpu or cuda (also ``cuda:1`` and so on).
        on: serial, processes, ray[:ADDRESS], slurm or torchrun, as in :func:`mesascope.executors.create_executor`, or
            an executor. With torchrun, all its processes call this function; the first one writes the run.
            Default: serial at smoke scale, on a GPU or for a value, processes otherwise. A value must be run serially,
            because other processes cannot load it.
        vary: Names of levels by the name of a factor, such as ``{"block": ["bare", "prenorm"]}``, and values as text by
            the path of a setting, such as ``{"training.optimizer.lr": ["1e-3", "3e-3"]}``; the claims are judged in
            every combination. Default: the study's grid at this scale.
        settings: New values of fields of the task, the model or the training, such as ``{"training.steps": 500}``, in
            every condition that has the field. The claims are judged at these values alone, without the study's grid.
        progress: Receives progress updates. Default: bars on a terminal and in a notebook, nothing in other scripts.
        loggers: ``tensorboard``, ``tensorboard:FOLDER``, ``wandb``, ``trackio``, or loggers of your own. Each receives
            loss, learning rate, gradient norm and evaluations of every model when the run has finished. One that fails
            is named, and does not stop the run.
        quiet: Show no progress.

    Returns:
        The run in the study's own setting; its ``path`` contains ``report.html``, ``verdicts.json`` and ``results``,
        and the runs of other cells under ``cells``.

    Raises:
        ValueError: If an argument is invalid; the message is one line.
    """
    is_value = isinstance(study, Study)
    if is_value and on not in (None, "serial", SerialExecutor()):
        raise ValueError(
            f"a study that is a value must run on 'serial', but got {on!r}; write it to a .py file that defines STUDY, "
            "and pass the path of the file"
        )
    given = create_executor(on) if on and isinstance(on, str) else on
    chosen_device = _choose_job_device(device, given)
    one_process = scale == "smoke" or chosen_device != "cpu" or is_value
    executor = create_executor("serial" if one_process else "processes") if isinstance(given, str | None) else given
    console = open_console(quiet=quiet or progress is not None)
    with ExitStack() as stack:
        if isinstance(executor, TorchrunExecutor):
            stack.enter_context(executor.join_processes(chosen_device))
        if settings and vary is not None:
            first = next(iter(settings))
            raise ValueError(f"settings must be given without vary, but got both; pass {first} to vary, with one value")
        display, name = stack.enter_context(ProgressDisplay(console)), stack.enter_context(_hold_study(study))
        callback, cell = progress or display, _format_settings(settings or {})
        default_path = RUNS_FOLDER / "-".join(filter(None, [load_study(name).name, scale, cell]))
        if isinstance(executor, TorchrunExecutor) and not executor.is_first:
            executor.follow_jobs()
            return Run.open(_find_folder(out, default_path))
        with _hold_folder(out, default_path, callback.log_message) as path:
            created_loggers = create_loggers(loggers, path)
            finished_run = run_study(
                f"{name}[{cell}]" if cell else name,
                scale=scale,
                seeds=seeds,
                path=path,
                device=chosen_device,
                executor=executor,
                progress=callback,
                varied=vary,
                strategy=executor.strategy if isinstance(executor, TorchrunExecutor) else None,
            )
            for cell in load_cells(finished_run.path):
                write_report(cell.path, callback.log_message)
        if created_loggers:
            log_run(path, created_loggers, callback.log_message)
    return finished_run


def _choose_job_device(device: str, executor: object) -> str:
    """Return the device of jobs; those of Slurm have GPUs only if they request them, and this machine may have none."""
    if not isinstance(executor, SlurmExecutor) or executor.cluster != "slurm":
        return choose_device(device)
    if device == "auto":
        return "cuda" if executor.num_gpus else "cpu"
    if device == "cuda" and not executor.num_gpus:
        raise ValueError("jobs on the device cuda must request a GPU of Slurm, but num_gpus is 0; pass num_gpus=1")
    return device if device == "cuda" else choose_device(device)


@contextmanager
def _hold_folder(out: Path | str | None, default: Path, log: Callable[[str], None]) -> Iterator[Path]:
    """Yield the folder of a run; that of a URL is fetched before the ``with`` block and synchronised in it."""
    folder = _find_folder(out, default)
    with keep_synchronised(folder, str(out), log) if is_url(out or default) else nullcontext():
        yield folder


def _find_folder(out: Path | str | None, default: Path) -> Path:
    """Return the folder of a run, which for a URL is that of its working copy."""
    if is_url(out or default):
        return make_local_path(str(out), RUNS_FOLDER)
    return Path(out) if out is not None else default


def _choose_folder(out: Path | str | None, default: Path) -> Path:
    """Return the directory of a run that is not of a study; a URL is refused."""
    if is_url(out or default):
        raise ValueError(
            f"the directory of such a run must be a folder, but got {out!r}; write to one, then send it with mesascope "
            "sync"
        )
    return _find_folder(out, default)


def _format_settings(settings: Mapping[str, str | float | bool | None]) -> str:
    """Return the name of the cell of settings; refuse names that are no settings."""
    wrong = [name for name in settings if not is_setting(name)]
    if wrong:
        raise ValueError(
            "a setting must be a field of the task, the model or the training, such as training.steps, but got "
            f"{wrong[0]!r}"
        )
    return format_cell(
        {name: value if isinstance(value, str) else str(value).lower() for name, value in settings.items()}
    )


@contextmanager
def _hold_study(study: str | Study) -> Iterator[str]:
    """Yield the name with which `load_study` returns a study inside the ``with`` block."""
    if isinstance(study, str):
        yield study
    else:
        with hold_value(study) as name:
            yield name


@validate_arguments
def inspect(
    model: str | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text: Path | str | None = None,
    token_ids: TokenIdsLike | None = None,
    task: Task | None = None,
    study: str | None = None,
    tokens: int | None = None,
    sequences: int = 4,
    out: Path | str | None = None,
    analyses: Sequence[str] | None = None,
    steps: Sequence[str] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    trust_remote_code: bool = False,
    stream_layers: bool = False,
    quantize: str | QuantizationConfigMixin | None = None,
    device_map: str | None = None,
    progress: StageProgressFn | None = None,
    quiet: bool = False,
) -> Run:
    """Analyse a causal language model on a text or on token ids, compare with controls, and write a report.

    Args:
        model: A Hub name, a folder, a ``.gguf`` file, or a model in memory, which keeps its device and its dtype; for a
            plain module, ``mesascope.wrap(module)``.
        tokenizer: The tokenizer of a model in memory.
        text: A UTF-8 file; by default a story that comes with mesascope.
        token_ids: Token ids (batch, pos), or one long sequence (pos), instead of a text, for models without a
            tokenizer: a tensor, an array, or a ``.npy`` or ``.safetensors`` file. Random sequences are then drawn from
            the tokens that occur. The common first token of all rows counts as the beginning of every text.
        task: A task of tokens, whose sequences are inspected instead of a text.
        study: A study whose task of tokens is used, instead of ``task``.
        tokens: Tokens per sequence; 512 by default, or fewer if the text or the model's context is shorter.
        sequences: Maximum number of sequences.
        out: The run's directory; ``runs/inspect-MODEL`` by default.
        analyses: Names of analyses; all by default.
        steps: Training checkpoints: revisions of a Hub name, or folders. Every result then has the axis ``step``.
        device: cpu, cuda or auto.
        dtype: Data type of the weights in memory: float32, bfloat16, float16 or float64.
        trust_remote_code: Run Python code that comes with the model; a model that needs it is refused otherwise.
        stream_layers: Read the weights of each layer from the safetensors files whenever it runs, for a model that does
            not fit into memory. The control of random weights is left out.
        quantize: Quantise the weights of linear modules: int8 or int4 (torchao), nf4 (bitsandbytes), or a quantization
            config of transformers. The control of random weights is left out.
        device_map: Spread the weights over devices, the processor's memory and the disk: auto, balanced, balanced_low_0
            or sequential, as in transformers. ``device`` is not used then.
        progress: Called with (current stage, stages done, total stages). Default: a bar on a terminal and in a
            notebook, nothing in other scripts.
        quiet: Show no progress.

    Returns:
        The run; its ``path`` contains ``report.html`` and ``results``.

    Raises:
        ValueError: If an argument is invalid; the message is one line.
    """
    if study is not None:
        if task is not None:
            raise ValueError("the task must be given once, but got task and study; omit either")
        task = find_token_task(study)
    with StageProgressBar(open_console(quiet=quiet or progress is not None)) as bar:
        finished_run = inspect_model(
            model,
            tokenizer=tokenizer,
            text=Path(text) if text is not None else None,
            token_ids=token_ids,
            task=task,
            tokens=tokens,
            sequences=sequences,
            path=_choose_folder(out, RUNS_FOLDER / f"inspect-{Path(get_model_name(model)).name}"),
            analyses=analyses,
            steps=steps,
            device=choose_device(device),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            stream_layers=stream_layers,
            quantize=quantize,
            device_map=device_map,
            progress=progress or bar,
        )
    write_report(finished_run.path)
    return finished_run


@validate_arguments
def circuit(
    subject: Path | str,
    *,
    pairs: Path | str | None = None,
    study: str | None = None,
    condition: str | None = None,
    seed: int | None = None,
    num_pairs: int = 32,
    steps: int = 5,
    ablation: str = "counterfactual",
    by: str = "magnitude",
    size: int | None = None,
    out: Path | str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    trust_remote_code: bool = False,
    quantize: str | QuantizationConfigMixin | None = None,
    progress: StageProgressFn | None = None,
    quiet: bool = False,
) -> Run:
    """Find the circuit of a behaviour, test it on other pairs, and write a report, or resume a search that was stopped.

    Args:
        subject: A Hub name, a folder or a ``.gguf`` file, with ``pairs``; or the directory of a study's run.
        pairs: JSON lines with the keys ``clean``, ``counterfactual``, ``answer`` and ``wrong_answer``. The metric is
            the logit difference between the two answers after the prompt. For another ablation than the
            counterfactual, all lines may lack ``counterfactual``; the clean prompts are then the references.
        study: Of a run: the study, if it is a file.
        condition: Of a run: the condition; the first one by default.
        seed: Of a run: the training replicate; the first one by default.
        num_pairs: Of a run: number of pairs of sequences of its task; the metric is the loss of the clean sequence at
            its last scored position.
        steps: Gradients that are averaged (EAP-IG); with 0, one gradient at the clean run (EAP).
        ablation: What edges outside the circuit carry: ``counterfactual``; or, with the counterfactual prompts of the
            same half of the pairs as references, ``mean`` or ``resample``, as in `mesascope.circuits.attribute_edges`.
        by: How edges are ranked by their scores: ``magnitude``, or ``signed`` (first those whose ablation lowers the
            metric), as in `mesascope.circuits.rank_edges`.
        size: Number of edges of the circuit; 1 % of all edges by default.
        out: The directory of the search; ``runs/circuit-SUBJECT`` by default.
        device: cpu, cuda or auto.
        dtype: Data type of the weights of a language model: float32, bfloat16, float16 or float64.
        trust_remote_code: Run Python code that comes with a language model.
        quantize: Of a language model: quantise its weights, as in `inspect`.
        progress: Called with (current stage, stages done, total stages). Default: a bar on a terminal and in a
            notebook, nothing in other scripts.
        quiet: Show no progress.

    Returns:
        The run; its ``path`` contains ``report.html`` and ``results``.

    Raises:
        UnsupportedModel: If the components of the model add no separate terms to the residual stream.
        ValueError: If an argument is invalid; the message is one line.
    """
    search, chosen_device = CircuitSearch(steps=steps, ablation=ablation, by=by, size=size), choose_device(device)
    is_run = (Path(subject) / "run.json").is_file()
    if is_run == (pairs is not None):
        given = "a run, which samples its own pairs; omit pairs" if is_run else "a language model; give a pair file"
        raise ValueError(f"pairs must be given for a language model and for nothing else, but {subject} is {given}")
    if is_run and quantize is not None:
        raise ValueError(f"quantize must be given for a language model only, but {subject} is a run; omit it")
    if is_run and num_pairs < MIN_PAIRS:
        raise ValueError(f"num_pairs must be {MIN_PAIRS} or more, but got {num_pairs}")
    if pairs is not None:
        inputs = open_language_model(
            str(subject),
            Path(pairs),
            chosen_device,
            dtype,
            trust_remote_code=trust_remote_code,
            needs_counterfactual=ablation == "counterfactual",
            quantize=quantize,
        )
    else:
        inputs = open_run(Path(subject), study, condition, seed, num_pairs, chosen_device)
    path = _choose_folder(out, RUNS_FOLDER / f"circuit-{Path(subject).name}")
    with StageProgressBar(open_console(quiet=quiet or progress is not None)) as bar:
        run = find_circuit(inputs, search, path, progress or bar)
    write_report(run.path)
    return run


@validate_arguments
def rank_algorithms(
    subject: Path | str | PreTrainedModel,
    *,
    study: str | None = None,
    task: Task | None = None,
    token_ids: TokenIdsLike | None = None,
    sequences: int = 128,
    seed: int = 0,
    out: Path | str | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> list[AlgorithmReport]:
    """Rank the in-context algorithms that the models of a run, or one model, are most similar to.

    Args:
        subject: A run's directory, a folder with a mesascope decoder, a causal language model, an output folder of a
            Trainer, or a model in memory; for a plain module, ``mesascope.wrap(module)``.
        study: The study whose task is used, for a model in a folder or a study in a file.
        task: The task that is used, for a model in memory.
        token_ids: Token ids, or a ``.npy`` or ``.safetensors`` file of them. A language model is compared with n-gram
            counts on Markov chains of tokens that occur in them; by default, of tokens of its tokenizer.
        sequences: Number of sequences to sample, 32 or more. Hyperparameters are fitted on one half, and similarities
            are computed on the other.
        seed: The seed of the sequences.
        out: A directory, to which results and report are written as a run; by default nothing is written.
        device: cpu, cuda or auto.
        trust_remote_code: Run Python code that comes with a language model.
        log: Receives lines of text.

    Returns:
        One report per model, with similarities, fitted hyperparameters and null similarities.

    Raises:
        ValueError: If an argument is invalid, or ``out`` holds something else; the message is one line.
    """
    chosen_device = choose_device(device)
    model_or_name = subject if isinstance(subject, PreTrainedModel) else str(subject)
    description = describe_ranking(
        get_model_name(model_or_name),
        study=study,
        token_ids=str(token_ids) if isinstance(token_ids, Path | str) else None,
        sequences=sequences,
        seed=seed,
        device=chosen_device,
    )
    path = None if out is None else _choose_folder(out, RUNS_FOLDER)
    if path is not None and path.exists():
        Run.create(path, description)  # refuses a directory with something else before anything is computed
    reports = identify_algorithms(
        model_or_name,
        study=study,
        task=task,
        token_ids=token_ids,
        sequences=sequences,
        seed=seed,
        device=chosen_device,
        trust_remote_code=trust_remote_code,
        log=log,
    )
    if path is not None:
        write_report(write_rankings(path, description, reports).path)
    return reports


@validate_arguments
def fetch(url: str, *, weights: bool = True) -> Run:
    """Fetch a run from shared storage into the user's cache, and verify every file.

    Args:
        url: The URL of the run, such as ``s3://bucket/affine``.
        weights: Also fetch checkpoints and training histories.

    Returns:
        The run as it was last committed.

    Raises:
        ValueError: If there is no run, or an object is missing, torn or changed; the message is one line.
    """
    return Run.open(fetch_run(url, weights=weights))


@validate_arguments
def sync(run: Run | Path | str, url: str | None = None) -> str:
    """Synchronise a run on this machine with shared storage; what the storage has already is not sent.

    Args:
        run: A run, or its directory.
        url: The URL; that with which the run was last synchronised by default.

    Returns:
        The URL.

    Raises:
        ValueError: If the URL holds something else, another process writes to it, or it does not answer; the message is
            one line, and the run stays as it is.
    """
    return sync_run(run.path if isinstance(run, Run) else Path(run), url)


@validate_arguments
def figures(run: Run | Path | str) -> "dict[str, Figure]":
    """Build every figure of the report of a run with plotly, as they are written by `mesascope figures`.

    Args:
        run: A run, or its directory.

    Returns:
        Figures of plotly by their names, which are those of the files, in the order of the report. The title and the
        caption of a figure are its ``layout.meta["title"]`` and ``layout.meta["caption"]``.

    Raises:
        ValueError: If there is no run, or plotly is not installed; the message is one line.
    """
    try:
        from plotly.graph_objects import Figure  # an optional dependency
    except ImportError as error:
        raise ValueError("figures need plotly, which is not installed; run pip install 'mesascope[figures]'") from error
    collected = collect_figures(run.path if isinstance(run, Run) else Path(run))
    return {
        one.name: Figure(one.spec).update_layout(
            meta={"title": render_plain(one.title), "caption": render_plain(one.caption)}
        )
        for one in collected
    }


@validate_arguments
def tables(run: Run | Path | str) -> dict[str, pd.DataFrame]:
    """Return every table of the report of a run.

    Args:
        run: A run, or its directory.

    Returns:
        Tables by name: ``verdicts`` and ``cells`` of a study, ``model``, ``parameters``, ``environment`` and
        ``timings`` where they are recorded, and ``RESULT-VARIABLE`` for the tables of results, as text.

    Raises:
        ValueError: If there is no run, or its record or its verdicts are damaged; the message is one line.
    """
    return collect_tables(run.path if isinstance(run, Run) else Path(run))


@validate_arguments
def choose_device(device: str) -> str:
    """Return the name of an available device.

    Args:
        device: auto, cpu, cuda, cuda:N or mps (an Apple GPU); auto is cuda if such a GPU is available, and never mps,
            which has no float64.

    Returns:
        A device name for torch.

    Raises:
        ValueError: If there is no such device on this machine.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    kind, _, number = device.partition(":")
    if device == "mps":
        is_there = torch.backends.mps.is_available()
    elif kind == "cuda" and (not number or number.isdigit()):
        is_there = torch.cuda.is_available() and int(number or 0) < torch.cuda.device_count()
    else:
        raise ValueError(f"a device must be auto, cpu, cuda or mps, but got {device!r}")
    if not is_there:
        raise ValueError(f"the device {device} must be on this machine, but is not; use the device cpu")
    return device
