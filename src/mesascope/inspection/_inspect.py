"""Inspection of one model, or of several checkpoints, on one text, with controls; partial results are saved."""

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
from mesascope.activations.hooks.attention_interface import attn_implementation
from mesascope.axes import decode_tokens, to_data_array, with_decoded_tokens
from mesascope.inspection._checkpoints import ModelCheckpoint, resolve_checkpoints
from mesascope.inspection._controls import shuffled_text, single_sequence, with_controls
from mesascope.inspection._passes import (
    RANDOM_WEIGHTS,
    SHUFFLED_TEXT,
    AnalysisResults,
    InspectionInputs,
    Pass,
    select_passes,
)
from mesascope.inspection._text import TokenizedText, check_sizes, non_special_tokens, read_words, tokenize_text
from mesascope.models.load import load_pretrained, make_untrained_factory, weights_fingerprint
from mesascope.store import Run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
ANALYSIS_ERRORS = (UnsupportedModel, ValueError)  # raised by analyses that do not support a model
LOADING_STAGE = "opening the model"
StageProgressFn = Callable[[str, int, int], None]


def inspect_model(
    name: str,
    *,
    text: Path | None,
    tokens: int | None,
    sequences: int,
    path: Path,
    analyses: Sequence[str] | None = None,
    steps: Sequence[str] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    progress: StageProgressFn = lambda what, done, total: None,
) -> Run:
    """Run analyses of a causal language model on a text, with controls.

    Args:
        name: A Hub name, a folder, or a ``.gguf`` file.
        text: A UTF-8 file; by default English prose that is installed with Python.
        tokens: Tokens per sequence; 512 by default, or fewer if the text or the context is shorter.
        sequences: Maximum number of sequences.
        path: The run's directory.
        analyses: Names of analyses; all by default.
        steps: Training checkpoints: revisions of a Hub name, or folders.
        device: The device to compute on.
        dtype: Data type of the weights in memory.
        progress: Called with (current stage, stages done, total stages).

    Returns:
        The run, with its results.

    Raises:
        ValueError: If an analysis, text or model does not exist, or the text is too short.
    """
    if dtype not in DTYPES:
        raise ValueError(f"a dtype must be one of {', '.join(DTYPES)}, but got {dtype!r}")
    check_sizes(tokens, sequences)
    words, source = read_words(text)
    passes = select_passes(analyses)
    loader = _CheckpointLoader(checkpoints=resolve_checkpoints(name, steps), device=device, dtype=DTYPES[dtype])
    progress(LOADING_STAGE, 0, 1)
    seconds: dict[str, float] = {}
    with _record_duration(seconds, LOADING_STAGE):
        model, tokenizer = loader.load_with_tokenizer(loader.last_checkpoint)
    if tokenizer is None:
        raise ValueError(
            f"a model must come with its tokenizer to read text, but {name} has none; add the files of "
            "tokenizer.save_pretrained to the folder of the weights"
        )
    tokenized = tokenize_text(words, source, tokenizer, model, name, tokens, sequences)
    weights = {
        checkpoint.label or name: weights_fingerprint(
            checkpoint.name, model if checkpoint is loader.last_checkpoint else None
        )
        for checkpoint in loader.checkpoints
    }
    request = {"model": name, "weights": weights, "device": device, "dtype": dtype}
    run = Run.create(path, {**request, **_describe_inspection(name, text, tokenized, passes, loader.checkpoints)})
    inputs = InspectionInputs(token_ids=tokenized.token_ids, allowed_tokens=non_special_tokens(tokenizer, model))
    del model  # keep one model at a time in memory
    with run.exclusive_lock():
        inspection = _Inspection(run=run, loader=loader, inputs=inputs, progress=progress, seconds=seconds)
        inspection.run_passes(passes, tokenized)
    return run


@dataclass
class _CheckpointLoader:
    """Loader of the checkpoints that keeps one model at a time in memory."""

    checkpoints: Sequence[ModelCheckpoint]
    device: str
    dtype: torch.dtype
    loaded: tuple[ModelCheckpoint, PreTrainedModel, PreTrainedTokenizerBase | None] | None = None
    build_untrained: Callable[[int], PreTrainedModel] | None = None
    untrained_model: tuple[int, PreTrainedModel] | None = None

    @property
    def last_checkpoint(self) -> ModelCheckpoint:
        """The last checkpoint, for which controls are computed."""
        return self.checkpoints[-1]

    def load_with_tokenizer(
        self, checkpoint: ModelCheckpoint
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
        if self.loaded is None or self.loaded[0] != checkpoint:
            self.loaded = None
            model, tokenizer = load_pretrained(checkpoint.name, self.dtype, self.device, checkpoint.revision)
            self.loaded = (checkpoint, model, tokenizer)
        return self.loaded[1:]

    def load_model(self, checkpoint: ModelCheckpoint) -> PreTrainedModel:
        return self.load_with_tokenizer(checkpoint)[0]

    def load_untrained(self, seed: int) -> PreTrainedModel:
        """Return the same architecture with random weights; the trained model is freed first."""
        if self.build_untrained is None:
            self.build_untrained = make_untrained_factory(self.load_model(self.last_checkpoint))
        self.loaded = None
        if self.untrained_model is None or self.untrained_model[0] != seed:
            self.untrained_model = None
            self.untrained_model = (seed, self.build_untrained(seed))
        return self.untrained_model[1]


@dataclass
class _Inspection:
    """Passes over the model; each saves its results in a file, so that a stopped inspection can resume."""

    run: Run
    loader: _CheckpointLoader
    inputs: InspectionInputs
    progress: StageProgressFn
    done: int = 0
    total: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def run_passes(self, passes: Sequence[Pass], text: TokenizedText) -> None:
        """Run every pass at every checkpoint and the controls at the last one, then write the results."""
        self.total = sum(
            len(self.loader.checkpoints) + sum(inspection_pass.control_draws.values()) for inspection_pass in passes
        )
        results: dict[str, list[xr.Dataset]] = {}
        for checkpoint in self.loader.checkpoints:
            for part in passes:
                load_model = partial(self.loader.load_model, checkpoint)
                for name, dataset in self._run_pass(part, checkpoint.label, load_model, self.inputs).items():
                    results.setdefault(name, []).append(dataset.expand_dims(step=[checkpoint.step]))
        model_info = self._describe_model()
        trained = partial(self.loader.load_model, self.loader.last_checkpoint)
        controls = {
            SHUFFLED_TEXT: self._run_control(SHUFFLED_TEXT, passes, lambda draw: trained, shuffled_text),
            RANDOM_WEIGHTS: self._run_control(
                RANDOM_WEIGHTS, passes, lambda draw: partial(self.loader.load_untrained, draw), single_sequence
            ),
        }
        for name, datasets in results.items():
            self._write_result(
                name, datasets, {kind: draws[name] for kind, draws in controls.items() if name in draws}, text
            )
        self._write_text(text)
        self.run.write_json("model", {**model_info, "skipped": self.skipped, "seconds": self.seconds})

    def _run_control(
        self,
        control: str,
        passes: Sequence[Pass],
        make_loader: Callable[[int], Callable[[], PreTrainedModel]],
        change_inputs: Callable[[InspectionInputs, int], InspectionInputs],
    ) -> dict[str, list[xr.Dataset]]:
        """Run every draw of a control; the model is loaded only if a pass has no saved results."""
        draws: dict[str, list[xr.Dataset]] = {}
        for draw in range(max(inspection_pass.control_draws.get(control, 0) for inspection_pass in passes)):
            for part in passes:
                if draw < part.control_draws.get(control, 0):
                    inputs = change_inputs(self.inputs, draw)
                    stage = self._run_pass(part.for_draw(draw), f"{control} {draw}", make_loader(draw), inputs)
                    for name, dataset in stage.items():
                        draws.setdefault(name, []).append(dataset)
        return draws

    def _run_pass(
        self, inspection_pass: Pass, label: str, load_model: Callable[[], PreTrainedModel], inputs: InspectionInputs
    ) -> AnalysisResults:
        """Run one pass, or load its results if the same code version has saved all of them."""
        stage = _stage_label(label, inspection_pass.name)
        self.progress(stage, self.done, self.total)
        with _record_duration(self.seconds, inspection_pass.name):
            results: AnalysisResults = {}
            for names in self._run_analyses(inspection_pass, label, load_model, inputs):
                results |= names
        self.done += 1
        self.progress(stage, self.done, self.total)
        return results

    def _run_analyses(
        self, inspection_pass: Pass, label: str, load_model: Callable[[], PreTrainedModel], inputs: InspectionInputs
    ) -> Iterator[AnalysisResults]:
        """Run all analyses of a pass together; if the model does not support one of them, run them one by one."""
        saved = {name: self.run.load_partial(_partial_name(label, name)) for name in inspection_pass.analyses}
        yield {name: dataset for name, dataset in saved.items() if dataset is not None}
        last_label = self.loader.last_checkpoint.label
        skipped = {name for name in inspection_pass.analyses if _stage_label(last_label, name) in self.skipped}
        missing = [
            analysis
            for name, analysis in inspection_pass.analyses.items()
            if saved[name] is None and name not in skipped
        ]
        if not missing:
            return
        try:
            yield self._save_partial_results(label, inspection_pass.run(load_model(), inputs, missing))
        except ANALYSIS_ERRORS:
            for analysis in missing:
                try:
                    yield self._save_partial_results(label, inspection_pass.run(load_model(), inputs, [analysis]))
                except ANALYSIS_ERRORS as refusal:
                    self.skipped[_stage_label(label, analysis.name)] = str(refusal)

    def _save_partial_results(self, label: str, results: AnalysisResults) -> AnalysisResults:
        for name, dataset in results.items():
            self.run.save_partial(_partial_name(label, name), dataset)
        return results

    def _write_result(
        self, name: str, datasets: Sequence[xr.Dataset], controls: dict[str, list[xr.Dataset]], text: TokenizedText
    ) -> None:
        """Write a result with its controls; with a single checkpoint, the axis ``step`` is dropped."""
        joined = xr.concat(datasets, dim="step", combine_attrs="drop_conflicts")
        joined = joined if len(self.loader.checkpoints) > 1 else joined.isel(step=0, drop=True)
        for control, draws in controls.items():
            joined = with_controls(joined, control, draws)
        joined = _add_token_text(joined, text)
        self.run.write_results(name, joined)

    def _write_text(self, text: TokenizedText) -> None:
        token = to_data_array(text.token_text, "batch", "pos", units="text", description="the tokens of the text")
        attrs = {"title": "The text", "description": f"Source of the text: {text.source}.", "analysis": "text"}
        self.run.write_results("text", xr.Dataset({"token": token}, attrs=attrs))

    def _describe_model(self) -> dict[str, Any]:
        model = self.loader.load_model(self.loader.last_checkpoint)
        config = model.config.get_text_config()
        return {
            "class": type(model).__name__,
            "parameters": model.num_parameters(),
            "layers": getattr(config, "num_hidden_layers", None),
            "heads": getattr(config, "num_attention_heads", None),
            "hidden_size": getattr(config, "hidden_size", None),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "attn_implementation": attn_implementation(model),
        }


@contextmanager
def _record_duration(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the duration of a ``with`` block to a total."""
    start_time = time.perf_counter()
    yield
    seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start_time, 1)


def _stage_label(label: str, name: str) -> str:
    return f"{name}, {label}" if label else name


def _partial_name(label: str, name: str) -> str:
    return f"{label or 'main'}-{name}"


def _add_token_text(dataset: xr.Dataset, text: TokenizedText) -> xr.Dataset:
    """Add the text of the tokens to a dataset."""
    if "pattern" in dataset:
        excerpt = text.token_text[0][: dataset.sizes["key"]]
        token = to_data_array(excerpt, "pos", units="text", description="the tokens of the excerpt")
        dataset = dataset.isel(batch=0, drop=True).assign(token=token)
    if "top_token_id" in dataset:
        ids = dataset["top_token_id"]
        attrs = {"units": "text", "description": "the token whose logit each head raises most"}
        dataset = dataset.assign(top_token=(ids.dims, decode_tokens(ids, text.decode_token), attrs))
    return with_decoded_tokens(dataset, text.decode_token)


def _describe_inspection(
    name: str, file: Path | None, text: TokenizedText, passes: Sequence[Pass], checkpoints: Sequence[ModelCheckpoint]
) -> dict[str, Any]:
    count, length = text.token_ids.shape
    text_info = {"source": text.source, "tokens": count * length, "sequences": count, "digest": text.token_digest}
    return {
        "study": "inspect",
        "title": f"Inside {Path(name).name}",
        "description": "Analyses of a causal language model on one text.",
        "text": text_info if file is None else {**text_info, "file": str(file)},
        "parameters": {
            "analyses": [analysis for part in passes for analysis in part.analyses],
            "steps": [checkpoint.label for checkpoint in checkpoints if checkpoint.label],
        },
    }
