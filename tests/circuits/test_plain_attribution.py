"""Edge attribution compared with an implementation of its own: a Llama written out in plain PyTorch, without hooks.

Every receiver reads the sum of the terms before it plus a zero of its own; the gradient by this zero is the gradient
with respect to the stream that the receiver reads.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import LlamaForCausalLM

import small
from mesascope.circuits import attribute_edges
from mesascope.interventions import logit_difference

CORRECT, INCORRECT = 3, 4
TOLERANCE = 1e-5  # of the largest score


class PlainRun:
    """A forward pass in which every receiver reads a stream of its own.

    Attributes:
        terms: by sender, its term (batch, pos, d_model).
        zeros: by receiver, the zero that is added to its stream.
        metric: logit difference at the last position (batch).
    """

    def __init__(self, model: LlamaForCausalLM, embedding: Tensor) -> None:
        self.terms, self.zeros = {"embedding": embedding}, dict[str, Tensor]()
        for number, layer in enumerate(model.model.layers):
            attention = layer.self_attn
            groups = model.config.num_attention_heads // model.config.num_key_value_heads
            name, norm = f"L{number}.H", layer.input_layernorm
            keys, values = (
                [self.project(f"{name}{head}.{letter}", norm, weight) for head, weight in enumerate(split)]
                for letter, split in (("k", by_head(attention.k_proj, model)), ("v", by_head(attention.v_proj, model)))
            )
            added = {}
            for head, weight in enumerate(by_head(attention.q_proj, model)):
                query = rotate(self.project(f"{name}{head}.q", norm, weight), model)
                scores = query @ rotate(keys[head // groups], model).mT / query.shape[-1] ** 0.5
                later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
                mixed = scores.masked_fill(later, -torch.inf).softmax(-1) @ values[head // groups]
                width = mixed.shape[-1]
                added[f"{name}{head}"] = mixed @ attention.o_proj.weight[:, head * width : (head + 1) * width].T
            self.terms |= added
            read, mlp = rms_norm(self.read(f"L{number}.MLP"), layer.post_attention_layernorm), layer.mlp
            self.terms[f"L{number}.MLP"] = (
                silu(read @ mlp.gate_proj.weight.T) * (read @ mlp.up_proj.weight.T)
            ) @ mlp.down_proj.weight.T
        last = rms_norm(self.read("output"), model.model.norm)[:, -1] @ model.lm_head.weight.T
        self.metric = last[:, CORRECT] - last[:, INCORRECT]

    def read(self, receiver: str) -> Tensor:
        """Return the sum of all terms so far, plus the receiver's zero."""
        stream = torch.stack(list(self.terms.values())).sum(0)
        self.zeros[receiver] = torch.zeros_like(stream, requires_grad=True)
        return stream + self.zeros[receiver]

    def project(self, receiver: str, norm: nn.Module, weight: Tensor) -> Tensor:
        return rms_norm(self.read(receiver), norm) @ weight.T


def by_head(projection: nn.Linear, model: LlamaForCausalLM) -> tuple[Tensor, ...]:
    """Return the weight of each head of a projection."""
    return projection.weight.split(model.config.hidden_size // model.config.num_attention_heads)


def rms_norm(stream: Tensor, norm: nn.Module) -> Tensor:
    return stream * (stream.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt() * norm.weight


def rotate(vectors: Tensor, model: LlamaForCausalLM) -> Tensor:
    """Return queries or keys after rotary position embedding."""
    half = vectors.shape[-1] // 2
    theta = model.config.rope_parameters["rope_theta"]
    angles = torch.arange(vectors.shape[1])[:, None] * theta ** -(torch.arange(half).double() / half)
    first, second = vectors[..., :half], vectors[..., half:]
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1
    )


def attribute_plainly(
    model: LlamaForCausalLM, clean: Tensor, other: Tensor, steps: int
) -> dict[tuple[str, str], float]:
    """Return EAP (``steps=0``) or EAP-IG scores, edge by edge."""
    start, end = (model.model.embed_tokens(each).detach() for each in (clean, other))
    first, second = PlainRun(model, start), PlainRun(model, end)
    scores: dict[tuple[str, str], float] = {}
    points = [(step + 0.5) / steps for step in range(steps)] or [0.0]
    for point in points:
        run = PlainRun(model, start + point * (end - start))
        gradients = torch.autograd.grad(run.metric.sum(), list(run.zeros.values()))
        for receiver, gradient in zip(run.zeros, gradients, strict=True):
            for sender in list_senders(list(run.terms), receiver):
                product = (second.terms[sender] - first.terms[sender]) * gradient
                score = float(product.detach().sum((1, 2)).mean()) / len(points)
                scores[sender, receiver] = scores.get((sender, receiver), 0.0) + score
    return scores


def list_senders(terms: list[str], receiver: str) -> list[str]:
    """Return the senders before a receiver, by their names."""
    if receiver == "output":
        return terms
    layer = int(receiver[1 : receiver.index(".")])
    earlier = [name for name in terms if name == "embedding" or int(name[1 : name.index(".")]) < layer]
    heads = [name for name in terms if name.startswith(f"L{layer}.H")]
    return earlier + heads if receiver.endswith("MLP") else earlier


@pytest.mark.parametrize("steps", [0, 5])
def test_scores_are_those_of_a_plain_implementation(steps: int):
    model = small.llama(initializer_range=0.5).double()
    generator = torch.Generator().manual_seed(0)
    clean, other = torch.randint(0, 20, (2, 3, 6), generator=generator)
    with torch.no_grad():
        logits = model(clean).logits[:, -1]
        plain = PlainRun(model, model.model.embed_tokens(clean)).metric
        torch.testing.assert_close(plain, logits[:, CORRECT] - logits[:, INCORRECT], rtol=1e-5, atol=1e-6)
    found = attribute_edges(model, clean, other, logit_difference(CORRECT, INCORRECT), steps=steps)["score"]
    expected = attribute_plainly(model, clean, other, steps)
    assert len(expected) == int(found.notnull().sum())
    largest = max(map(abs, expected.values()))
    scores = [float(found.sel(sender=sender, receiver=receiver)) for sender, receiver in expected]
    np.testing.assert_allclose(scores, list(expected.values()), rtol=0, atol=TOLERANCE * largest)
    assert np.median(np.abs(scores)) > 100 * TOLERANCE * largest  # the scores are large enough to differ
