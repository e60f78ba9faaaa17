"""One capture of one model in several libraries; capturing.py runs each in an environment of its own.

    python benchmarks/captures.py WHO MODEL THREADS

MODEL is a folder with a model and the tokens that it shall read. Reads a request from every line: `seconds WAY`, `first
WAY` or `values WAY FILE`. Captures once in this way, and answers with the seconds that it took, with these and the
largest resident size of the process meanwhile, in bytes, or with the file to which it wrote what it found.

Every capture, but for the floor, finds the same: the residual stream before every layer (batch, pos, d_model), the
attention pattern of every layer (batch, head, query, key), and what every head gives (batch, pos, head, d_head), as a
list of layers or a tensor whose first axis is the layer.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from measuring import forget_peak, peak
from torch import Tensor

SITES = ("resid_pre", "pattern", "z")

Found = Mapping[str, Iterable[Tensor]]
Ways = dict[str, Callable[[], Found]]


class Kept(dict):
    """What was asked for, and what holds it and everything else that was kept."""

    def __init__(self, found: Found, whole: object) -> None:
        super().__init__(found)
        self.whole = whole


def mesascope(model: Path, ids: Tensor) -> Ways:
    """Ours, with eager attention, as all others; predictions are made only where they are asked for.

    `separate` keeps the implementation that the model is loaded with, and computes patterns apart from it.
    """
    from mesascope import capture
    from mesascope.models.load import load_pretrained

    ours, _ = load_pretrained(model)

    def found(*more: str, kernel: Literal["eager"] | None = "eager") -> Found:
        recorded = capture(ours, ids, [*SITES, *more], attn_implementation=kernel)
        return Kept({site: recorded[site] for site in SITES}, recorded)

    return {"whole": lambda: found("output"), "inside": found, "separate": lambda: found("output", kernel=None)}


def lens(model: Path, ids: Tensor) -> Ways:
    """TransformerLens 4: its cache of everything, as it is by default, or of what is asked for."""
    from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore[reportMissingImports]  in an environment of its own
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    bridge = TransformerBridge.boot_transformers(str(model), hf_model=loaded, tokenizer=tokenizer, device="cpu")
    hooks = {"resid_pre": "hook_resid_pre", "pattern": "attn.hook_pattern", "z": "attn.hook_z"}
    wanted = tuple(hooks.values())

    def found(**options: object) -> Found:
        with torch.no_grad():
            _, cache = bridge.run_with_cache(ids, **options)
        layers = range(bridge.cfg.n_layers)
        return Kept({site: [cache[f"blocks.{n}.{hook}"] for n in layers] for site, hook in hooks.items()}, cache)

    return {"everything": found, "filtered": lambda: found(names_filter=lambda name: name.endswith(wanted))}


def nnsight(model: Path, ids: Tensor) -> Ways:
    """What nnsight saves inside one trace: what heads give is what their projection reads."""
    from nnsight import LanguageModel  # pyright: ignore[reportMissingImports]  in an environment of its own

    language = LanguageModel(str(model), attn_implementation="eager", dtype=torch.float32, dispatch=True)
    heads = language.config.num_attention_heads

    @torch.no_grad()
    def found() -> Found:
        resid, pattern, inputs = [], [], []
        with language.trace(ids):
            for layer in language.model.layers:
                resid.append(layer.input.save())
                inputs.append(layer.self_attn.o_proj.input.save())
                pattern.append(layer.self_attn.output[1].save())
            language.output.logits.save()
        return {"resid_pre": resid, "pattern": pattern, "z": [x.unflatten(-1, (heads, -1)) for x in inputs]}

    return {"trace": found}


def plain(model: Path, ids: Tensor) -> Ways:
    """Transformers alone, with what it gives of itself: no head's outputs."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")

    def found() -> Found:
        with torch.no_grad():
            given = loaded(input_ids=ids, use_cache=False, output_hidden_states=True, output_attentions=True)
        return {"resid_pre": given.hidden_states[:-1], "pattern": given.attentions}

    return {"outputs": found}


def answer(way: Callable[[], Found], request: str, file: str = "") -> str:
    """Capture once, and say what was asked for."""
    if request == "first":
        forget_peak()  # that of loading the model
    began = time.perf_counter()
    found = way()
    seconds = time.perf_counter() - began
    if request == "values":
        arrays: dict[str, Any] = {site: np.stack([x.numpy() for x in each]) for site, each in found.items()}
        np.savez(file, **arrays)
    return {"seconds": f"{seconds}", "first": f"{seconds} {peak()}", "values": file}[request]


def main(who: str, model: Path, threads: int) -> None:
    """Load, then do what is asked for."""
    torch.set_num_threads(threads)
    ids = torch.tensor(json.loads((model / "tokens.json").read_text()))
    ways = {"mesascope": mesascope, "lens": lens, "nnsight": nnsight, "plain": plain}[who](model, ids)
    print("ready", flush=True)
    for line in sys.stdin:
        request, way, *file = line.split()
        print(answer(ways[way], request, *file), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
