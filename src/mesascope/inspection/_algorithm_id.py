"""Identification of the in-context algorithms that the models of a run, or one model, are most similar to."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import xarray as xr
from transformers import PreTrainedModel

from mesascope.analyses import which_algorithm
from mesascope.inspection._text import check_token_ids, find_text_prefix, non_special_tokens
from mesascope.inspection._token_text import TokenDecoder
from mesascope.models.load import is_decoder_folder, load_checkpoint, load_pretrained
from mesascope.models.weight_checks import check_forward_pass
from mesascope.store import LogFn, Run, do_nothing
from mesascope.studies.base import Condition, Study
from mesascope.studies.registry import list_studies, load_study
from mesascope.tasks.chains import MarkovChains
from mesascope.tasks.icl.base import InContextTask

SEQUENCE_SEED = 2**40 + 23  # seed of the sequences, different from that of the sequences analysed by studies
NUM_SYMBOLS, CHAIN_LENGTH, FIRST_SCORED = (
    4,
    64,
    16,
)  # Markov chains for language models: symbols, length, first scored position


@dataclass(frozen=True, kw_only=True, eq=False)
class AlgorithmReport:
    """Result of identifying the algorithm of one model.

    Attributes:
        condition: The condition of a study; empty if there is none.
        seed: The training replicate; None if there is none.
        task: The task whose algorithms were compared with the model.
        results: The dataset returned by :func:`mesascope.analyses.which_algorithm`.
    """

    condition: str
    seed: int | None
    task: str
    results: xr.Dataset

    @property
    def display_title(self) -> str:
        """Condition and seed, as shown to the user."""
        seed = "" if self.seed is None else f"seed {self.seed}"
        return ", ".join(part for part in (self.condition, seed) if part)


def identify_algorithms(
    subject: str,
    *,
    study: str | None,
    sequences: int,
    seed: int,
    device: str,
    trust_remote_code: bool = False,
    log: LogFn = do_nothing,
) -> list[AlgorithmReport]:
    """Identify the in-context algorithms that models are most similar to.

    Args:
        subject: A run's directory, whose last checkpoints are analysed for every seed and every condition with an
            in-context task; a folder with a mesascope decoder; or a causal language model for :func:`load_pretrained`,
            which is compared with n-gram counts on Markov chains of its own tokens.
        study: The study whose task is used, for a decoder in a folder or a run whose study is a file.
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
    path = Path(subject)
    if (path / "run.json").is_file():
        return list(_identify_in_run(Run.open(path), study, sequences, seed, device, log))
    if is_decoder_folder(path):
        condition = _find_condition(load_checkpoint(path, device), study, subject)
        return [_identify_in_checkpoint(condition, None, path, sequences, seed, device, log)]
    if study is not None:
        raise ValueError(f"--study needs a decoder folder or a run, but {subject} is neither; omit --study")
    return [_identify_in_language_model(subject, sequences, seed, device, trust_remote_code, log)]


def _identify_in_language_model(
    subject: str, sequences: int, seed: int, device: str, trust_remote_code: bool, log: LogFn
) -> AlgorithmReport:
    """Compare a language model with n-gram counts, on Markov chains of its own tokens."""
    log("opening the model")
    model, tokenizer = load_pretrained(subject, device=device, trust_remote_code=trust_remote_code)
    if tokenizer is None:
        raise ValueError(
            f"a language model must come with its tokenizer, but {subject} has none; add the tokenizer files"
        )
    context_length = getattr(model.config.get_text_config(), "max_position_embeddings", None) or CHAIN_LENGTH
    prefix, decoder = find_text_prefix(tokenizer), TokenDecoder(tokenizer)
    if context_length <= 2 * FIRST_SCORED + len(prefix):
        raise ValueError(
            f"the context must be longer than {2 * FIRST_SCORED + len(prefix)} tokens, but that of {subject} has "
            f"{context_length}"
        )
    symbols = _sample_symbols(non_special_tokens(tokenizer, model), seed)
    check_token_ids([*prefix, *symbols], model, subject)
    check_forward_pass(model, torch.tensor([[*prefix, *symbols]]), subject)
    task = MarkovChains(
        num_symbols=NUM_SYMBOLS,
        length=min(CHAIN_LENGTH, context_length - len(prefix)),
        scored_from=FIRST_SCORED,
        tokens=symbols,
        prefix=prefix,
    )
    words = ", ".join(repr(decoder.decode_token(token)) for token in symbols)
    return _compare_algorithms("", None, model, task, sequences, seed, log, f"Markov chains of {words}")


def _sample_symbols(text_tokens: torch.Tensor, seed: int) -> tuple[int, ...]:
    sampled = torch.randperm(len(text_tokens), generator=torch.Generator().manual_seed(seed))[:NUM_SYMBOLS]
    return tuple(int(token) for token in text_tokens[sampled])


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
        raise ValueError(_no_icl_task_message(f"the study {study_value.name}"))
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
    return _compare_algorithms(
        condition.title or condition.name, replicate, model, task, sequences, seed, log, type(task).__name__
    )


def _compare_algorithms(
    condition: str,
    replicate: int | None,
    model: PreTrainedModel,
    task: InContextTask,
    sequences: int,
    seed: int,
    log: LogFn,
    task_label: str,
) -> AlgorithmReport:
    report = AlgorithmReport(condition=condition, seed=replicate, task=task_label, results=xr.Dataset())
    log(f"comparing algorithms with the model{': ' if report.display_title else ''}{report.display_title}")
    batch = task.sample(sequences, torch.Generator().manual_seed(SEQUENCE_SEED + seed)).to(model.device)
    results = which_algorithm(model, task, batch, seed=seed)
    return AlgorithmReport(condition=condition, seed=replicate, task=task_label, results=results)


def _find_condition(model: PreTrainedModel, study: str | None, subject: str) -> Condition:
    """Find the condition of a study whose task has the input and output dimensions of a decoder."""
    if study is None:
        raise ValueError(
            f"the task of {subject} must be given by --study, one of {', '.join(_studies_with_icl_tasks())}"
        )
    study_value: Study = load_study(study)
    dimensions = (model.config.vocab_size, model.config.d_in, model.config.d_out)
    conditions = [condition for condition in study_value.conditions if isinstance(condition.task, InContextTask)]
    if not conditions:
        raise ValueError(_no_icl_task_message(f"the study {study_value.name}"))
    for condition in conditions:
        if (condition.model.vocab_size, condition.model.d_in, condition.model.d_out) == dimensions:
            return condition
    raise ValueError(
        f"the decoder must have the study's vocab_size, d_in and d_out, but {subject} has {dimensions}; give "
        "another study"
    )


def _no_icl_task_message(subject: str) -> str:
    study_names = ", ".join(_studies_with_icl_tasks())
    return f"the task must be learned in context, but {subject} has no such task; choose from {study_names}"


def _studies_with_icl_tasks() -> list[str]:
    return [
        entry.name
        for entry in list_studies()
        if any(isinstance(condition.task, InContextTask) for condition in load_study(entry.name).conditions)
    ]
