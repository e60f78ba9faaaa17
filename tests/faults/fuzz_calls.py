"""Property-based calls of public functions with odd values, in processes with limits of memory and time."""

import dis
import json
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from faults.call_targets import ODD_VALUES, Target, build_targets, build_token_model
from faults.circuit_targets import build_circuit_targets, build_probe_targets
from faults.explorer_targets import build_explorer_targets, build_export_targets
from faults.forked import limit_memory, run_forked
from faults.model_targets import (
    build_analysis_targets,
    build_encoder_decoder_targets,
    build_generation_targets,
    build_run_targets,
    build_wrapping_targets,
)
from faults.trial_result import TrialResult, draw_examples, format_range
from mesascope.activations import Capture
from mesascope.activations.validation.fingerprint import fingerprint_model

PACKAGE = "/mesascope/"
RAISES = {dis.opmap["RAISE_VARARGS"], dis.opmap["RERAISE"]}
MAX_SECONDS = 60
OUT_OF_MEMORY_WORDS = ("allocate memory", "std::bad_alloc")  # of PyTorch, and of C++ beneath it
RESULT, REFUSED, OUT_OF_MEMORY = "result", "refused in one line", "more memory than there is"


@st.composite
def draw_call(draw: st.DrawFn, names: list[str], arguments: Mapping[str, list[str]]) -> tuple[str, dict[str, str]]:
    """Draw a function, and odd values for one or two of its arguments."""
    name = draw(st.sampled_from(names))
    replaced = draw(st.lists(st.sampled_from(arguments[name]), min_size=1, max_size=2, unique=True))
    return name, {argument: draw(st.sampled_from(sorted(ODD_VALUES))) for argument in replaced}


def try_call(target: Target, odd: Mapping[str, str], answer: Path) -> int:
    """Call a function with odd values, and write the outcome and the fault as JSON."""
    limit_memory()
    arguments = {**target.arguments, **{name: ODD_VALUES[value]() for name, value in odd.items()}}
    models = [target.arguments[name] for name in target.models if name in target.arguments]
    before = [_describe_model(model) for model in models]
    try:
        outcome, fault = RESULT, judge_result(target.function(**arguments), arguments)
    except (MemoryError, RuntimeError) as error:
        is_full = isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY_WORDS)
        outcome, fault = (OUT_OF_MEMORY, "") if is_full else (REFUSED, judge_error(error))
    except Exception as error:
        outcome, fault = REFUSED, judge_error(error)
    if [_describe_model(model) for model in models] != before:
        fault = f"the model has changed; {fault}"
    answer.write_text(json.dumps([outcome, fault]))
    return 0


def _describe_model(model: torch.nn.Module) -> tuple[object, ...]:
    modes = tuple((module.training, len(module._backward_hooks)) for module in model.modules())
    return fingerprint_model(model), modes, tuple(one.requires_grad for one in model.parameters())


def judge_error(error: Exception) -> str:
    """Return what is wrong with an exception: it must be raised by this package, with one line.

    An exception is ours if the innermost frame of its traceback is in the package, and stands at a ``raise``.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    code = trace.tb_frame.f_code
    ours = PACKAGE in code.co_filename and "/tests/" not in code.co_filename
    raised = code.co_code[trace.tb_lasti] in RAISES
    known = isinstance(error, ValueError | TypeError) or type(error).__module__.startswith("mesascope")
    where = f"{code.co_filename.rpartition('site-packages/')[2].rpartition('/src/')[2]}:{trace.tb_lineno}"
    checks = {
        f"raised by {where}": not (ours and raised),
        f"a {type(error).__name__}": not known,
        "not one line": len(str(error).splitlines()) != 1,
    }
    found = [name for name, is_wrong in checks.items() if is_wrong]
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/src/mesascope/" in frame.filename]
    last = f"{own[-1].filename.rpartition('/src/')[2]}:{own[-1].lineno}" if own else "no frame of ours"
    return f"{', '.join(found)} ({last}): {type(error).__name__}: {str(error)[:200]}" if found else ""


def judge_result(result: Any, arguments: Mapping[str, Any]) -> str:
    """Return what is wrong with the shapes and numbers of a result."""
    if isinstance(result, Capture):
        wrong = [name for name in result.axes if result[name].ndim != len(result.axes[name])]
        endless = [name for name in result.axes if not torch.isfinite(result[name]).all()]
        return f"wrong shapes of {wrong}, not finite: {endless}" if wrong or endless else ""
    if isinstance(result, xr.Dataset | xr.DataArray):
        data = result if isinstance(result, xr.Dataset) else result.to_dataset(name="result")
        empty = [str(name) for name, one in data.variables.items() if 0 in one.shape]
        all_nan = [str(n) for n, one in data.data_vars.items() if one.dtype.kind == "f" and one.isnull().all()]
        return f"empty: {empty}, without a number: {all_nan}" if empty or all_nan else ""
    if isinstance(result, Mapping):
        return "; ".join(filter(None, (judge_result(one, arguments) for one in result.values())))
    tensors = (
        [one for one in vars(result).values() if isinstance(one, torch.Tensor)] if hasattr(result, "__dict__") else []
    )
    real = [one for one in tensors if one.is_floating_point() and not one.is_meta]
    return "" if all(bool(torch.isfinite(one).all()) for one in real) else f"not finite: {type(result).__name__}"


def run_calls(folder: Path, seeds: range, log: Callable[[str], None] = lambda line: None) -> TrialResult:
    """Call public functions once per seed; all calls depend on the first seed."""
    result = TrialResult(name="odd values for public functions", seeds=format_range(seeds))
    written, runs = folder / "written", folder / "runs"
    written.mkdir()
    runs.mkdir()
    tokens, words = build_token_model()
    targets = {
        **build_targets(written),
        **build_circuit_targets(tokens, words),
        **build_probe_targets(tokens, words),
        **build_wrapping_targets(words),
        **build_generation_targets(tokens, words),
        **build_encoder_decoder_targets(words),
        **build_analysis_targets(tokens, words),
        **build_run_targets(runs),
        **build_explorer_targets(),
        **build_export_targets(runs),
    }
    free = {name: sorted(set(one.arguments) - one.fixed) for name, one in targets.items()}

    def call_once(name: str, odd: Mapping[str, str]) -> tuple[str, str]:
        answer, output = folder / "answer", folder / "output"
        answer.unlink(missing_ok=True)
        code = run_forked(partial(try_call, targets[name], odd, answer), output, MAX_SECONDS)
        ended = ["ended", f"exit code {code}: {output.read_text(errors='replace')[-500:]}"]
        outcome, fault = json.loads(answer.read_text()) if answer.exists() else ended
        return outcome, f"{name}({', '.join(f'{k}={v}' for k, v in odd.items())}): {fault}" if fault else ""

    for name in targets:  # with valid arguments
        outcome, fault = call_once(name, {})
        result.add(outcome, fault or (f"{name} does not accept valid arguments" if outcome != RESULT else ""))

    @given(draw_call(sorted(targets), free))
    def try_odd_values(call: tuple[str, dict[str, str]]) -> None:
        result.add(*call_once(*call))
        if len(result.outcomes) % 100 == 0:
            log(f"{result.name}: {len(result.outcomes)}/{len(seeds)}")

    draw_examples(try_odd_values, seeds)
    return result
