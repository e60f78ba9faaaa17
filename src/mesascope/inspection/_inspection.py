"""Passes of an inspection at all checkpoints, with controls; partial results are saved."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import xarray as xr
from transformers import PreTrainedModel

from mesascope.activations import UnsupportedModel, WrappedModule
from mesascope.activations.hooks.attention_interface import attn_implementation
from mesascope.activations.validation.inputs import find_input_device
from mesascope.analyses import Analysis
from mesascope.analyses.nulls import with_draws
from mesascope.axes import decode_tokens, to_data_array, with_decoded_tokens
from mesascope.formulas import escape_dollars
from mesascope.inspection._controls import shuffled_text, single_sequence
from mesascope.inspection._loader import CheckpointLoader
from mesascope.inspection._passes import (
    RANDOM_WEIGHTS,
    SHUFFLED_TEXT,
    AnalysisResults,
    InspectionInputs,
    Pass,
)
from mesascope.inspection._text import TokenizedText
from mesascope.models.quantized.weights import describe_quantization
from mesascope.store import Run

ANALYSIS_ERRORS = (UnsupportedModel, ValueError)  # raised by analyses that do not support a model
StageProgressFn = Callable[[str, int, int], None]


@dataclass
class Inspection:
    """Passes over the model; each saves its results in a file, so that a stopped inspection can resume.

    Attributes:
        run: The run.
        loader: Loads the checkpoints.
        inputs: The inputs of the model.
        progress: Called with (current stage, stages done, total stages).
        done: Number of finished stages.
        total: Number of stages.
        skipped: The reason for each analysis, or control, that the model does not support.
        seconds: Durations, by pass.
    """

    run: Run
    loader: CheckpointLoader
    inputs: InspectionInputs
    progress: StageProgressFn
    done: int = 0
    total: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def run_passes(self, passes: Sequence[Pass], text: TokenizedText) -> None:
        """Run every pass at every checkpoint and the controls at the last one, then write the results.

        Args:
            passes: The passes.
            text: The inspected text.
        """
        self.total = sum(len(self.loader.checkpoints) + sum(part.control_draws.values()) for part in passes)
        results = self._run_checkpoints(passes)
        model_info = describe_model(self.loader.load_model(self.loader.last_checkpoint))
        controls = self._run_controls(passes)
        for name, datasets in results.items():
            self._write_result(
                name, datasets, {kind: draws[name] for kind, draws in controls.items() if name in draws}, text
            )
        self._write_text(text)
        self.run.write_json("model", {**model_info, "skipped": self.skipped, "seconds": self.seconds})

    def _run_checkpoints(self, passes: Sequence[Pass]) -> dict[str, list[xr.Dataset]]:
        """Run every pass at every checkpoint; results have the axis ``step``."""
        results: dict[str, list[xr.Dataset]] = {}
        for checkpoint in self.loader.checkpoints:
            for part in passes:
                load_model = partial(self.loader.load_model, checkpoint)
                for name, dataset in self._run_pass(part, checkpoint.label, load_model, self.inputs).items():
                    results.setdefault(name, []).append(dataset.expand_dims(step=[checkpoint.step]))
        return results

    def _run_controls(self, passes: Sequence[Pass]) -> dict[str, dict[str, list[xr.Dataset]]]:
        """Run both controls at the last checkpoint; the trained model is freed before the untrained ones are built."""
        trained = partial(self.loader.load_model, self.loader.last_checkpoint)
        return {
            SHUFFLED_TEXT: self._run_control(SHUFFLED_TEXT, passes, lambda draw: trained, shuffled_text),
            RANDOM_WEIGHTS: self._run_control(
                RANDOM_WEIGHTS, passes, lambda draw: partial(self.loader.load_untrained, draw), single_sequence
            ),
        }

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
        with record_duration(self.seconds, inspection_pass.name):
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
        missing = self._missing_analyses(inspection_pass, saved)
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

    def _missing_analyses(self, inspection_pass: Pass, saved: Mapping[str, xr.Dataset | None]) -> list[Analysis]:
        """Return the analyses that have no saved results and were not skipped at the last checkpoint."""
        last_label = self.loader.last_checkpoint.label
        return [
            analysis
            for name, analysis in inspection_pass.analyses.items()
            if saved[name] is None and _stage_label(last_label, name) not in self.skipped
        ]

    def _save_partial_results(self, label: str, results: AnalysisResults) -> AnalysisResults:
        for name, dataset in results.items():
            self.run.save_partial(_partial_name(label, name), dataset)
        return results

    def _write_result(
        self, name: str, datasets: Sequence[xr.Dataset], controls: dict[str, list[xr.Dataset]], text: TokenizedText
    ) -> None:
        """Write a result with its controls; with a single checkpoint, the axis ``step`` is dropped."""
        joined = xr.concat(datasets, dim="step", join="outer", combine_attrs="drop_conflicts")
        joined = joined if len(self.loader.checkpoints) > 1 else joined.isel(step=0, drop=True)
        for control, draws in controls.items():
            joined = with_draws(joined, control, draws)
        joined = _add_token_text(joined, text)
        self.run.write_results(name, joined)

    def _write_text(self, text: TokenizedText) -> None:
        token = to_data_array(text.token_text, "batch", "pos", units="text", description="the tokens of the text")
        about = f"Source of the text: {escape_dollars(text.source)}."
        attrs = {"title": "The text", "description": about, "analysis": "text"}
        self.run.write_results("text", xr.Dataset({"token": token}, attrs=attrs))


def describe_model(model: PreTrainedModel) -> dict[str, Any]:
    """Return the facts of a model that are recorded with its results.

    Args:
        model: The model.
    """
    config, quantization = model.config.get_text_config(), describe_quantization(model)
    return {
        "class": get_class_name(model),
        "parameters": model.num_parameters(),
        "layers": getattr(config, "num_hidden_layers", None),
        "heads": getattr(config, "num_attention_heads", None),
        "hidden_size": getattr(config, "hidden_size", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(find_input_device(model)),
        "attn_implementation": attn_implementation(model),
        **({} if quantization is None else {"quantization": quantization}),
    }


def get_class_name(model: PreTrainedModel) -> str:
    """Return the name of the class of a model, or of the module that is wrapped in it.

    Args:
        model: The model.
    """
    return type(model.module if isinstance(model, WrappedModule) else model).__name__


@contextmanager
def record_duration(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the duration of a ``with`` block to a total.

    Args:
        seconds: The totals; changed in place.
        name: The name of the total.
    """
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
