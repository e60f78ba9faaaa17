"""Inspection of one model, or of several checkpoints, on one text, with controls; partial results are saved."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mesascope.activations.forward import evaluation_mode
from mesascope.activations.validation.inputs import find_input_device
from mesascope.formulas import escape_dollars
from mesascope.inspection._checkpoints import ModelCheckpoint, resolve_checkpoints
from mesascope.inspection._inspection import Inspection, StageProgressFn, record_duration
from mesascope.inspection._loader import CheckpointLoader
from mesascope.inspection._passes import (
    NO_QUANTIZED_CONTROL,
    NO_RANDOM_WEIGHTS,
    RANDOM_WEIGHTS,
    InspectionInputs,
    Pass,
    select_passes,
    without_control,
)
from mesascope.inspection._text import TokenizedText, check_sizes, read_words, tokenize_text
from mesascope.inspection._token_ids import (
    TokenIdsLike,
    read_token_ids,
    sample_token_ids,
    select_allowed_tokens,
    split_token_ids,
)
from mesascope.models.load import weights_fingerprint
from mesascope.models.quantized.schemes import Quantization, name_quantization
from mesascope.models.quantized.weights import is_quantized
from mesascope.models.weight_checks import check_forward_pass, check_weight_values, hash_weights
from mesascope.store import Run
from mesascope.tasks.base import Task

TokenReader = Callable[[PreTrainedModel, PreTrainedTokenizerBase | None, str], TokenizedText]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
LOADING_STAGE = "opening the model"
NUM_CHECKED_TOKENS = 8  # tokens of the forward pass that checks a model before anything is written


def inspect_model(
    model: str | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text: Path | None,
    tokens: int | None,
    sequences: int,
    path: Path,
    token_ids: TokenIdsLike | None = None,
    task: Task | None = None,
    analyses: Sequence[str] | None = None,
    steps: Sequence[str] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    trust_remote_code: bool = False,
    stream_layers: bool = False,
    quantize: Quantization | None = None,
    device_map: str | None = None,
    progress: StageProgressFn = lambda what, done, total: None,
) -> Run:
    """Run analyses of a causal language model on a text or on token ids, with controls.

    Args:
        model: A Hub name, a folder, a ``.gguf`` file, or a model in memory.
        tokenizer: The tokenizer of a model in memory.
        text: A UTF-8 file; by default English prose that is installed with Python.
        tokens: Tokens per sequence; 512 by default, or fewer if the text or the context is shorter.
        sequences: Maximum number of sequences.
        path: The run's directory.
        token_ids: Token ids, or a ``.npy`` or ``.safetensors`` file of them, instead of a text.
        task: A task of tokens, whose sequences are inspected instead of a text.
        analyses: Names of analyses; all by default.
        steps: Training checkpoints: revisions of a Hub name, or folders.
        device: The device to compute on.
        dtype: Data type of the weights in memory. A model in memory keeps its device and its dtype.
        trust_remote_code: Run Python code that comes with the model.
        stream_layers: Read the weights of each layer from the safetensors files whenever it runs, for a model that does
            not fit into memory. The control of random weights is left out.
        quantize: Quantise the weights of linear modules, as in `load_pretrained`. The control of random weights is left
            out.
        device_map: Spread the weights over devices, the processor's memory and the disk, as in `load_pretrained`.
        progress: Called with (current stage, stages done, total stages).

    Returns:
        The run, with its results.

    Raises:
        ValueError: If an analysis, text or model does not exist, or the text does not fit the model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"a dtype must be one of {', '.join(DTYPES)}, but got {dtype!r}")
    with evaluation_mode(model) if isinstance(model, PreTrainedModel) else nullcontext():
        check_sizes(tokens, sequences)
        read_tokens = _read_source(text, token_ids, task, tokens, sequences)
        passes = select_passes(analyses)
        name = get_model_name(model)
        loader = _make_loader(
            model,
            tokenizer,
            resolve_checkpoints(name, steps),
            device,
            dtype,
            trust_remote_code,
            stream_layers,
            quantize,
            device_map,
        )
        progress(LOADING_STAGE, 0, 1)
        seconds: dict[str, float] = {}
        with record_duration(seconds, LOADING_STAGE):
            loaded, tokenizer = loader.load_with_tokenizer(loader.last_checkpoint)
        tokenized = read_tokens(loaded, tokenizer, name)
        check_forward_pass(loaded, tokenized.token_ids[:1, :NUM_CHECKED_TOKENS], name)
        skipped: dict[str, str] = {}
        if any(parameter.is_meta for parameter in loaded.parameters()):
            passes, skipped = without_control(passes, RANDOM_WEIGHTS), {f"control: {RANDOM_WEIGHTS}": NO_RANDOM_WEIGHTS}
        elif is_quantized(loaded):
            passes = without_control(passes, RANDOM_WEIGHTS)
            skipped = {f"control: {RANDOM_WEIGHTS}": NO_QUANTIZED_CONTROL}
        weights = _fingerprint_weights(name, loader, loaded)
        file = token_ids if isinstance(token_ids, Path | str) else text
        request = {"model": name, "weights": weights, "device": loader.device, "dtype": _name_dtype(loader.dtype)}
        request |= {"stream_layers": "yes"} if stream_layers else {}
        request |= {} if quantize is None else {"quantize": name_quantization(quantize)}
        request |= {} if device_map is None else {"device_map": device_map}
        run = Run.create(path, {**request, **_describe_inspection(name, file, tokenized, passes, loader.checkpoints)})
        inputs = InspectionInputs(
            token_ids=tokenized.token_ids,
            allowed_tokens=select_allowed_tokens(tokenized.token_ids, tokenizer, loaded),
            prefix=tokenized.prefix,
        )
        del loaded  # keep one model at a time in memory
        with run.exclusive_lock():
            inspection = Inspection(
                run=run, loader=loader, inputs=inputs, progress=progress, seconds=seconds, skipped=skipped
            )
            inspection.run_passes(passes, tokenized)
        return run


def _read_source(
    text: Path | None,
    token_ids: TokenIdsLike | None,
    task: Task | None,
    tokens: int | None,
    sequences: int,
) -> TokenReader:
    """Read the text or the token ids, before a model is loaded; return what the loaded model makes of them."""
    given = {"a text": text, "token_ids": token_ids, "a task": task}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise ValueError(f"the inputs must be a text, token_ids or a task, but got {' and '.join(chosen)}; give one")
    if task is not None:
        ids, origin = sample_token_ids(task, sequences)
    elif token_ids is not None:
        ids, origin = read_token_ids(token_ids)
    else:
        return _read_text(text, tokens, sequences)
    return lambda model, tokenizer, name: split_token_ids(ids, origin, model, name, tokenizer, tokens, sequences)


def _read_text(text: Path | None, tokens: int | None, sequences: int) -> TokenReader:
    words, source = read_words(text)

    def tokenize(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str) -> TokenizedText:
        if tokenizer is None:
            raise ValueError(
                f"a model must come with its tokenizer to read text, but {name} has none; add the files of "
                "tokenizer.save_pretrained to the folder of the weights, or give token_ids (--token-ids)"
            )
        return tokenize_text(words, source, tokenizer, model, name, tokens, sequences)

    return tokenize


def get_model_name(model: str | PreTrainedModel) -> str:
    """Return the name of a model: as given, or that from which a model in memory was loaded, or its class.

    Args:
        model: A name or a model.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(model, str):
        return model
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"a model must be a name, a folder or a PreTrainedModel of transformers, but got {type(model).__name__}; "
            "of a wrapped model, pass the model inside (get_base_model(), module or _orig_mod), and of a plain "
            "torch.nn.Module mesascope.wrap(module)"
        )
    return str(model.config.name_or_path or type(model).__name__)


def _make_loader(
    model: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    checkpoints: Sequence[ModelCheckpoint],
    device: str,
    dtype: str,
    trust_remote_code: bool,
    stream_layers: bool,
    quantize: Quantization | None,
    device_map: str | None,
) -> CheckpointLoader:
    if isinstance(model, str):
        if tokenizer is not None:
            raise ValueError("a tokenizer must be given with a model in memory only; pass the loaded model")
        return CheckpointLoader(
            checkpoints=checkpoints,
            device=device,
            dtype=DTYPES[dtype],
            trust_remote_code=trust_remote_code,
            stream_layers=stream_layers,
            quantize=quantize,
            device_map=device_map,
        )
    if stream_layers:
        raise ValueError("stream_layers must be given with the name of a model, but got a model in memory; omit it")
    if device_map is not None:
        raise ValueError("device_map must be given with the name of a model, but got a model in memory; omit it")
    if quantize is not None:
        raise ValueError("quantize must be given with the name of a model, but got a model in memory; omit it")
    if checkpoints[0].label:
        raise ValueError("steps must be given with the name of a model, but got a model in memory; omit the steps")
    check_weight_values(checkpoints[0].name, model)
    return CheckpointLoader(
        checkpoints=checkpoints, device=str(find_input_device(model)), dtype=model.dtype, given=(model, tokenizer)
    )


def _name_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _fingerprint_weights(name: str, loader: CheckpointLoader, last_model: PreTrainedModel) -> dict[str, str]:
    return {
        checkpoint.label or name: hash_weights(last_model)
        if loader.given is not None
        else weights_fingerprint(checkpoint.name, last_model if checkpoint is loader.last_checkpoint else None)
        for checkpoint in loader.checkpoints
    }


def _describe_inspection(
    name: str,
    file: Path | str | None,
    text: TokenizedText,
    passes: Sequence[Pass],
    checkpoints: Sequence[ModelCheckpoint],
) -> dict[str, Any]:
    count, length = text.token_ids.shape
    text_info = {"source": text.source, "tokens": count * length, "sequences": count, "digest": text.token_digest}
    return {
        "study": "inspect",
        "title": f"Inside {escape_dollars(Path(name).name)}",
        "description": "Analyses of a causal language model on one text.",
        "text": text_info if file is None else {**text_info, "file": str(file)},
        "parameters": {
            "analyses": [analysis for part in passes for analysis in part.analyses],
            "steps": [checkpoint.label for checkpoint in checkpoints if checkpoint.label],
        },
    }
