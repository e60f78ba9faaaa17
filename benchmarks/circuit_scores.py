"""Scores of all edges of one model in one library; circuits.py runs each library in an environment of its own.

    python benchmarks/circuit_scores.py LIBRARY MODEL PAIRS THREADS

MODEL is a folder with a Llama, PAIRS a file with the tokens of prompt pairs. Reads a request from every line, `METHOD
FILE`: computes the scores of all edges, writes them to the file, and answers with the seconds that it took, the seconds
of processors, and the largest resident size of the process meanwhile, in bytes.

Scores are named as in mesascope: an array (sender, receiver), NaN where there is no edge, in which the keys and values
of heads that share them are one receiver; they estimate the change of the mean logit difference.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import forget_peak, peak
from torch import Tensor

BATCH = 2  # pairs at a time, in every library
STEPS = 5  # gradients that are averaged


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Tokens of prompt pairs.

    Attributes:
        clean: (batch, pos).
        counterfactual: (batch, pos).
        answer: the token that continues each clean prompt (batch).
        wrong_answer: the token with which it is compared (batch).
    """

    clean: Tensor
    counterfactual: Tensor
    answer: Tensor
    wrong_answer: Tensor

    def split(self) -> list["Pairs"]:
        """Return the pairs in batches."""
        parts = zip(*(each.split(BATCH) for each in vars(self).values()), strict=True)
        return [Pairs(**dict(zip(vars(self), part, strict=True))) for part in parts]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of edges.

    Attributes:
        senders: names.
        receivers: names.
        values: (sender, receiver).
        ends: the metric of each pair in the clean and the counterfactual run (2, batch); empty if not returned.
    """

    senders: list[str]
    receivers: list[str]
    values: np.ndarray
    ends: np.ndarray


Methods = dict[str, Callable[[], Scores]]


def prepare_mesascope(model: Path, pairs: Pairs) -> Methods:
    """Return the methods of mesascope."""
    from mesascope.circuits import attribute_edges
    from mesascope.interventions import logit_difference
    from mesascope.models.load import load_pretrained

    loaded, _ = load_pretrained(model, require_tokenizer=False)

    def attribute(steps: int) -> Scores:
        found = [
            attribute_edges(
                loaded, part.clean, part.counterfactual, logit_difference(part.answer, part.wrong_answer), steps=steps
            )
            for part in pairs.split()
        ]
        return Scores(
            senders=found[0]["sender"].values.tolist(),
            receivers=found[0]["receiver"].values.tolist(),
            values=np.mean([one["score"].values for one in found], 0),
            ends=np.concatenate([[one["clean"].values, one["ablated"].values] for one in found], 1),
        )

    return {"eap": lambda: attribute(0), "eap-ig": lambda: attribute(STEPS)}


def prepare_auto_circuit(model: Path, pairs: Pairs) -> Methods:
    """Return the methods of auto-circuit: edges into the query, key and value of each head, without folded norms."""
    from auto_circuit.data import (  # pyright: ignore[reportMissingImports]  in an environment of its own
        PromptDataLoader,
        PromptDataset,
    )
    from auto_circuit.prune_algos.mask_gradient import (  # pyright: ignore[reportMissingImports]
        mask_gradient_prune_scores,
    )
    from auto_circuit.utils.graph_utils import patchable_model  # pyright: ignore[reportMissingImports]

    hooked = load_hooked(model)
    patchable = patchable_model(hooked, factorized=True, slice_output="last_seq", separate_qkv=True)
    answers = [list(each[:, None]) for each in (pairs.answer, pairs.wrong_answer)]
    loader = PromptDataLoader(
        PromptDataset(pairs.clean, pairs.counterfactual, *answers), seq_len=None, diverge_idx=0, batch_size=BATCH
    )
    num_layers, heads, kv_heads = hooked.cfg.n_layers, hooked.cfg.n_heads, hooked.cfg.n_key_value_heads

    def attribute(points: int) -> Scores:
        found = mask_gradient_prune_scores(
            patchable,
            loader,
            official_edges=None,
            grad_function="logit",
            answer_function="avg_diff",
            mask_val=None if points else 0.0,
            integrated_grad_samples=points - 1 if points else None,  # both ends are counted too
        )
        # gradients of minus the difference, summed over batches and over points
        scale = -len(loader) * max(1, points)
        return name_scores({name: grad.numpy() / scale for name, grad in found.items()}, num_layers, heads, kv_heads)

    return {"eap": lambda: attribute(0), "eap-ig": lambda: attribute(STEPS)}


def load_hooked(model: Path) -> Any:
    """Return a Llama as a HookedTransformer, whose norms are not folded into weights."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig  # pyright: ignore[reportMissingImports]
    from transformer_lens.pretrained.weight_conversions import (  # pyright: ignore[reportMissingImports]
        convert_llama_weights,
    )
    from transformers import AutoModelForCausalLM

    facts = json.loads((model / "config.json").read_text(encoding="utf-8"))
    heads, width = facts["num_attention_heads"], facts["hidden_size"]
    config = HookedTransformerConfig(
        n_layers=facts["num_hidden_layers"],
        d_model=width,
        n_ctx=facts["max_position_embeddings"],
        d_head=width // heads,
        n_heads=heads,
        n_key_value_heads=facts["num_key_value_heads"],
        d_mlp=facts["intermediate_size"],
        d_vocab=facts["vocab_size"],
        act_fn=facts["hidden_act"],
        eps=facts["rms_norm_eps"],
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=width // heads,
        rotary_base=facts["rope_parameters"]["rope_theta"],
        rotary_adjacent_pairs=False,
        gated_mlp=True,
        final_rms=True,
        use_attn_result=True,
        use_split_qkv_input=True,
        use_hook_mlp_in=True,
        ungroup_grouped_query_attention=True,  # auto-circuit needs as many keys as queries
        device="cpu",
    )
    hooked = HookedTransformer(config)
    weights = convert_llama_weights(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
    hooked.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return hooked.eval().requires_grad_(False)


def name_scores(by_module: dict[str, np.ndarray], num_layers: int, heads: int, kv_heads: int) -> Scores:
    """Return scores of auto-circuit with the names of mesascope."""
    senders, receivers, columns = ["embedding"], list[str](), list[np.ndarray]()
    for layer in range(num_layers):
        for letter, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            rows = by_module[f"blocks.{layer}.hook_{letter}_input"]
            columns += list(rows.reshape(count, heads // count, -1).sum(1))
            receivers += [f"L{layer}.H{head}.{letter}" for head in range(count)]
        columns.append(by_module[f"blocks.{layer}.hook_mlp_in"])
        receivers.append(f"L{layer}.MLP")
        senders += [*(f"L{layer}.H{head}" for head in range(heads)), f"L{layer}.MLP"]
    columns.append(by_module[f"blocks.{num_layers - 1}.hook_resid_post"])
    receivers.append("output")
    values = np.full((len(senders), len(receivers)), np.nan)
    for number, column in enumerate(columns):
        values[: len(column), number] = column
    return Scores(senders=senders, receivers=receivers, values=values, ends=np.zeros((2, 0)))


def main(library: str, model: Path, pairs: Path, threads: int) -> None:
    """Load, then compute what is requested."""
    torch.set_num_threads(threads)
    tokens = {name: torch.tensor(values) for name, values in json.loads(pairs.read_text(encoding="utf-8")).items()}
    prepare = {"mesascope": prepare_mesascope, "auto-circuit": prepare_auto_circuit}[library]
    methods = prepare(model, Pairs(**tokens))
    print("ready", flush=True)
    for line in sys.stdin:
        method, file = line.split()
        forget_peak()  # that of loading the model
        began, used = time.perf_counter(), time.process_time()
        found = methods[method]()
        seconds, cpu_seconds, largest = time.perf_counter() - began, time.process_time() - used, peak()
        np.savez(file, **vars(found))
        print(seconds, cpu_seconds, largest, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
