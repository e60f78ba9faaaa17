"""Identification of the in-context algorithms that the models of a run, or one model, are most similar to."""

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedModel

from mesascope.inspection._checkpoints import resolve_checkpoints
from mesascope.inspection._token_ids import TokenIdsLike, count_embeddings
from mesascope.inspection.comparisons._chains import compare_on_chains
from mesascope.inspection.comparisons._in_memory import identify_in_memory
from mesascope.inspection.comparisons._report import (
    AlgorithmReport,
    compare_algorithms,
    compare_on_task,
    no_icl_task_message,
    studies_with_icl_tasks,
)
from mesascope.models.load import is_decoder_folder, load_checkpoint, load_pretrained
from mesascope.store import LogFn, Run, do_nothing
from mesascope.studies.base import Condition, Study
from mesascope.studies.registry import load_study
from mesascope.tasks.base import Task
from mesascope.tasks.icl.base import InContextTask


def identify_algorithms(
    subject: str | PreTrainedModel,
    *,
    study: str | None,
    task: Task | None = None,
    token_ids: TokenIdsLike | None = None,
    sequences: int,
    seed: int,
    device: str,
    trust_remote_code: bool = False,
    log: LogFn = do_nothing,
) -> list[AlgorithmReport]:
    """Identify the in-context algorithms that models are most similar to.

    Args:
        subject: A run's directory, whose last checkpoints are analysed for every seed and every condition with an
            in-context task; a folder with a mesascope decoder; a causal language model for :func:`load_pretrained`,
            which is compared with n-gram counts on Markov chains of its own tokens; an output folder of a Trainer,
            whose checkpoints are all compared; or a model in memory.
        study: The study whose task is used, for a model in a folder or a run whose study is a file.
        task: The task that is used, for a model in memory.
        token_ids: Token ids, or a file of them, from which the tokens of Markov chains are drawn; by default those of
            the tokenizer that represent text.
        sequences: Number of sequences to sample, 32 or more.
        seed: The seed of the sequences, and of the tokens that represent symbols.
        device: The device to compute on.
        trust_remote_code: Run Python code that comes with a language model.
        log: Receives lines of text.

    Returns:
        One report per model.

    Raises:
        ValueError: If nothing can be analysed; the message says what can.
    """
    if sequences < 32:
        raise ValueError(
            f"sequences must be 32 or more, to fit on one half and evaluate on the other, but got {sequences}"
        )
    if not isinstance(subject, str):
        return [identify_in_memory(subject, study, task, token_ids, sequences, seed, log)]
    if task is not None:
        raise ValueError(f"a task must be given with a model in memory only, but got {subject}; give a study")
    path = Path(subject)
    if token_ids is not None and ((path / "run.json").is_file() or is_decoder_folder(path) or study is not None):
        raise ValueError(
            f"token_ids need a language model that is compared on Markov chains, but {subject} is compared on the task "
            "of a study; omit token_ids"
        )
    if (path / "run.json").is_file():
        return list(_identify_in_run(Run.open(path), study, sequences, seed, device, log))
    if is_decoder_folder(path):
        condition = _find_condition(load_checkpoint(path, device), study, subject)
        return [_identify_in_checkpoint(condition, None, path, sequences, seed, device, log)]
    reports = []
    for checkpoint in resolve_checkpoints(subject, None):
        log(f"opening {checkpoint.label or 'the model'}")
        model, tokenizer = load_pretrained(
            checkpoint.name, device=device, trust_remote_code=trust_remote_code, require_tokenizer=False
        )
        if study is not None:
            condition = _find_token_condition(model, study, subject)
            task = condition.task_at("laptop")
            reports.append(compare_on_task(checkpoint.label, model, task, sequences, seed, log))
        else:
            reports.append(
                compare_on_chains(checkpoint.label, model, tokenizer, subject, token_ids, sequences, seed, log)
            )
    return reports


def _identify_in_run(
    run: Run, study: str | None, sequences: int, seed: int, device: str, log: LogFn
) -> Iterator[AlgorithmReport]:
    """Yield a report for every condition and every seed of a run."""
    if "scale" not in run.record:
        raise ValueError(
            f"the run must be that of a study, but {run.path} inspects a language model; pass the model instead"
        )
    study_value, scale = load_study_of_run(run, study), run.record["scale"]
    conditions = [one for one in study_value.conditions if isinstance(one.task_at(scale), InContextTask)]
    if not conditions:
        raise ValueError(no_icl_task_message(f"the study {study_value.name}"))
    for condition in conditions:
        for replicate in run.record["seeds"]:
            path = find_last_checkpoint(run, study_value, condition, replicate)
            yield _identify_in_checkpoint(condition, replicate, path, sequences, seed, device, log, scale)


def load_study_of_run(run: Run, study: str | None) -> Study:
    """Return the study of a run.

    Args:
        run: The run.
        study: Its name or file; the name that the run records by default.

    Raises:
        ValueError: If it is another study than that of the run.
    """
    value = load_study(study or run.record["study"])
    if value.name != run.record["study"]:
        raise ValueError(f"the study must be {run.record['study']}, that of the run, but got {value.name}")
    return value


def find_last_checkpoint(run: Run, study: Study, condition: Condition, replicate: int) -> Path:
    """Return the folder of the last checkpoint of a finished training.

    Args:
        run: The run.
        study: Its study.
        condition: The condition.
        replicate: The training replicate.

    Raises:
        ValueError: If the training is not finished.
    """
    scale, condition_run = run.record["scale"], run.for_condition(condition.name)
    last_step = condition.scales[scale].training.steps
    if last_step not in condition_run.list_checkpoints(replicate):
        raise ValueError(
            f"the training of a run must be finished, but {condition_run.seed_path(replicate)} has no checkpoint at "
            f"step {last_step}; resume it with mesascope run {study.name} --scale {scale} --out {run.path}"
        )
    return condition_run.verified_checkpoint(replicate, last_step)


def _identify_in_checkpoint(
    condition: Condition,
    replicate: int | None,
    path: Path,
    sequences: int,
    seed: int,
    device: str,
    log: LogFn,
    scale: str = "laptop",
) -> AlgorithmReport:
    task = condition.task_at(scale)
    assert isinstance(task, InContextTask)
    model = load_checkpoint(path, device)
    return compare_algorithms(
        condition.title or condition.name, replicate, model, task, sequences, seed, log, type(task).__name__
    )


def _find_condition(model: PreTrainedModel, study: str | None, subject: str) -> Condition:
    """Find the condition of a study whose task has the input and output dimensions of a decoder."""
    if study is None:
        raise ValueError(
            f"the task of {subject} must be given by --study, one of {', '.join(studies_with_icl_tasks())}"
        )
    study_value: Study = load_study(study)
    dimensions = (model.config.vocab_size, model.config.d_in, model.config.d_out)
    conditions = [condition for condition in study_value.conditions if isinstance(condition.task, InContextTask)]
    if not conditions:
        raise ValueError(no_icl_task_message(f"the study {study_value.name}"))
    for condition in conditions:
        if (condition.model.vocab_size, condition.model.d_in, condition.model.d_out) == dimensions:
            return condition
    raise ValueError(
        f"the decoder must have the study's vocab_size, d_in and d_out, but {subject} has {dimensions}; give "
        "another study"
    )


def _find_token_condition(model: PreTrainedModel, study: str, subject: str) -> Condition:
    """Return the first condition of a study whose in-context task has tokens that a language model embeds."""
    value, count = load_study(study), count_embeddings(model, subject)
    for condition in value.conditions:
        vocabulary = condition.model.vocab_size
        if isinstance(condition.task, InContextTask) and vocabulary is not None and vocabulary <= count:
            return condition
    raise ValueError(
        f"the study of a language model must have an in-context task of at most {count} tokens, the rows of the "
        f"embedding of {subject}, but {value.name} has none; give another study"
    )
