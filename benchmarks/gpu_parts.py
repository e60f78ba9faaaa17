"""The parts of benchmarks/gpu.py that measure; each runs in a process of its own.

    python benchmarks/gpu_parts.py facts|study|seeds|capture|lens|nnsight cuda|cpu SCRATCH

SCRATCH is a folder for files. A result is a line that begins with @, followed by JSON: a row of a table, bounds that
must hold, or why the part is left out. Times are medians of repeats after a warm-up; the device is synchronised before
and after each. Memory is the largest that torch has allocated on the card at a time, with the weights.

The models are randomly initialised GPT-2. Whatever records takes the residual stream before every layer, the attention
pattern of every layer, and the output of every head before the output projection, and returns the logits. Its values
are compared with those that transformers returns in its eager pass, relative to the largest entry of a layer.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_DISTANCE = {"float32": 1e-4, "bfloat16": 8 * 2**-7}  # of values from those of transformers
SITES = ("resid_pre", "pattern", "z")
LIBRARIES = {"lens": "TransformerLens", "nnsight": "nnsight"}

Sites = Mapping[str, Iterable[Tensor]]


@dataclass(frozen=True)
class ModelSize:
    """A model and its input.

    Attributes:
        name: Its name in the tables.
        width: Width of the residual stream.
        layers: Number of layers.
        heads: Number of heads.
        vocabulary: Number of tokens.
        batch: Sequences.
        length: Tokens of a sequence.
    """

    name: str
    width: int
    layers: int
    heads: int
    vocabulary: int
    batch: int
    length: int


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        models: The models that are captured.
        repeats: Number of times of which the median is taken.
        seeds: Seeds that are trained at once.
        solo_seeds: Seeds that are trained one by one; their time is extrapolated to all.
        steps: Steps of a repeat.
    """

    models: tuple[ModelSize, ...]
    repeats: int
    seeds: int
    solo_seeds: int
    steps: int


SIZES = {
    "cuda": Sizes(
        models=(
            ModelSize("small", 256, 4, 8, 1000, batch=16, length=128),
            ModelSize("GPT-2 size", 768, 12, 12, 50257, batch=8, length=512),
        ),
        repeats=7,
        seeds=64,
        solo_seeds=3,
        steps=40,
    ),
    "cpu": Sizes(
        models=(ModelSize("tiny", 32, 2, 4, 50, batch=2, length=16),), repeats=3, seeds=3, solo_seeds=2, steps=4
    ),
}


def emit(**result: object) -> None:
    """Print a result."""
    print(f"@{json.dumps(result)}", flush=True)


def settle(device: str) -> None:
    """Wait until the device has done all its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], object], device: str) -> float:
    """The time of one call."""
    settle(device)
    began = time.perf_counter()
    run()
    settle(device)
    return time.perf_counter() - began


def measure(run: Callable[[], object], device: str, repeats: int) -> tuple[list[float], float | None]:
    """The seconds of repeats after two calls that do not count, and the peak memory in GB on a card."""
    for _ in range(2):
        run()
    settle(device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = [seconds_of(run, device) for _ in range(repeats)]
    return seconds, torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None


def times_and_memory(seconds: list[float], peak: float | None) -> dict[str, object]:
    """The columns of a row."""
    median = statistics.median(seconds)
    return {
        "ms": 1e3 * median,
        "from-to ms": f"{1e3 * min(seconds):.3g}-{1e3 * max(seconds):.3g}",
        "peak GB": "not measured" if peak is None else peak,
    }


def facts(device: str, scratch: Path) -> None:
    """The date, the card, and versions; ends with code 2 if there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        print("a CUDA device must be on this machine, but torch finds none; give --device cpu", file=sys.stderr)
        sys.exit(2)
    from mesascope.store.provenance import collect_provenance

    known = collect_provenance()
    card = torch.cuda.get_device_name() if device == "cuda" else "none (processor)"
    emit(
        date=known["started"],
        card=card,
        driver=driver_version(device),
        CUDA=torch.version.cuda or "none",
        torch=torch.__version__,
        **{name: known[name] for name in ("transformers", "python")},
        **{
            "revision": known["revision"] or "not a git checkout",
            "products of float32": torch.get_float32_matmul_precision(),
        },
    )


def driver_version(device: str) -> str:
    """The version of the card's driver, as far as it can be read."""
    if device != "cuda":
        return "none"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def study(device: str, scratch: Path) -> None:
    """The affine study at smoke scale, from its command to its report."""
    from mesascope.store import Run

    path = scratch / f"affine-{device}"
    words = ["run", "affine", "--scale", "smoke", "--device", device, "--out", str(path)]
    began = time.perf_counter()
    ran = subprocess.run([sys.executable, "-m", "mesascope", *words])
    seconds = time.perf_counter() - began
    emit(row={"command": f"mesascope {' '.join(words[:-2])}", "seconds": seconds, "exit code": ran.returncode})
    if ran.returncode != 0:
        emit(bounds={"the command ends with code 0": False})
        return
    run = Run.open(path)
    emit(
        bounds={
            "the command ends with code 0": True,
            "it leaves results and a report": bool(run.result_names()) and (path / "report.html").exists(),
        }
    )


def seeds(device: str, scratch: Path) -> None:
    """Training steps of many seeds as one program, and of one seed.

    With data as in training: every step has new sequences, which a thread samples meanwhile on a GPU; and with the same
    sequences at every step, which is the work of the device alone.
    """
    from mesascope.models.config import DecoderConfig
    from mesascope.tasks.affine import Affine
    from mesascope.tasks.base import Batch
    from mesascope.train import AdamW, TrainingConfig, limit_threads, sample_batches
    from mesascope.train._batches import prefetch_batches
    from mesascope.train._checkpoints import initialise_training
    from mesascope.train._step import run_training_step
    from mesascope.train.population import DecoderPopulation, concatenate_batches, update_population

    sizes, task = SIZES[device], Affine(length=20)
    config = DecoderConfig(d_in=1, d_out=1, num_hidden_layers=3, num_attention_heads=4, hidden_size=64, norm="layer")
    total = sizes.steps * (sizes.repeats + 2)
    training = TrainingConfig(steps=total, batch_size=64, optimizer=AdamW(lr=1e-3))

    def batches(chosen: range, fresh: bool) -> Iterator[Batch]:
        streams = zip(*(sample_batches(task, training, seed) for seed in chosen), strict=True)
        stream = map(concatenate_batches, streams)
        if fresh:
            stream = stream if device == "cpu" else prefetch_batches(stream)
            return (batch.to(device, torch.float32) for batch in stream)
        return repeat(next(stream).to(device, torch.float32), total)

    def together(fresh: bool) -> Callable[[], None]:
        chosen = range(sizes.seeds)
        begun = [initialise_training(config, training, seed, None, "cpu")[:2] for seed in chosen]
        members = DecoderPopulation.stack_decoders(training, chosen, begun, device)
        stream = enumerate(batches(chosen, fresh))

        def steps() -> None:
            for _ in range(sizes.steps):
                number, batch = next(stream)
                update_population(members, task, batch, training, number, 0)

        return steps

    def solo(seed: int, fresh: bool) -> Callable[[], None]:
        model, optimizer, _ = initialise_training(config, training, seed, None, device)
        stream = enumerate(batches(range(seed, seed + 1), fresh))

        def steps() -> None:
            for _ in range(sizes.steps):
                number, batch = next(stream)
                run_training_step(model, optimizer, task, batch, training, number, f"seed {seed}")

        return steps

    with limit_threads(training.threads):
        for fresh in (True, False):
            data = "new data at every step" if fresh else "the same data at every step"
            timed = {}
            for what, runs in (
                (f"{sizes.seeds} seeds at once", [together(fresh)]),
                ("one seed", [solo(seed, fresh) for seed in range(sizes.solo_seeds)]),
            ):
                measured = [measure(run, device, sizes.repeats) for run in runs]
                every = [one / sizes.steps for taken, _ in measured for one in taken]
                peaks = [peak for _, peak in measured if peak is not None]
                timed[what] = statistics.median(every)
                count = sizes.seeds if "at once" in what else 1
                emit(
                    row={
                        "what": f"a step of {what}",
                        "data": data,
                        **times_and_memory(every, max(peaks) if peaks else None),
                        "steps of one seed a second": count / timed[what],
                    }
                )
            at_once, one = timed.values()
            ratio = sizes.seeds * one / at_once
            emit(
                row={
                    "comparison": f"{sizes.seeds} seeds one after another, relative to all at once",
                    "data": data,
                    "ratio": ratio,
                    "note": f"extrapolated from {sizes.repeats * sizes.steps} steps of {sizes.solo_seeds} seeds each",
                }
            )
            if device == "cuda" and fresh:
                emit(bounds={f"all at once is {ratio:.2f} times as fast (at least 1)": ratio >= 1})


@dataclass(frozen=True)
class Setting:
    """What a candidate captures.

    Attributes:
        size: The model's size.
        dtype: The precision of its weights.
        ids: The tokens (batch, pos).
        device: cuda or cpu.
    """

    size: ModelSize
    dtype: str
    ids: Tensor
    device: str

    @property
    def name(self) -> str:
        """A name of model and precision."""
        return f"{self.size.name}, {self.dtype}"

    def model(self, kernel: str = "eager") -> Any:
        """A GPT-2 with the same random weights in every process."""
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=self.size.vocabulary,
            n_embd=self.size.width,
            n_layer=self.size.layers,
            n_head=self.size.heads,
            n_positions=self.size.length,
            bos_token_id=0,
            eos_token_id=0,
        )
        config._attn_implementation = kernel
        model: Any = GPT2LMHeadModel(config).eval()
        return model.to(self.device, getattr(torch, self.dtype))

    def emit_row(self, what: str, run: Callable[[], object]) -> None:
        """Measure a candidate and print its row; one that does not fit into the memory of the card says so."""
        try:
            first = seconds_of(run, self.device)
            seconds, peak = measure(run, self.device, SIZES[self.device].repeats)
        except torch.OutOfMemoryError:
            emit(bounds={f"{self.name}, {what}: fits into the memory of the card": False})
            return
        speed = self.ids.numel() / statistics.median(seconds)
        measured = {**times_and_memory(seconds, peak), "tokens a second": speed, "first ms": 1e3 * first}
        emit(row={"model": self.size.name, "dtype": self.dtype, "what": what, **measured})

    def judge_distance(self, found: Sites, model: Any) -> None:
        """Compare values with those that transformers returns."""
        gap, bound = farthest(found, returned_sites(model, self.ids)), MAX_DISTANCE[self.dtype]
        line = f"{self.name}: values differ by {gap:.1e} from those of transformers (at most {bound:.1e})"
        emit(bounds={line: gap <= bound})


def every_setting(device: str) -> Iterator[Setting]:
    """All sizes and precisions; memory that torch holds is given back to the card in between."""
    for size in SIZES[device].models:
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(0, size.vocabulary, (size.batch, size.length), generator=generator).to(device)
        for dtype in MAX_DISTANCE:
            yield Setting(size, dtype, ids, device)
            if device == "cuda":
                torch.cuda.empty_cache()


@torch.no_grad()
def forward(model: Any, ids: Tensor, **options: bool) -> Any:
    """The model's own pass, without a cache of keys and values."""
    return model(input_ids=ids, use_cache=False, **options)


def returned_sites(model: Any, ids: Tensor) -> Sites:
    """What transformers returns of itself: no output of heads."""
    returned = forward(model, ids, output_hidden_states=True, output_attentions=True)
    return {"resid_pre": returned.hidden_states[:-1], "pattern": returned.attentions}


def farthest(found: Sites, expected: Sites) -> float:
    """The largest difference of any layer at the expected sites, relative to the largest entry of the layer."""
    gaps = [
        ((x.double() - y.double()).abs().max() / y.double().abs().max()).item()
        for site in expected
        for x, y in zip(found[site], expected[site], strict=True)
    ]
    return max(gaps)


def capture(device: str, scratch: Path) -> None:
    """Ours, and the plain passes of the model."""
    for setting in every_setting(device):
        for kernel in ("sdpa", "eager"):
            measure_ours(setting, kernel)


def measure_ours(setting: Setting, kernel: str) -> None:
    """Captures of one model with one attention implementation, and its plain passes."""
    import mesascope

    model, ids, every = setting.model(kernel), setting.ids, [*SITES, "output"]
    setting.emit_row(f"forward pass, {kernel}", lambda: forward(model, ids))
    setting.emit_row(f"capture, {kernel}", lambda: mesascope.capture(model, ids, every))
    setting.emit_row(f"capture, {kernel}, without logits", lambda: mesascope.capture(model, ids, SITES))
    setting.emit_row(f"capture, {kernel}, only the residual stream", lambda: mesascope.capture(model, ids, SITES[:1]))
    acts = mesascope.capture(model, ids, every)
    same = torch.equal(acts["output"], forward(model, ids).logits)
    emit(bounds={f"{setting.name}, {kernel}: logits are those of the plain pass, bitwise": same})
    if kernel == "eager":
        setting.emit_row("transformers, eager, without head outputs", lambda: returned_sites(model, ids))
        setting.judge_distance(acts, model)


def lens(device: str, scratch: Path) -> None:
    """TransformerLens: a cache of everything, or of what is asked for."""
    from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore[reportMissingImports]  may be elsewhere

    for setting in every_setting(device):
        measure_lens(setting, TransformerBridge, scratch / setting.name.replace(" ", ""))


def measure_lens(setting: Setting, bridge_class: Any, folder: Path) -> None:
    """The caches of one model, which is opened from a folder with its configuration."""
    hooks = {"resid_pre": "hook_resid_pre", "pattern": "attn.hook_pattern", "z": "attn.hook_z"}
    wanted, layers = tuple(hooks.values()), range(setting.size.layers)
    model = setting.model()
    model.config.architectures = ["GPT2LMHeadModel"]
    model.config.save_pretrained(folder)
    bridge = bridge_class.boot_transformers(
        str(folder), hf_model=model, device=setting.device, dtype=getattr(torch, setting.dtype)
    )

    @torch.no_grad()
    def run(**options: Any) -> Sites:
        _, cache = bridge.run_with_cache(setting.ids, **options)
        return {site: [cache[f"blocks.{layer}.{hook}"] for layer in layers] for site, hook in hooks.items()}

    setting.emit_row("cache of everything", run)
    setting.emit_row("cache with names_filter", lambda: run(names_filter=lambda name: name.endswith(wanted)))
    setting.judge_distance(run(), setting.model())


def nnsight(device: str, scratch: Path) -> None:
    """What nnsight saves inside one trace."""
    from nnsight import NNsight  # pyright: ignore[reportMissingImports]  may be elsewhere

    for setting in every_setting(device):
        measure_nnsight(setting, NNsight)


def measure_nnsight(setting: Setting, wrapper: Any) -> None:
    """The trace of one model; what heads give is what their projection reads."""
    model = setting.model()
    traced = wrapper(model)

    @torch.no_grad()
    def run() -> Sites:
        resid, pattern, inputs = [], [], []
        with traced.trace(input_ids=setting.ids, use_cache=False):
            for layer in traced.transformer.h:
                resid.append(layer.input.save())
                inputs.append(layer.attn.c_proj.input.save())
                pattern.append(layer.attn.output[1].save())
            traced.output.logits.save()
        return {"resid_pre": resid, "pattern": pattern, "z": inputs}

    setting.emit_row("trace", run)
    setting.judge_distance(run(), setting.model())


def main(name: str, device: str, scratch: Path) -> None:
    """Run a part; a library that is not installed is left out."""
    parts = {"facts": facts, "study": study, "seeds": seeds, "capture": capture, "lens": lens, "nnsight": nnsight}
    try:
        parts[name](device, scratch)
    except ModuleNotFoundError as error:
        if name in LIBRARIES and error.name in ("transformer_lens", "nnsight"):
            emit(left_out=f"{LIBRARIES[name]}: not installed")
            return
        raise


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
