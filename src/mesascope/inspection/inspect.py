"""Opening one model, or several checkpoints of it, on one text: every part, then its controls, kept as they come."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mesascope.activations import UnsupportedModel
from mesascope.axes import label, spelled, written
from mesascope.inspection.checkpoints import Checkpoint, checkpoints
from mesascope.inspection.controls import beside, disordered, excerpted
from mesascope.inspection.passes import DISORDERED, UNTRAINED, Material, Part, Results, choose
from mesascope.inspection.text import Text, check_sizes, ordinary, read_words, tokenize
from mesascope.models.load import fingerprint, load_pretrained, untrained
from mesascope.store import Run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
REFUSALS = (UnsupportedModel, ValueError)  # by which an instrument says, in one line, what it cannot measure
OPENING = "opening the model"
Progress = Callable[[str, int, int], None]


def inspect_model(
    name: str,
    *,
    text: Path | None,
    tokens: int | None,
    sequences: int,
    path: Path,
    chosen: Sequence[str] | None = None,
    steps: Sequence[str] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    progress: Progress = lambda what, done, total: None,
) -> Run:
    """Open a causal language model on a text and write what the instruments see, next to its controls.

    Args:
        name: a Hub name, a folder, or a ``.gguf`` file.
        text: a UTF-8 file; the English prose that ships with Python by default.
        tokens: of each sequence; 512 by default, or fewer where the text or the context is shorter.
        sequences: at most so many.
        path: the run's directory.
        chosen: names of measures; all by default.
        steps: checkpoints over time: revisions of a Hub name, or folders.
        device: where to compute.
        dtype: of the weights in memory.
        progress: hears what is done, how many stages are done, and how many there are.

    Raises:
        ValueError: a measure, a text or a model that is not there, or a text that is too short.
    """
    if dtype not in DTYPES:
        raise ValueError(f"a dtype must be one of {', '.join(DTYPES)}, but got {dtype!r}")
    check_sizes(tokens, sequences)
    words, source = read_words(text)
    parts = choose(chosen)
    opened = _Opened(where=checkpoints(name, steps), device=device, dtype=DTYPES[dtype])
    progress(OPENING, 0, 1)
    seconds: dict[str, float] = {}
    with _timed(seconds, OPENING):
        model, tokenizer = opened.get(opened.last)
    if tokenizer is None:
        raise ValueError(
            f"a model must come with its tokenizer to read text, but {name} has none; put the files of "
            "tokenizer.save_pretrained beside the weights"
        )
    read = tokenize(words, source, tokenizer, model, name, tokens, sequences)
    weights = {one.label or name: fingerprint(one.name, model if one is opened.last else None) for one in opened.where}
    asked = {"model": name, "weights": weights, "device": device, "dtype": dtype}
    run = Run.create(path, {**asked, **_describe(name, text, read, parts, opened.where)})
    material = Material(ids=read.ids, allowed=ordinary(tokenizer, model))
    del model  # so that one model at a time is in memory
    with run.lock():
        inspection = _Inspection(run=run, opened=opened, material=material, progress=progress, seconds=seconds)
        inspection.measure(parts, read)
    return run


@dataclass
class _Opened:
    """The checkpoints, of which one at a time is in memory."""

    where: Sequence[Checkpoint]
    device: str
    dtype: torch.dtype
    now: tuple[Checkpoint, PreTrainedModel, PreTrainedTokenizerBase | None] | None = None
    rebuild: Callable[[int], PreTrainedModel] | None = None
    made: tuple[int, PreTrainedModel] | None = None

    @property
    def last(self) -> Checkpoint:
        """The checkpoint at which controls are computed."""
        return self.where[-1]

    def get(self, checkpoint: Checkpoint) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
        """The model of a checkpoint and its tokenizer."""
        if self.now is None or self.now[0] != checkpoint:
            self.now = None
            model, tokenizer = load_pretrained(checkpoint.name, self.dtype, self.device, checkpoint.revision)
            self.now = (checkpoint, model, tokenizer)
        return self.now[1:]

    def model(self, checkpoint: Checkpoint) -> PreTrainedModel:
        """The model of a checkpoint."""
        return self.get(checkpoint)[0]

    def untrained(self, seed: int) -> PreTrainedModel:
        """The same architecture with random weights; the model before leaves the memory first."""
        if self.rebuild is None:
            self.rebuild = untrained(self.model(self.last))
        self.now = None
        if self.made is None or self.made[0] != seed:
            self.made = None
            self.made = (seed, self.rebuild(seed))
        return self.made[1]


@dataclass
class _Inspection:
    """Stages, each of which leaves its results in a file, so that one that was stopped goes on."""

    run: Run
    opened: _Opened
    material: Material
    progress: Progress
    done: int = 0
    total: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def measure(self, parts: Sequence[Part], text: Text) -> None:
        """Every part at every checkpoint, the controls at the last; then the results and what they are about."""
        self.total = sum(len(self.opened.where) + sum(part.controls.values()) for part in parts)
        found: dict[str, list[xr.Dataset]] = {}
        for checkpoint in self.opened.where:
            for part in parts:
                make = partial(self.opened.model, checkpoint)
                for name, dataset in self._stage(part, checkpoint.label, make, self.material).items():
                    found.setdefault(name, []).append(dataset.expand_dims(step=[checkpoint.step]))
        facts = self._facts()
        trained = partial(self.opened.model, self.opened.last)
        controls = {
            DISORDERED: self._draws(DISORDERED, parts, lambda draw: trained, disordered),
            UNTRAINED: self._draws(UNTRAINED, parts, lambda draw: partial(self.opened.untrained, draw), excerpted),
        }
        for name, datasets in found.items():
            self._write(name, datasets, {kind: draws[name] for kind, draws in controls.items() if name in draws}, text)
        self._write_text(text)
        self.run.write_json("model", {**facts, "left out": self.left_out, "seconds": self.seconds})

    def _draws(
        self,
        control: str,
        parts: Sequence[Part],
        opener: Callable[[int], Callable[[], PreTrainedModel]],
        change: Callable[[Material, int], Material],
    ) -> dict[str, list[xr.Dataset]]:
        """Every draw of a control: for each a model, which is opened only if a stage is not done, and a text."""
        draws: dict[str, list[xr.Dataset]] = {}
        for draw in range(max(part.controls.get(control, 0) for part in parts)):
            for part in parts:
                if draw < part.controls.get(control, 0):
                    material = change(self.material, draw)
                    stage = self._stage(part.drawn(draw), f"{control} {draw}", opener(draw), material)
                    for name, dataset in stage.items():
                        draws.setdefault(name, []).append(dataset)
        return draws

    def _stage(self, part: Part, label: str, make: Callable[[], PreTrainedModel], material: Material) -> Results:
        """What one part finds, read from the files of an earlier run of this very code if they are all there."""
        what = _at(label, part.name)
        self.progress(what, self.done, self.total)
        with _timed(self.seconds, part.name):
            found: Results = {}
            for names in self._together(part, label, make, material):
                found |= names
        self.done += 1
        self.progress(what, self.done, self.total)
        return found

    def _together(
        self, part: Part, label: str, make: Callable[[], PreTrainedModel], material: Material
    ) -> Iterator[Results]:
        """All instruments of a part at once; where the model lacks what one needs, one after the other."""
        kept = {name: self.run.kept(_file(label, name)) for name in part.instruments}
        yield {name: dataset for name, dataset in kept.items() if dataset is not None}
        last = self.opened.last.label
        refused = {name for name in part.instruments if _at(last, name) in self.left_out}
        missing = [one for name, one in part.instruments.items() if kept[name] is None and name not in refused]
        if not missing:
            return
        try:
            yield self._keep(label, part.run(make(), material, missing))
        except REFUSALS:
            for one in missing:
                try:
                    yield self._keep(label, part.run(make(), material, [one]))
                except REFUSALS as refusal:
                    self.left_out[_at(label, one.name)] = str(refusal)

    def _keep(self, label: str, found: Results) -> Results:
        """Write results of a stage beside the run until all are there."""
        for name, dataset in found.items():
            self.run.keep(_file(label, name), dataset)
        return found

    def _write(
        self, name: str, datasets: Sequence[xr.Dataset], controls: dict[str, list[xr.Dataset]], text: Text
    ) -> None:
        """A result with its controls; where there is one checkpoint, without the axis ``step``."""
        joined = xr.concat(datasets, dim="step", combine_attrs="drop_conflicts")
        joined = joined if len(self.opened.where) > 1 else joined.isel(step=0, drop=True)
        for control, draws in controls.items():
            joined = beside(joined, control, draws)
        joined = _spelled(joined, text)
        self.run.write_results(name, joined)

    def _write_text(self, text: Text) -> None:
        """The tokens as they are written."""
        token = label(text.spelled, "batch", "pos", units="text", about="the tokens of the text")
        attrs = {"title": "The text", "about": f"What was read: {text.source}.", "order": 5}
        self.run.write_results("text", xr.Dataset({"token": token}, attrs=attrs))

    def _facts(self) -> dict[str, Any]:
        """What the model is."""
        model = self.opened.model(self.opened.last)
        config = model.config.get_text_config()
        return {
            "class": type(model).__name__,
            "parameters": model.num_parameters(),
            "layers": getattr(config, "num_hidden_layers", None),
            "heads": getattr(config, "num_attention_heads", None),
            "width": getattr(config, "hidden_size", None),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "kernel": str(model.config._attn_implementation),
        }


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time that something takes to what it took before."""
    began = time.perf_counter()
    yield
    seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - began, 1)


def _at(label: str, name: str) -> str:
    """A part or an instrument, at a checkpoint or on a control's draw if there is one."""
    return f"{name}, {label}" if label else name


def _file(label: str, name: str) -> str:
    """Where a stage keeps what an instrument found."""
    return f"{label or 'main'}-{name}"


def _spelled(dataset: xr.Dataset, text: Text) -> xr.Dataset:
    """A dataset with the words that its positions and tokens stand for."""
    if "pattern" in dataset:
        excerpt = text.spelled[0][: dataset.sizes["key"]]
        token = label(excerpt, "pos", units="text", about="the tokens of the excerpt")
        dataset = dataset.isel(batch=0, drop=True).assign(token=token)
    if "top_token_id" in dataset:
        ids = dataset["top_token_id"]
        told = {"units": "text", "about": "the token that each head raises most"}
        dataset = dataset.assign(top_token=(ids.dims, written(ids, text.spell), told))
    return spelled(dataset, text.spell)


def _describe(
    name: str, file: Path | None, text: Text, parts: Sequence[Part], where: Sequence[Checkpoint]
) -> dict[str, Any]:
    """What was asked for, in JSON's types."""
    count, length = text.ids.shape
    told = {"source": text.source, "tokens": count * length, "sequences": count, "digest": text.digest}
    return {
        "study": "inspect",
        "title": f"Inside {Path(name).name}",
        "about": "A causal language model, opened on one text.",
        "text": told if file is None else {**told, "file": str(file)},
        "parameters": {
            "measures": [one for part in parts for one in part.instruments],
            "steps": [checkpoint.label for checkpoint in where if checkpoint.label],
        },
    }
