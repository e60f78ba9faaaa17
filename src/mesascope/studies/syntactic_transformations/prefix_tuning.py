"""Few examples of a composition of rules: a soft prefix is tuned on them, or a model is trained from scratch."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.models.encoder_decoder.model import EncoderDecoder
from mesascope.models.load import make_untrained_factory
from mesascope.studies.syntactic_transformations.exact_match import Prefix
from mesascope.tasks.base import Batch, training_loss
from mesascope.tasks.syntax.transformations import SyntacticTransformations

PREFIX_RATE = 0.1  # of Adam, times the standard deviation of the embeddings of rules; ours
SCRATCH_RATE, SCRATCH_WARMUP = 1e-3, 20  # of AdamW; ours
RuleTable = Float[Tensor, "rule d_model"]


def list_rules(task: SyntacticTransformations) -> list[tuple[str, str]]:
    """Return all pairs of a label and a function.

    Args:
        task: the task.
    """
    return [(label, function) for label in task.labels.names for function in task.functions]


@torch.no_grad()
def embed_rules(model: EncoderDecoder, task: SyntacticTransformations) -> RuleTable:
    """Return the embeddings of all rules, in the order of `list_rules`.

    Args:
        model: the model.
        task: its task.
    """
    tokens = [task.texts.index(f"{label}:{function}") for label, function in list_rules(task)]
    return model.embed(torch.tensor([tokens], device=model.device))[0]


def tune_prefix(model: EncoderDecoder, task: SyntacticTransformations, examples: Batch, steps: int) -> Prefix:
    """Return a prefix that is tuned on examples; the weights of the model do not change.

    Every slot starts from the mean of the embeddings of all rules. Adam with a cosine schedule takes all examples at
    each step.

    Args:
        model: the model.
        task: its task.
        examples: sequences, whose rules are replaced.
        steps: updates.
    """
    table = embed_rules(model, task)
    prefix = table.mean(0).expand(task.max_rules, -1).clone().requires_grad_()
    optimizer = torch.optim.Adam([prefix], lr=1.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = PREFIX_RATE * float(table.std()) * _cosine(step, steps)
        loss = training_loss(task, model(examples.inputs, prefix=prefix).logits, examples)
        (prefix.grad,) = torch.autograd.grad(loss, prefix)
        optimizer.step()
    return prefix.detach()


def train_from_scratch(
    model: EncoderDecoder, task: SyntacticTransformations, examples: Batch, steps: int, seed: int
) -> EncoderDecoder:
    """Return a model of the same shape, all of whose weights are trained on the examples.

    AdamW with warm-up and a cosine schedule takes all examples at each step; gradients are clipped to a norm of 1.

    Args:
        model: gives the shape.
        task: its task.
        examples: sequences.
        steps: updates.
        seed: of the initial weights.
    """
    fresh = make_untrained_factory(model)(seed)
    assert isinstance(fresh, EncoderDecoder)
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=SCRATCH_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = SCRATCH_RATE * min(1.0, (step + 1) / SCRATCH_WARMUP) * _cosine(step, steps)
        loss = training_loss(task, fresh(examples.inputs).logits, examples)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(fresh.parameters(), 1.0)
        optimizer.step()
    return fresh.eval()


def draw_random_prefix(table: RuleTable, num_slots: int, generator: torch.Generator) -> Prefix:
    """Return normally distributed vectors with the mean and the standard deviation of rules in every coordinate.

    Args:
        table: embeddings of rules.
        num_slots: number of vectors.
        generator: source of randomness.
    """
    noise = torch.randn(num_slots, table.shape[1], generator=generator).to(table)
    return table.mean(0) + table.std(0) * noise


def score_readout(
    prefix: Prefix, table: RuleTable, pairs: list[tuple[str, str]], rules: Mapping[str, str]
) -> tuple[float, float, float]:
    """Return precision, recall and F of the rules that are read from a prefix.

    From every slot, the rule is read whose embedding has the largest cosine with it.

    Args:
        prefix: vectors.
        table: embeddings of all rules.
        pairs: label and function of each.
        rules: the true ones, function by label.
    """
    cosine = compute_cosines(prefix, table)
    found, true = {pairs[index] for index in cosine.argmax(1).tolist()}, set(rules.items())
    correct = len(found & true)
    precision, recall = correct / len(found), correct / len(true)
    return precision, recall, 2 * correct / (len(found) + len(true))


def compute_cosines(prefix: Prefix, table: RuleTable) -> Float[Tensor, "slot rule"]:
    """Return the cosine of every vector of a prefix and every rule.

    Args:
        prefix: vectors.
        table: embeddings of all rules.
    """
    return nn.functional.normalize(prefix, dim=-1) @ nn.functional.normalize(table, dim=-1).T


def _cosine(step: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / steps))
