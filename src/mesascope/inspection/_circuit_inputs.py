"""Inputs of a circuit: pairs of prompts of a language model, or pairs of sequences of a trained model's task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.inspection._algorithm_id import find_last_checkpoint, load_study_of_run
from mesascope.inspection._inspect import DTYPES, NUM_CHECKED_TOKENS
from mesascope.inspection._pair_file import read_pairs, tokenize_pairs
from mesascope.interventions.metrics import Metric, logit_difference, loss
from mesascope.models.load import load_checkpoint, load_pretrained, weights_fingerprint
from mesascope.models.quantized.schemes import Quantization, name_quantization
from mesascope.models.weight_checks import check_forward_pass, hash_weights
from mesascope.store import Run
from mesascope.studies.base import Condition
from mesascope.tasks.base import Batch, Task

SEQUENCE_SEED = 2**40 + 29  # seed of the sequences, different from those that studies analyse


@dataclass(frozen=True, kw_only=True, eq=False)
class CircuitInputs:
    """Clean inputs, those of the ablation, and the metric of any of them.

    Attributes:
        model: the model.
        name: the name of the model.
        clean: clean inputs, tokens (batch, pos) or vectors (batch, pos, d_in).
        source: counterfactual inputs, or the references of another ablation, of the same shape.
        mask: (batch, pos), 1 where an input is not padding; ``None`` without padding.
        make_metric: returns the metric of some of the pairs, by their indices.
        record: what determines the inputs and the model.
    """

    model: PreTrainedModel
    name: str
    clean: Tensor
    source: Tensor
    mask: Tensor | None
    make_metric: Callable[[slice], Metric]
    record: dict[str, Any]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.clean)

    def select(self, rows: slice) -> dict[str, Any]:
        """Return the arguments of `CircuitRuns` for some of the pairs.

        Args:
            rows: the pairs.
        """
        mask = None if self.mask is None else self.mask[rows]
        return {
            "model": self.model,
            "inputs": self.clean[rows],
            "source": self.source[rows],
            "metric": self.make_metric(rows),
            "attention_mask": mask,
            "source_attention_mask": mask,
        }


def open_language_model(
    name: str,
    pair_file: Path,
    device: str,
    dtype: str,
    *,
    trust_remote_code: bool,
    needs_counterfactual: bool = True,
    quantize: Quantization | None = None,
) -> CircuitInputs:
    """Load a language model and its pairs of prompts.

    Args:
        name: a Hub name, a folder or a ``.gguf`` file.
        pair_file: the pairs, as in `read_pairs`.
        device: the device to compute on.
        dtype: data type of the weights.
        trust_remote_code: run Python code that comes with the model.
        needs_counterfactual: whether the file must have counterfactual prompts; the clean prompts are the references of
            a file without them.
        quantize: how the weights are quantised, as in `load_pretrained`.

    Returns:
        The inputs; the metric is the logit difference between answer and wrong answer after the prompt.

    Raises:
        ValueError: If the file, the dtype or the model is invalid; the file is checked first.
    """
    pairs = read_pairs(pair_file, needs_counterfactual=needs_counterfactual)
    if dtype not in DTYPES:
        raise ValueError(f"a dtype must be one of {', '.join(DTYPES)}, but got {dtype!r}")
    model, tokenizer = load_pretrained(
        name, DTYPES[dtype], device, trust_remote_code=trust_remote_code, require_tokenizer=False, quantize=quantize
    )
    if tokenizer is None:
        raise ValueError(f"a model must come with its tokenizer to read prompts, but {name} has none; add its files")
    tokens = tokenize_pairs(pairs, pair_file, tokenizer, model, name)
    check_forward_pass(model, tokens.clean[:1, :NUM_CHECKED_TOKENS], name)
    answers = [token.to(model.device) for token in (tokens.answer, tokens.wrong_answer)]
    return CircuitInputs(
        model=model,
        name=name,
        clean=tokens.clean.to(model.device),
        source=(tokens.clean if tokens.counterfactual is None else tokens.counterfactual).to(model.device),
        mask=None if bool(tokens.mask.all()) else tokens.mask.to(model.device),
        make_metric=lambda rows: logit_difference(*(token[rows] for token in answers)),
        record={
            "model": name,
            "weights": weights_fingerprint(name, model),
            "device": str(model.device),
            "dtype": dtype,
            **({} if quantize is None else {"quantize": name_quantization(quantize)}),
            "pairs": {
                "file": str(pair_file),
                "number": len(pairs),
                "digest": _hash_tensors([one for one in vars(tokens).values() if one is not None]),
            },
        },
    )


def open_run(
    path: Path, study: str | None, condition: str | None, seed: int | None, num_pairs: int, device: str
) -> CircuitInputs:
    """Load the trained model of a run, and pairs of sequences of its task.

    Args:
        path: the directory of a study's run.
        study: the study, if it is a file.
        condition: name of the condition; by default the first one.
        seed: the training replicate; by default the first one.
        num_pairs: number of pairs.
        device: the device to compute on.

    Returns:
        The inputs. The counterfactual, or reference, of a sequence is another sequence of the task; the metric is the
        loss of the clean sequence at its last scored position.

    Raises:
        ValueError: If the run has no such model, or its training is not finished.
    """
    loaded = open_run_model(path, study, condition, seed, device)
    model, task = loaded.model, loaded.task
    both = task.sample(2 * num_pairs, torch.Generator().manual_seed(SEQUENCE_SEED)).to(model.device)
    batch = _score_last_position(both[0::2])
    return CircuitInputs(
        model=model,
        name=loaded.name,
        clean=batch.inputs,
        source=both.inputs[1::2],
        mask=None,
        make_metric=lambda rows: loss(batch[rows]),
        record={
            "model": str(path),
            "weights": hash_weights(model),
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "condition": loaded.condition,
            "seed": loaded.seed,
            "pairs": {"number": num_pairs, "digest": _hash_tensors([both.inputs])},
        },
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class RunModel:
    """A trained model of a run, with its task.

    Attributes:
        model: the model after its last training step.
        task: the task of its condition at the scale of the run.
        name: study, condition and seed, for readers.
        condition: name of the condition.
        seed: the training replicate.
    """

    model: PreTrainedModel
    task: Task
    name: str
    condition: str
    seed: int


def open_run_model(path: Path, study: str | None, condition: str | None, seed: int | None, device: str) -> RunModel:
    """Load a trained model of a study's run, with its task.

    Args:
        path: the run directory.
        study: the study, if it is a file.
        condition: name of the condition; by default the first one.
        seed: the training replicate; by default the first one.
        device: the device to compute on.

    Returns:
        The model and its task.

    Raises:
        ValueError: If the run has no such model, or its training is not finished.
    """
    run = Run.open(path)
    if "scale" not in run.record:
        raise ValueError(f"a run must be that of a study, but {path} is not; pass the model itself")
    study_value, scale = load_study_of_run(run, study), run.record["scale"]
    chosen = _choose_condition(study_value.conditions, condition)
    seeds: list[int] = run.record["seeds"]
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise ValueError(f"the seed must be one of {', '.join(map(str, seeds))}, but got {seed}")
    return RunModel(
        model=load_checkpoint(find_last_checkpoint(run, study_value, chosen, seed), device),
        task=chosen.task_at(scale),
        name=f"{study_value.name}, {chosen.title or chosen.name or 'main condition'}, seed {seed}",
        condition=chosen.name,
        seed=seed,
    )


def _choose_condition(conditions: Sequence[Condition], name: str | None) -> Condition:
    if name is None:
        return conditions[0]
    found = next((one for one in conditions if one.name == name), None)
    if found is None:
        names = ", ".join(repr(one.name) for one in conditions)
        raise ValueError(f"the condition must be one of {names}, but got {name!r}")
    return found


def _score_last_position(batch: Batch) -> Batch:
    """Return the batch with weight at the last scored position of every sequence only."""
    length = batch.weight.shape[1]
    positions = torch.arange(length, device=batch.weight.device)
    last = torch.where(batch.weight > 0, positions, -1).max(1).values
    return replace(batch, weight=(positions == last[:, None]).to(batch.weight))


def _hash_tensors(tensors: Sequence[Tensor]) -> str:
    return sha256(b"".join(tensor.cpu().contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()[:16]
