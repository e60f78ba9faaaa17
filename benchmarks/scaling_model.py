"""A cost model of large grids, models and training histories, checked against small measurements.

    python benchmarks/scaling_model.py [grid] [inspection] [history]

Counts, bytes and operations are predicted by the functions below and measured at three sizes; `docs/scaling.md` shows
the table. Exits with 1 if a ratio of measurement and prediction leaves its bounds. Counts must agree exactly; processor
times are predicted from the smallest size and may differ by a factor of 4, because other processes share the caches.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

EXACT, NEARLY, TIMED = (1.0, 1.0), (0.8, 1.25), (0.25, 4.0)
CHECKPOINT_FILES = 5  # config.json, model.safetensors, state.safetensors, README.md, checkpoint.json
SEED_FILES = 5  # training.json, log.csv, log.json, .lock, .lock-holder
CELL_FILES = 7  # run.json, verdicts.json, seconds.json, two manifests, .lock, .lock-holder; the report is one more
TOKENS_PER_PASS = 2048  # of an inspection
LENS_TOKENS = 512  # of an inspection, but at least two per sequence
SEARCH_ROWS = 16_384  # of a history in memory at once


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid of runs, of a study with one condition and no toy model."""

    cells: int
    seeds: int
    checkpoints: int
    analyses: int

    @property
    def jobs(self) -> int:
        """One per cell and seed."""
        return self.cells * self.seeds

    @property
    def files(self) -> int:
        """Files without reports."""
        per_job = SEED_FILES + CHECKPOINT_FILES * self.checkpoints + self.analyses
        return self.jobs * per_job + self.cells * (CELL_FILES + self.analyses)

    @property
    def open_files(self) -> int:
        """Files that the driver holds open: the lock of every cell."""
        return self.cells

    def messages(self, progress: int, workers: int) -> int:
        """Messages from workers to the driver: one when a process starts, progress, and one with the results."""
        return workers + self.jobs * (progress + 1)


def checkpoint_bytes(parameters: int, checkpoints: int) -> int:
    """Bytes of the weights and of Adam's two moments in float32; the first checkpoint has no moments."""
    return 4 * parameters * (3 * checkpoints - 2)


def wall_seconds(jobs: int, workers: int, job_seconds: float, cells: int, cell_seconds: float) -> float:
    """Wall time: jobs in rounds of workers, cells one after another in the driver."""
    return -(-jobs // workers) * job_seconds + cells * cell_seconds


@dataclass(frozen=True, kw_only=True)
class Llama:
    """The sizes of a decoder with grouped queries and a gated MLP."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int

    @property
    def layer_weights(self) -> int:
        """Weights of all layers that are multiplied with activations."""
        attention = self.width * self.width * 2 * (self.heads + self.kv_heads) // self.heads
        return self.layers * (attention + 3 * self.width * self.mlp)

    @property
    def weights(self) -> int:
        """All weights, with embeddings and output head, without norms."""
        return self.layer_weights + 2 * self.vocab * self.width

    def operations_per_token(self, length: int) -> int:
        """Floating-point operations of a forward pass per token: two per weight, and every query with every key."""
        return 2 * (self.layer_weights + self.vocab * self.width) + 4 * self.layers * self.width * length

    def norm_bytes(self, tokens: int) -> int:
        """Bytes of the result `norms` that grow with the tokens: two float32 numbers per depth and token."""
        return 8 * (self.layers + 1) * tokens

    def lens_bytes(self, sequences: int) -> int:
        """Bytes of the residual streams that both lenses hold, in float32: before and after every layer."""
        return 4 * 2 * self.layers * self.width * sequences * lens_positions(sequences)


LLAMA_70B = Llama(layers=80, width=8192, heads=64, kv_heads=8, mlp=28_672, vocab=128_256)


def lens_positions(sequences: int) -> int:
    """Positions per sequence that the lenses read, in sequences that are long enough."""
    return max(2, LENS_TOKENS // sequences)


def forward_passes(sequences: int, length: int) -> int:
    """Forward passes of one capture over a text."""
    return -(-sequences // max(1, TOKENS_PER_PASS // length))


@dataclass(frozen=True, kw_only=True)
class History:
    """The history of a decoder of attention only, without separate inputs and outputs: tokens in, tokens out."""

    layers: int
    width: int
    vocab: int
    labels: int
    rows: int  # positions of all sequences of a batch

    @property
    def columns(self) -> int:
        """Two per layer for inputs (q, k and v share one) and four for errors; two of the readout; labels and steps."""
        return 6 * self.layers + 2 + (self.labels > 0) + 1

    @property
    def bytes_per_instance(self) -> int:
        """Bytes of float32 inputs and errors and int32 labels of one position."""
        return 4 * (6 * self.layers * self.width + self.width + self.vocab + self.labels)

    @property
    def bytes_per_step(self) -> int:
        """Bytes of a step on disk: its instances, learning rate and clipping in float64, a checksum per column."""
        return self.rows * self.bytes_per_instance + 16 + 16 * self.columns


def search_operations(instances: int, queries: int, width: int) -> int:
    """Floating-point operations of the products of queries and instances, for one input column."""
    return 2 * instances * queries * width


def dual_form_operations(instances: int, queries: int, d_in: int, d_out: int) -> int:
    """Operations of the outputs of one module from its history, apart from those of the initial weights."""
    return 2 * instances * queries * (d_in + d_out)


def search_bytes(queries: int, width: int) -> int:
    """Bytes of the products and of the rows of one block of a search: not a function of the number of instances."""
    return 4 * SEARCH_ROWS * (queries + width)


def predict_grid() -> str:
    """The table of 10,000 jobs with 10 checkpoints and 12 analyses each, by the number of cells."""
    grids = [Grid(cells=cells, seeds=10_000 // cells, checkpoints=10, analyses=12) for cells in (10, 100, 2000)]
    rows = [
        ("files", [grid.files for grid in grids]),
        (
            "bytes of weights and moments, 10⁵ parameters",
            [grid.jobs * checkpoint_bytes(10**5, grid.checkpoints) for grid in grids],
        ),
        ("open files in the driver", [grid.open_files for grid in grids]),
        ("messages, with 100 of progress per job and 64 workers", [grid.messages(100, 64) for grid in grids]),
    ]
    return _format_table(["10,000 jobs", *(f"{grid.cells:,} cells" for grid in grids)], rows)


def predict_inspection() -> str:
    """The table of a model of 70 billion parameters on sequences of 512 tokens, by the number of tokens."""
    length, counts = 512, (2048, 10**6, 10**9)
    sequences = [-(-tokens // length) for tokens in counts]
    passes, model = [forward_passes(one, length) for one in sequences], LLAMA_70B
    rows = [
        ("forward passes of the text", passes),
        ("operations of these passes", [model.operations_per_token(length) * tokens for tokens in counts]),
        ("bytes read with `--stream-layers`, bfloat16", [2 * model.layer_weights * one for one in passes]),
        ("bytes of `norms`", [model.norm_bytes(tokens) for tokens in counts]),
        ("bytes that the lenses hold", [model.lens_bytes(one) for one in sequences]),
    ]
    return _format_table(["70 billion parameters", *(f"{tokens:,} tokens" for tokens in counts)], rows)


def predict_history() -> str:
    """The table of a decoder of 2 layers of width 256 and 50 tokens, by the number of instances."""
    model, counts = History(layers=2, width=256, vocab=50, labels=1, rows=8192), (10**5, 10**7, 10**9)
    searches = 2 * model.layers + 1
    rows = [
        ("bytes on disk", [n * model.bytes_per_instance for n in counts]),
        (
            "operations to search all columns, 256 queries",
            [searches * search_operations(n, 256, model.width) for n in counts],
        ),
        ("operations of one dual form, 32 queries", [dual_form_operations(n, 32, 256, 256) for n in counts]),
        ("bytes of memory of a search", [search_bytes(256, model.width) for _ in counts]),
    ]
    return _format_table(["2 layers of width 256", *(f"{n:,} instances" for n in counts)], rows)


def _format_table(header: list[str], rows: list[tuple[str, list[int]]]) -> str:
    lines = [[name, *(f"{n:,}" if n < 10**7 else f"{n:.2e}" for n in numbers)] for name, numbers in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement beside its prediction."""

    quantity: str
    size: str
    predicted: float
    measured: float
    bounds: tuple[float, float]

    @property
    def ratio(self) -> float:
        """Measured by predicted."""
        return self.measured / self.predicted

    @property
    def holds(self) -> bool:
        """Whether the ratio is within its bounds."""
        return self.bounds[0] <= self.ratio <= self.bounds[1]

    def __str__(self) -> str:
        """A line of a Markdown table."""
        numbers = " | ".join(f"{one:,.4g}" if one < 1e4 else f"{one:,.0f}" for one in (self.predicted, self.measured))
        low, high = self.bounds
        return f"| {self.quantity} | {self.size} | {numbers} | {self.ratio:.2f} | {low:g} to {high:g} |"


STUDY = """
from dataclasses import replace
from mesascope import analyses
from mesascope.models.config import DecoderConfig
from mesascope.studies.affine.study import STUDY as AFFINE, make_affine_training
from mesascope.studies.base import Condition, Factor, Level, SCALES, ScaleConfig
from mesascope.tasks.affine import Affine

SHAPE = {"d_in": 1, "d_out": 1, "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
SCALE = ScaleConfig(training=make_affine_training(2, checkpoints=2), sequences=16)
STUDY = replace(
    AFFINE, name="small", claims=(), seeds=dict.fromkeys(SCALES, 1), grid={},
    conditions=(Condition(task=Affine(length=5), model=DecoderConfig(**SHAPE), scales=dict.fromkeys(SCALES, SCALE),
                          analyses=(analyses.loss_vs_baselines,)),),
    factors=(Factor(name="heads", description="heads per layer", levels=(
        Level(name="2", description="2 heads"),
        Level(name="1", description="1 head", model={"num_attention_heads": 1}))),),
)
"""


def run_grid(folder: Path, cells: int, seeds: int) -> tuple[Grid, Path, list[int]]:
    """Run a grid of a small study serially; return it, its directory and the bytes of the results of each job."""
    from mesascope.executors import SerialExecutor
    from mesascope.runner import run_study

    file, path, sizes = folder / "small.py", folder / f"{cells}-{seeds}", list[int]()
    file.write_text(STUDY, encoding="utf-8")

    class Executor(SerialExecutor):
        """Notes the bytes of what it returns, all of which the driver holds."""

        def map_jobs(self, *args, **options):
            """Run the jobs."""
            results = super().map_jobs(*args, **options)
            sizes.extend(sum(one.nbytes for one in each.values()) for each in results)
            return results

    levels = {"heads": ["2", "1"][:cells]}
    run = run_study(
        str(file),
        scale="smoke",
        seeds=seeds,
        path=path,
        device="cpu",
        executor=Executor(),
        progress=_Silent(),
        varied=levels,
    )
    steps = len(run.list_checkpoints(0))
    return Grid(cells=cells, seeds=seeds, checkpoints=steps, analyses=1), path, sizes


class _Silent:
    """A progress callback that shows nothing."""

    def start_stage(self, name: str, parts: Sequence[str]) -> None:
        """Ignore."""

    def update_part(self, index: int, done: int, total: int, loss: float) -> None:
        """Ignore."""

    def log_message(self, line: str) -> None:
        """Ignore."""


def count_files(path: Path) -> int:
    """Files below a folder."""
    return sum(file.is_file() for file in path.rglob("*"))


def count_bytes(path: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def measure_grid() -> Iterator[Row]:
    """Files, results in the driver, open files, messages, and time of the driver per message and of the status."""
    with tempfile.TemporaryDirectory() as place:
        pages = list[tuple[int, float]]()
        first: tuple[int, int] | None = None  # bytes of a job on disk, and of its results
        for cells, seeds in ((1, 1), (1, 2), (2, 2)):
            grid, path, results = run_grid(Path(place), cells, seeds)
            size = f"{cells} x {seeds} jobs"
            yield Row(quantity="files", size=size, predicted=grid.files, measured=count_files(path), bounds=EXACT)
            stored = sum(count_bytes(one) for kind in ("models", "parts") for one in path.rglob(kind))
            first = first or (stored, sum(results))
            yield Row(
                quantity="bytes of models and parts",
                size=size,
                predicted=grid.jobs * first[0],
                measured=stored,
                bounds=NEARLY,
            )
            yield Row(
                quantity="bytes of results in the driver",
                size=size,
                predicted=grid.jobs * first[1],
                measured=sum(results),
                bounds=EXACT,
            )
            yield from _measure_reports(path, grid, size, pages)
    yield from _measure_checkpoints()
    yield from _measure_open_files()
    yield from _measure_messages()
    yield from _measure_lines()
    yield from _measure_status()


def _measure_reports(path: Path, grid: Grid, size: str, pages: list[tuple[int, float]]) -> Iterator[Row]:
    """Write the report of every cell; the first measurement, of a run of one cell, is added to ``pages``."""
    from mesascope.report import write_report
    from mesascope.studies.cells import load_cells

    if not pages:
        write_report(path)  # imports libraries and reads templates
    start = time.process_time()
    num_bytes = sum(write_report(cell.path).stat().st_size for cell in load_cells(path))
    seconds = time.process_time() - start
    pages.append((num_bytes, seconds))
    (first_bytes, first_seconds), cells = pages[0], grid.cells
    for quantity, predicted, measured, bounds in (
        ("bytes of reports", cells * first_bytes, num_bytes, NEARLY),
        ("seconds of reports", cells * first_seconds, seconds, TIMED),
    ):
        yield Row(quantity=quantity, size=size, predicted=predicted, measured=measured, bounds=bounds)


def _measure_checkpoints() -> Iterator[Row]:
    from mesascope.models.config import DecoderConfig
    from mesascope.models.load import load_checkpoint
    from mesascope.store import Run
    from mesascope.studies.affine.study import make_affine_training
    from mesascope.tasks.affine import Affine
    from mesascope.train import train_model

    for width in (32, 64, 128):
        with tempfile.TemporaryDirectory() as place:
            run = Run.create(Path(place) / "run", {"study": "s", "scale": "smoke", "seeds": [0], "parameters": {}})
            model = DecoderConfig(d_in=1, d_out=1, num_hidden_layers=1, hidden_size=width, num_attention_heads=2)
            last = train_model(Affine(length=5), model, make_affine_training(2, checkpoints=2), 0, run)
            parameters = sum(one.numel() for one in load_checkpoint(last).parameters())
            checkpoints = len(run.list_checkpoints(0))
            stored = sum(file.stat().st_size for file in last.parent.rglob("*.safetensors"))
        yield Row(
            quantity="bytes of weights and moments",
            size=f"{parameters:,} parameters",
            predicted=checkpoint_bytes(parameters, checkpoints),
            measured=stored,
            bounds=NEARLY,
        )


def _measure_open_files() -> Iterator[Row]:
    from mesascope.store import Run

    for cells in (10, 20, 40):
        with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
            before = len(list(Path("/proc/self/fd").iterdir()))
            for cell in range(cells):
                run = Run.create(Path(place) / str(cell), {"study": "s", "seeds": [0], "parameters": {}})
                stack.enter_context(run.exclusive_lock())
            opened = len(list(Path("/proc/self/fd").iterdir())) - before
        predicted = Grid(cells=cells, seeds=1, checkpoints=1, analyses=1).open_files
        yield Row(quantity="open files", size=f"{cells} cells", predicted=predicted, measured=opened, bounds=EXACT)


def send_progress(count: int, progress: Callable[..., None], log: Callable[..., None]) -> int:
    """A job that reports its progress so often."""
    for done in range(count):
        progress(done, count, 0.0)
    return count


def _measure_messages() -> Iterator[Row]:
    from mesascope.executors import ProcessExecutor
    from mesascope.executors._processes import _Worker

    for jobs in (4, 8, 16):
        received, receive = list[str](), _Worker.receive_message

        def count_message(
            worker: _Worker, heard: list[str] = received, read: Callable[[_Worker], tuple] = receive
        ) -> tuple:
            message = read(worker)
            heard.append(message[0])
            return message

        with patch.object(_Worker, "receive_message", count_message):
            ProcessExecutor(max_workers=2).map_jobs(send_progress, [5] * jobs)
        predicted = Grid(cells=1, seeds=jobs, checkpoints=1, analyses=1).messages(progress=5, workers=2)
        yield Row(
            quantity="messages to the driver",
            size=f"{jobs} jobs, 2 workers",
            predicted=predicted,
            measured=len(received),
            bounds=EXACT,
        )


def _measure_lines() -> Iterator[Row]:
    from mesascope.progress import PartCounts

    def measure(jobs: int) -> float:
        counts, start = PartCounts(jobs), time.process_time()
        for index in range(jobs):
            for state in ("running", "done"):
                counts.change_state(index, state)
                str(counts)
        return time.process_time() - start

    yield from _compare_times("seconds of the line of progress", "jobs", (2500, 5000, 10_000), measure)


def _measure_status() -> Iterator[Row]:
    from mesascope.store import Run
    from mesascope.studies.run_status import read_run_status

    def measure(seeds: int) -> float:
        with tempfile.TemporaryDirectory() as place:
            parameters = {"training": {"steps": 0}}
            description = {"study": "s", "scale": "smoke", "seeds": list(range(seeds)), "parameters": parameters}
            run = Run.create(Path(place) / "run", description)
            (run.path / "parts").mkdir()
            for seed in range(seeds):
                (run.path / "parts" / f"loss-seed={seed}.part").touch()
            start = time.process_time()
            assert read_run_status(run.path).counts == {"analysed": seeds}
            return time.process_time() - start

    yield from _compare_times("seconds of `mesascope status`", "seeds in a cell", (500, 1000, 2000), measure)


def _compare_times(quantity: str, unit: str, sizes: tuple[int, ...], measure: Callable[[int], float]) -> Iterator[Row]:
    """Compare processor times, the least of three, with multiples of that of the smallest size."""
    times = [min(measure(size) for _ in range(3)) for size in sizes]
    for size, seconds in zip(sizes, times, strict=True):
        predicted = times[0] * size / sizes[0]
        yield Row(quantity=quantity, size=f"{size:,} {unit}", predicted=predicted, measured=seconds, bounds=TIMED)


SMALL_LLAMA = Llama(layers=2, width=16, heads=4, kv_heads=2, mlp=24, vocab=50)


def save_llama(folder: Path) -> Path:
    """Save a random model of the sizes of `SMALL_LLAMA`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=SMALL_LLAMA.vocab,
        hidden_size=SMALL_LLAMA.width,
        intermediate_size=SMALL_LLAMA.mlp,
        num_hidden_layers=SMALL_LLAMA.layers,
        num_attention_heads=SMALL_LLAMA.heads,
        num_key_value_heads=SMALL_LLAMA.kv_heads,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def measure_inspection() -> Iterator[Row]:
    """Operations of a forward pass, reads of weights, bytes of results and of the streams that the lenses hold."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from mesascope import analyses, capture
    from mesascope.analyses import norms
    from mesascope.inspection._passes import InspectionInputs, select_passes
    from mesascope.models.load import load_pretrained
    from mesascope.models.streaming.stream_layers import find_streamed_weights

    random = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        folder = save_llama(Path(place))
        plain, _ = load_pretrained(folder, require_tokenizer=False)
        plain.set_attn_implementation("eager")  # the operations of other attention functions are not counted on a CPU
        for length in (32, 64, 128):
            ids = torch.randint(SMALL_LLAMA.vocab, (1, length), generator=random)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                plain(ids)
            yield Row(
                quantity="operations of a forward pass",
                size=f"{length} tokens",
                predicted=length * SMALL_LLAMA.operations_per_token(length),
                measured=counter.get_total_flops(),
                bounds=EXACT,
            )
        streamed, _ = load_pretrained(folder, require_tokenizer=False, stream_layers=True)
        weights = find_streamed_weights(streamed)
        assert weights is not None
        (text_pass,) = select_passes(["norms"])
        length = 256
        for sequences in (8, 16, 32):
            ids = torch.randint(SMALL_LLAMA.vocab, (sequences, length), generator=random)
            inputs = InspectionInputs(token_ids=ids, allowed_tokens=torch.arange(SMALL_LLAMA.vocab))
            text_pass.run(streamed, inputs, [norms])  # with the checks of this length
            before = sum(weights.num_reads.values())
            result = text_pass.run(streamed, inputs, [norms])["norms"]
            reads = (sum(weights.num_reads.values()) - before) / len(weights)
            size = f"{sequences} x {length} tokens"
            yield Row(
                quantity="reads of each weight",
                size=size,
                predicted=forward_passes(sequences, length),
                measured=reads,
                bounds=EXACT,
            )
            yield Row(
                quantity="bytes of `norms`",
                size=size,
                predicted=SMALL_LLAMA.norm_bytes(ids.numel()),
                measured=sum(result[name].nbytes for name in ("norm", "robust_z_score")),
                bounds=EXACT,
            )
        lens = analyses.logit_lens
        for sequences in (128, 256, 512):
            ids = torch.randint(SMALL_LLAMA.vocab, (sequences, 8), generator=random)
            positions = list(range(lens_positions(sequences)))
            acts = capture(plain, ids, [], reduce=lens.reductions, queries=positions, batch_size=128)
            yield Row(
                quantity="bytes that the lenses hold",
                size=f"{sequences} sequences",
                predicted=SMALL_LLAMA.lens_bytes(sequences),
                measured=sum(acts[name].nbytes for name in ("lens_before", "lens_after")),
                bounds=EXACT,
            )


def measure_history() -> Iterator[Row]:
    """Bytes on disk, bytes read, operations of a search and of a dual form, and time per instance."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from mesascope.analyses.training.attended_instances import find_attended_instances
    from mesascope.analyses.training.dual_form import compute_dual_form
    from mesascope.store import HistoryColumn, HistoryReader, HistoryWriter

    for width in (8, 16, 32):
        with tempfile.TemporaryDirectory() as place:
            history, steps, path = record_history(Path(place), width)
            yield Row(
                quantity="bytes of a history on disk",
                size=f"width {width}, {steps} steps",
                predicted=steps * history.bytes_per_step,
                measured=sum(file.stat().st_size for one in ("*.bin", "*.sha256") for file in path.glob(one)),
                bounds=EXACT,
            )
    d_in, d_out, rows, queries = 64, 32, 1000, 100
    searching, writing = list[tuple[int, float]](), list[tuple[int, float]]()
    for instances in (20_000, 40_000, 80_000):
        with tempfile.TemporaryDirectory() as place:
            shapes = {"map.in": (d_in, "float32"), "map.error": (d_out, "float32")}
            columns = {name: HistoryColumn(rows=rows, width=w, dtype=kind) for name, (w, kind) in shapes.items()}
            columns["steps"] = HistoryColumn(rows=1, width=2, dtype="float64")
            facts = {"maps": {"map": {"reads": "map", "decay": 0.0, "bias decay": None}}, "momentum": 0.0}
            writer = HistoryWriter(Path(place), columns, facts, keep_steps=0)
            random = np.random.default_rng(0)
            step = {n: random.standard_normal((rows, w), dtype=np.float32) for n, (w, _) in shapes.items()}
            step["steps"], start = np.array([[0.1, 1.0]]), time.process_time()
            for _ in range(instances // rows):
                writer.append_step(step)
            writer.close()
            writing.append((instances, time.process_time() - start))
            reader = HistoryReader(Path(place))
            x = torch.randn(queries, d_in, generator=torch.Generator().manual_seed(0))
            size, start, before = f"{instances:,} instances", time.process_time(), bytes_read()
            find_attended_instances(reader, "map.in", x)
            searching.append((instances, time.process_time() - start))
            yield Row(
                quantity="bytes read by a first search",
                size=size,
                predicted=2 * 4 * d_in * instances,
                measured=bytes_read() - before,
                bounds=NEARLY,
            )
            with FlopCounterMode(display=False) as counter:
                find_attended_instances(reader, "map.in", x)
            yield Row(
                quantity="operations of a search",
                size=size,
                predicted=search_operations(instances, queries, d_in),
                measured=counter.get_total_flops(),
                bounds=EXACT,
            )
            with FlopCounterMode(display=False) as counter:
                compute_dual_form(reader, "map", x, torch.zeros(d_out, d_in))
            yield Row(
                quantity="operations of a dual form",
                size=size,
                predicted=dual_form_operations(instances, queries, d_in, d_out),
                measured=counter.get_total_flops(),
                bounds=NEARLY,
            )
    for quantity, times in (("seconds of writing", writing), ("seconds of a first search", searching)):
        for instances, seconds in times:
            yield Row(
                quantity=quantity,
                size=f"{instances:,} instances",
                predicted=times[0][1] * instances / times[0][0],
                measured=seconds,
                bounds=TIMED,
            )


def record_history(folder: Path, width: int) -> tuple[History, int, Path]:
    """Train a small decoder with a history; return its description, its steps and its folder."""
    from mesascope.models.config import DecoderConfig
    from mesascope.store import Run
    from mesascope.tasks.seeded import SeededSequences
    from mesascope.train import SGD, TrainingConfig, train_model

    steps, batch_size, layers, vocab = 3, 4, 1, 5
    task = SeededSequences(num_symbols=vocab, num_generators=3, prefix_length=1, length=6)
    model = DecoderConfig(
        vocab_size=vocab,
        max_position_embeddings=6,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=2,
    )
    training = TrainingConfig(steps=steps, batch_size=batch_size, optimizer=SGD(lr=0.1), checkpoints=2, history=True)
    run = Run.create(folder / "run", {"study": "s", "scale": "smoke", "seeds": [0], "parameters": {}})
    train_model(task, model, training, 0, run)
    reader = run.open_history(0)
    labels = reader.columns["labels"].width if "labels" in reader.columns else 0
    history = History(layers=layers, width=width, vocab=vocab, labels=labels, rows=reader.columns["readout.in"].rows)
    return history, steps, reader.folder


def bytes_read() -> int:
    """Bytes that this process has read from files, cached or not."""
    (line,) = [one for one in Path("/proc/self/io").read_text(encoding="utf-8").splitlines() if "rchar" in one]
    return int(line.split()[1])


PREDICTIONS = {"grid": predict_grid, "inspection": predict_inspection, "history": predict_history}
PARTS = {"grid": measure_grid, "inspection": measure_inspection, "history": measure_history}


def main(names: list[str]) -> None:
    """Measure, print, and judge."""
    held = True
    for name in names or PARTS:
        print(f"\n{PREDICTIONS[name]()}")
        print(f"\n{name}\n\n| quantity | size | predicted | measured | ratio | bounds |\n|---|---|---|---|---|---|")
        for row in PARTS[name]():
            print(row if row.holds else f"{row} DOES NOT HOLD", flush=True)
            held = held and row.holds
    sys.exit(not held)


if __name__ == "__main__":
    if set(sys.argv[1:]) - set(PARTS):
        sys.exit(f"parts must be among {', '.join(PARTS)}, but got {' '.join(sys.argv[1:])}")
    main(sys.argv[1:])
