"""The comparison of a model in memory with the algorithms of a task, or with n-gram counts."""

from transformers import PreTrainedModel

from mesascope.activations.forward import evaluation_mode
from mesascope.inspection._inspection import get_class_name
from mesascope.inspection._token_ids import TokenIdsLike
from mesascope.inspection.comparisons._chains import compare_on_chains
from mesascope.inspection.comparisons._report import AlgorithmReport, compare_on_task
from mesascope.store import LogFn
from mesascope.tasks.base import Task


def identify_in_memory(
    model: PreTrainedModel,
    study: str | None,
    task: Task | None,
    token_ids: TokenIdsLike | None,
    sequences: int,
    seed: int,
    log: LogFn,
) -> AlgorithmReport:
    """Compare a model in memory with the algorithms of a task, or with n-gram counts.

    Args:
        model: The model.
        study: Must be None; a study belongs to the name of a model.
        task: The task.
        token_ids: Token ids from which the tokens of Markov chains are drawn, instead of a task.
        sequences: Number of sequences to sample.
        seed: The seed of the sequences.
        log: Receives lines of text.

    Returns:
        The report.

    Raises:
        ValueError: If not exactly one of task and token ids is given, or the model does not fit it.
    """
    name = get_class_name(model)
    if study is not None or (task is None) == (token_ids is None):
        raise ValueError(
            f"a model in memory must be compared on a task or on token_ids, but for {name} got "
            f"{'a study' if study is not None else 'both' if task is not None else 'neither'}; give task= or token_ids="
        )
    with evaluation_mode(model):
        if task is not None:
            return compare_on_task("", model, task, sequences, seed, log)
        return compare_on_chains("", model, None, name, token_ids, sequences, seed, log)
