"""Checks of a study before anything is written: every model must fit its task."""

import torch

from mesascope.activations import get_site
from mesascope.argument_types import summarize_error
from mesascope.models.config import DecoderConfig
from mesascope.models.load import find_decoder_class
from mesascope.models.recurrent.config import RecurrentConfig
from mesascope.studies.base import Condition, Study
from mesascope.tasks.base import Batch, Task, training_loss

NUM_SEQUENCES = 2  # of a forward pass
NUM_TOKEN_SEQUENCES = 64  # in which the largest token is searched
# multiplications of a forward pass: parameters x positions, and x iterations of a recurrent model
MAX_FORWARD_COST = 1e9  # a second on one core
MAX_ANALYSIS_COST = 5e6  # above it, some analyses take a minute
CHECK_SEED = 2**41 + 17  # no run uses it


class StudyInvalid(ValueError):  # noqa: N818  it says what happened
    """A study cannot be run; the message names the condition or the claim, and says what must hold."""


def check_models(study: Study, scale: str, label: str) -> None:
    """Check that the model of every condition takes the sequences of its task and predicts what its loss needs.

    The models are untrained. The forward pass of a large model is left out; lengths and widths are checked for all.

    Args:
        study: The study.
        scale: The name of the scale.
        label: What messages call the study.

    Raises:
        StudyInvalid: A model does not fit its task.
    """
    checked: list[tuple[Task, dict, torch.dtype]] = []
    for condition in study.conditions:
        _check_sites(condition, label_condition(label, condition))
        task, config = condition.task_at(scale), condition.model_at(scale)
        pair = (task, config.to_dict(), condition.scales[scale].training.weight_dtype)
        if pair not in checked:  # conditions often share both
            _check_model(task, config, pair[2], label_condition(label, condition))
            checked.append(pair)


def label_condition(label: str, condition: Condition) -> str:
    """Return what messages call a condition.

    Args:
        label: What they call the study.
        condition: The condition.
    """
    return f"{label}, condition {condition.name}" if condition.name else label


def is_quick(condition: Condition, scale: str) -> bool:
    """Return whether a condition can be analysed in seconds, before its task is prepared.

    Args:
        condition: The condition.
        scale: The name of the scale.
    """
    task = condition.task_at(scale)
    if type(task).prepare is not Task.prepare:
        return False
    positions = _sample_unprepared(task, 1).inputs.shape[1]
    return _forward_cost(condition.model_at(scale), positions) <= MAX_ANALYSIS_COST


def _forward_cost(config: DecoderConfig, positions: int) -> float:
    """Return about how many multiplications a forward pass on a few sequences takes."""
    with torch.device("meta"):
        parameters = sum(one.numel() for one in find_decoder_class(config)(config).parameters())
    iterations = config.to_dict().get("max_iterations", 1)  # of a recurrent model
    return NUM_SEQUENCES * parameters * positions * iterations


def _check_sites(condition: Condition, where: str) -> None:
    for analysis in condition.analyses:
        try:
            for site in sorted(analysis.required_sites):
                get_site(site)
        except ValueError as error:
            raise StudyInvalid(f"{where}: the sites of the analysis {analysis.name} must exist, but {error}") from error


def _check_model(task: Task, config: DecoderConfig, dtype: torch.dtype, where: str) -> None:
    try:
        batch = _sample_unprepared(task, NUM_TOKEN_SEQUENCES if config.vocab_size is not None else NUM_SEQUENCES)
    except NotImplementedError:
        return  # known only when the task is prepared
    except Exception as error:
        raise StudyInvalid(
            f"{where}: the task must sample sequences, but {type(task).__name__} fails with {summarize_error(error)}; "
            "change the fields of the task"
        ) from error
    problem = _find_problem(task, config, batch)
    if problem:
        raise StudyInvalid(f"{where}: {problem}")
    if _forward_cost(config, batch.inputs.shape[1]) <= MAX_FORWARD_COST:
        _run_forward(task, config, batch[:NUM_SEQUENCES].to("cpu", dtype), where)


def _find_problem(task: Task, config: DecoderConfig, batch: Batch) -> str:
    """Return which length or width of a model does not fit the sequences, and what to do; empty if all do."""
    length, tokens = batch.inputs.shape[1], config.vocab_size is not None
    # models of other classes may split a sequence; their forward pass says what they take
    if type(config) in (DecoderConfig, RecurrentConfig) and length > config.max_position_embeddings:
        return (
            f"a sequence must have at most {config.max_position_embeddings} positions "
            f"(model.max_position_embeddings), but those of the task have {length}; make them shorter, or set "
            f"model.max_position_embeddings to {length}"
        )
    if batch.inputs.is_floating_point() == tokens:
        given, needed = ("vectors", "d_in and d_out") if tokens else ("tokens", "vocab_size")
        return (
            f"the model must take the inputs of the task, but {type(task).__name__} has {given} and the model takes "
            f"{'tokens' if tokens else 'vectors'}; set model.{needed}"
        )
    return _find_token_problem(config, batch) if tokens else _find_width_problem(task, config, batch)


def _find_token_problem(config: DecoderConfig, batch: Batch) -> str:
    scored_targets = batch.targets[batch.weight > 0]
    is_token = not scored_targets.is_floating_point() and scored_targets.numel() > 0
    largest = max(int(batch.inputs.max()), int(scored_targets.max()) if is_token else 0)
    if largest < (config.vocab_size or 0):
        return ""
    return (
        f"model.vocab_size must be above every token of the task, but is {config.vocab_size} and the task has the "
        f"token {largest}; set model.vocab_size to {largest + 1} or more"
    )


def _find_width_problem(task: Task, config: DecoderConfig, batch: Batch) -> str:
    width = batch.inputs.shape[-1]
    if width != config.d_in:
        return (
            f"model.d_in must be the width of the inputs of the task, {width}, but is {config.d_in}; set model.d_in to "
            f"{width}"
        )
    if batch.targets.is_floating_point() and batch.targets.shape[-1] != config.d_out:
        # a loss may need predictions that are wider than the targets; baselines then are as well
        widths = {batch.targets.shape[-1], *(one.shape[-1] for one in task.baselines(batch).values())}
        if config.d_out not in widths:
            expected = batch.targets.shape[-1]
            return (
                f"model.d_out must be the width of the targets of the task, {expected}, but is {config.d_out}; set "
                f"model.d_out to {expected}"
            )
    return ""


def _run_forward(task: Task, config: DecoderConfig, batch: Batch, where: str) -> None:
    """Compute the loss of an untrained model."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(CHECK_SEED)
            model = torch.nn.Module.to(find_decoder_class(config)(config), dtype=batch.weight.dtype)
            prediction = model(batch.inputs).logits
            loss = task.loss(prediction, batch)
            value = float(training_loss(task, prediction, batch))
    except Exception as error:
        raise StudyInvalid(
            f"{where}: the untrained model must have a loss on sequences of the task, but the forward pass fails with "
            f"{summarize_error(error)}; change the fields of the task or the model"
        ) from error
    if loss.shape != batch.weight.shape:
        raise StudyInvalid(
            f"{where}: the loss must have one number per position, {tuple(batch.weight.shape)} of {len(batch)} "
            f"sequences, but has the shape {tuple(loss.shape)}; let the model predict at every position"
        )
    if not abs(value) < float("inf"):
        raise StudyInvalid(
            f"{where}: the loss of the untrained model must be finite, but is {value}; change its initialisation, or "
            "let some positions have a weight above 0"
        )


def _sample_unprepared(task: Task, n: int) -> Batch:
    return task.sample_unprepared(n, torch.Generator().manual_seed(CHECK_SEED))
