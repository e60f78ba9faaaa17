"""Loading of checkpoints and of pretrained causal language models; pickled weights are never read."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, overload

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from mesascope.models._device_map import (
    DeviceMap,
    check_can_spread,
    check_device_map,
    close_with_model,
    make_spread_options,
)
from mesascope.models._gguf import parse_gguf_once, read_gguf_weights
from mesascope.models._hub import download_weights, find_snapshot, silence_hub_retries
from mesascope.models._model_config import check_causal_lm, check_config_file
from mesascope.models._size_limit import limit_model_size
from mesascope.models._tokenizer import load_model_tokenizer
from mesascope.models._weight_files import StoredWeights, read_json_object, read_stored_weights
from mesascope.models.config import DecoderConfig
from mesascope.models.encoder_decoder.config import EncoderDecoderConfig
from mesascope.models.encoder_decoder.model import EncoderDecoder
from mesascope.models.load_errors import BrokenModelError, ModelNotFound, check_installed, convert_load_errors
from mesascope.models.quantized.schemes import (
    PACKAGES,
    Quantization,
    bound_bytes,
    check_packages,
    check_scheme,
    get_stored_method,
    make_quantization_config,
)
from mesascope.models.quantized.weights import compute_in_model_dtype, is_quantized
from mesascope.models.recurrent.config import RecurrentConfig
from mesascope.models.recurrent.model import RecurrentTransformer
from mesascope.models.streaming.stream_layers import build_streamed_model
from mesascope.models.transformer import Decoder
from mesascope.models.weight_checks import (
    check_all_layers_used,
    check_stored_types,
    check_weight_values,
    check_weights_match,
)

DECODER_CLASSES: dict[type[DecoderConfig], type[Decoder]] = {
    DecoderConfig: Decoder,
    RecurrentConfig: RecurrentTransformer,
    EncoderDecoderConfig: EncoderDecoder,
}
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_HUB_HINT = "; check the name and the network, and log in with `hf auth login` where access must be granted"


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> Decoder:
    """Load a decoder checkpoint of a run, in evaluation mode.

    Args:
        path: the folder, such as ``models/seed=0/step=100``.
        device: device of the model.

    Returns:
        The decoder.

    Raises:
        ModelNotFound: there is no decoder, or its weights do not match the architecture exactly.
    """
    if not (Path(path) / "config.json").is_file():
        raise ModelNotFound(f"a checkpoint must be a folder with config.json, but {path} has none; give another folder")
    explain = f"a checkpoint must have a complete model.safetensors, but {path} does not: {{}}".format
    with convert_load_errors(explain):
        stored = read_stored_weights(Path(path))
        with silence_transformers(), limit_model_size(stored, torch.float32, quantized=False):
            model, loading_info = _read_decoder(path, _read_decoder_config(Path(path)))
    check_weights_match(str(path), loading_info, ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval().to(device)


def find_decoder_class(config: DecoderConfig) -> type[Decoder]:
    """Return the class of the models that a configuration defines.

    Args:
        config: the configuration of a decoder, a recurrent transformer or an encoder-decoder.
    """
    return DECODER_CLASSES[type(config)]


def _read_decoder_config(path: Path) -> DecoderConfig:
    model_type = str(read_json_object(path / "config.json").get("model_type"))
    configs = {config.model_type: config for config in DECODER_CLASSES}
    return configs.get(model_type, DecoderConfig).from_pretrained(path)


def _read_decoder(path: Path | str, config: DecoderConfig) -> Any:
    """Return the decoder and which of its weights were not found."""
    return find_decoder_class(config).from_pretrained(
        path,
        config=config,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # reported in the loading info, and refused with their names
        output_loading_info=True,
        local_files_only=True,
    )


@overload
def load_pretrained(
    name: Path | str,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    revision: str = "main",
    *,
    trust_remote_code: bool = False,
    require_tokenizer: Literal[True] = True,
    stream_layers: bool = False,
    quantize: Quantization | None = None,
    device_map: DeviceMap | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]: ...
@overload
def load_pretrained(
    name: Path | str,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    revision: str = "main",
    *,
    trust_remote_code: bool = False,
    require_tokenizer: bool,
    stream_layers: bool = False,
    quantize: Quantization | None = None,
    device_map: DeviceMap | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]: ...
def load_pretrained(
    name: Path | str,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    revision: str = "main",
    *,
    trust_remote_code: bool = False,
    require_tokenizer: bool = True,
    stream_layers: bool = False,
    quantize: Quantization | None = None,
    device_map: DeviceMap | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a causal language model and its tokenizer, in evaluation mode.

    The sizes that the config declares are compared with the weight files before memory is allocated, and weights must
    be finite.

    Args:
        name: a Hub name, a folder, or a ``.gguf`` file.
        dtype: type of the weights in memory; ``"auto"`` for the type in which they are stored.
        device: device of the model.
        revision: branch, tag or commit of a Hub name; some repositories have one revision per training step.
        trust_remote_code: run Python code that comes with the model. Without it, a model that needs such code is
            refused, and nothing is asked on the terminal.
        require_tokenizer: refuse a model without a tokenizer. If false, its tokenizer is ``None``.
        stream_layers: for a model that does not fit into memory: read the weights of each layer from the safetensors
            files whenever it runs, and drop them afterwards. They cannot be trained or changed.
        quantize: quantise the weights of linear modules: ``int8`` or ``int4`` by torchao, ``nf4`` by bitsandbytes, or a
            quantization config of transformers. Embeddings, norms and output head keep their precision.
        device_map: spread the model over devices, the processor's memory and the disk, in place of ``device``:
            ``auto``, ``balanced``, ``balanced_low_0`` or ``sequential``, or the device of every part, as in
            transformers.

    Returns:
        The model and its tokenizer.

    Raises:
        ValueError: there is no such quantisation or device map.
        ModelNotFound: the model does not exist, has no safetensors or GGUF weights, has no tokenizer although one is
            required, or its files are broken, do not match each other or are those of another kind of model; the
            message is one line.
    """
    if quantize is not None:
        check_scheme(quantize)
    if device_map is not None:
        check_device_map(device_map)
    location, options = _resolve_location(str(name))
    local = Path(location).is_dir()
    explain = (
        "a model must be a Hugging Face name, a folder with safetensors, or a .gguf file, "
        f"but {name} cannot be opened: {{}}{'' if local else _HUB_HINT}"
    ).format
    options |= {"trust_remote_code": trust_remote_code}
    silenced = silence_transformers() if local else silence_hub_retries()
    with silenced, parse_gguf_once() if "gguf_file" in options else nullcontext(), convert_load_errors(explain):
        folder = Path(location) if local else find_snapshot(location, revision)
        if stream_layers and "gguf_file" in options:
            raise BrokenModelError("the layers of a .gguf file cannot be streamed; give a folder with safetensors")
        if quantize is not None:
            _check_quantizable("gguf_file" in options, stream_layers)
        if device_map is not None:
            check_can_spread(is_gguf="gguf_file" in options, stream_layers=stream_layers)
        config, stored = _read_config(location, folder, revision, options, stream_layers=stream_layers)
        if stream_layers:
            model = build_streamed_model(str(name), config, folder, dtype, device, trust_remote_code=trust_remote_code)
        else:
            model = _build_checked_model(
                str(name), location, config, stored, revision, dtype, device, quantize, device_map, options
            )
        vocab_size = getattr(config.get_text_config(), "vocab_size", None)
        if not local:
            model.config._commit_hash = folder.name  # of the snapshot; transformers leaves it empty
        tokenizer = load_model_tokenizer(location, folder, vocab_size, revision, options)
        if tokenizer is None and require_tokenizer:
            raise BrokenModelError(
                "it has no tokenizer; add its files, or pass require_tokenizer=False, which returns None in its place"
            )
        is_placed = stream_layers or device_map is not None or is_quantized(model)  # loaded where it runs
        if not is_placed:
            model.to(device)  # pyright: ignore[reportArgumentType] transformers wraps torch's method
        return model.eval(), tokenizer


def _build_checked_model(
    name: str,
    location: str,
    config: PreTrainedConfig,
    stored: StoredWeights | None,
    revision: str,
    dtype: torch.dtype | str,
    device: torch.device | str,
    quantize: Quantization | None,
    device_map: DeviceMap | None,
    options: dict[str, Any],
) -> PreTrainedModel:
    """Build a model in memory; its size is checked before, and its weights afterwards."""
    quantized, num_bytes, more_options = False, None, {}
    if "gguf_file" not in options:
        quantized, num_bytes, more_options = _choose_quantization(config, stored, dtype, device, quantize)
    with ExitStack() as resources:
        if device_map is not None:
            if quantized:
                raise BrokenModelError("quantised weights cannot be spread by a device_map; omit it")
            num_bytes, more_options = 0, make_spread_options(device_map, resources)  # the memory need not hold them
        with limit_model_size(stored, dtype, quantized=quantized, num_bytes=num_bytes):
            model = _build_model(name, location, config, revision, dtype, options | more_options)
        close_with_model(model, resources)
    compute_in_model_dtype(model)
    if quantize is not None and not is_quantized(model):
        raise BrokenModelError(
            f"{type(model).__name__} has no linear module that can be quantised in this way; quantise it to nf4, or "
            "omit quantize"
        )
    check_stored_types(name, model, stored, quantized and quantize is None)
    check_weight_values(name, model)
    return model


def _choose_quantization(
    config: PreTrainedConfig,
    stored: StoredWeights | None,
    dtype: torch.dtype | str,
    device: torch.device | str,
    quantize: Quantization | None,
) -> tuple[bool, float | None, dict[str, Any]]:
    """Return whether weights are quantised, the least memory that they need, and options of transformers for them."""
    method, on_device = get_stored_method(config), {"device_map": {"": device}}
    if quantize is None:
        if method is not None:
            check_packages(method)
        num_bytes = None if method is None or stored is None else stored.num_bytes
        return method is not None, num_bytes, on_device if method in PACKAGES else {}
    if method is not None:
        raise BrokenModelError(f"its weights are stored quantised by {method} already; omit quantize")
    options = {"quantization_config": make_quantization_config(quantize, dtype), **on_device}
    return True, bound_bytes(quantize, stored.elements) if stored else None, options


def _build_model(
    name: str,
    location: str,
    config: PreTrainedConfig,
    revision: str,
    dtype: torch.dtype | str,
    options: dict[str, Any],
) -> PreTrainedModel:
    """Build the model of a config and load its weights, which must match."""
    with convert_load_errors("config.json and the weights make no model: {}".format, into=BrokenModelError):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location,
            config=config,
            revision=revision,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported in the loading info, and refused with their names
            **options,
            **({} if "gguf_file" in options else {"use_safetensors": True}),  # pickled weights are never read
        )
    model, loading_info = loaded
    check_weights_match(name, loading_info, ("missing_keys", "mismatched_keys"))
    check_all_layers_used(name, model, loading_info)
    return model


def _read_config(
    location: str, folder: Path, revision: str, options: dict[str, Any], *, stream_layers: bool
) -> tuple[PreTrainedConfig, StoredWeights | None]:
    """Read the config and the sizes of the weights, and check that both can be those of a causal language model.

    The sizes are not read for streaming: that would map the files into memory.
    """
    trusted = options["trust_remote_code"]
    if "gguf_file" in options:
        file = folder / options["gguf_file"]
        with convert_load_errors(f"{file.name} is not a complete GGUF file: {{}}".format, into=BrokenModelError):
            stored = read_gguf_weights(file)
            return AutoConfig.from_pretrained(location, **options), stored
    check_config_file(folder, trust_remote_code=trusted)
    with convert_load_errors("config.json cannot be used: {}".format, into=BrokenModelError):
        config = AutoConfig.from_pretrained(location, revision=revision, **options)
    check_causal_lm(config, trust_remote_code=trusted)
    if folder != Path(location):
        download_weights(location, revision)
    return config, None if stream_layers else read_stored_weights(folder)


def _check_quantizable(is_gguf: bool, stream_layers: bool) -> None:
    """Check that weights are read in a way in which they can be quantised."""
    if is_gguf:
        raise BrokenModelError(
            "the weights of a .gguf file are quantised already, and become floating-point numbers when they are "
            "loaded; omit quantize, or give a folder with safetensors"
        )
    if stream_layers:
        raise BrokenModelError(
            "layers that are read from files whenever they run cannot be quantised; omit one of both"
        )


def is_decoder_folder(path: Path) -> bool:
    """Return whether a folder contains a decoder of this package.

    Args:
        path: the folder.
    """
    if not (path / "config.json").is_file():
        return False
    try:
        model_type = read_json_object(path / "config.json").get("model_type")
    except BrokenModelError:
        return False  # not one of ours; loading it says what is wrong
    return model_type in {config.model_type for config in DECODER_CLASSES}


def weights_fingerprint(name: Path | str, model: PreTrainedModel | None = None) -> str:
    """Return an identifier of a model's weights: the commit of a Hub name, or a hash of file sizes and dates.

    Args:
        name: the name or path from which the model was loaded.
        model: the loaded model, which knows its commit.

    Returns:
        The identifier; empty if it is unknown.
    """
    path = Path(name).expanduser()
    if not path.exists():
        return str(getattr(model and model.config, "_commit_hash", None) or "")
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors*")) + sorted(path.glob("*.json"))
    file_stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return sha256(repr(file_stats).encode()).hexdigest()[:16]


def make_untrained_factory(model: PreTrainedModel) -> Callable[[int], PreTrainedModel]:
    """Return a factory of randomly initialised models of the same architecture.

    The factory keeps the configuration only, so that the model can be freed before another one is built.

    Args:
        model: any model of transformers, or a decoder.

    Returns:
        A function from a seed to a model, initialised as in the authors' training code.
    """
    kind, config, dtype, device = type(model), deepcopy(model.config), model.dtype, model.device
    kernel = model.config._attn_implementation

    def build_untrained(seed: int) -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = kind._from_config(config, dtype=dtype, attn_implementation=kernel)
        return made.eval().to(device)  # pyright: ignore[reportArgumentType] transformers wraps torch's method

    return build_untrained


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Disable progress bars and log messages of transformers inside the context."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _advise_on_file(path: Path) -> str:
    """Return what a file is that is no model, and what to do."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        advice = "save its weights as safetensors, and pass a module of your own to mesascope.wrap"
        return f"a pickle, which is never read; {advice}"
    return f"another file; give its folder {path.parent}"


def _resolve_location(name: str) -> tuple[str, dict[str, Any]]:
    """Return the path or name to pass to transformers, and the option that names a GGUF file."""
    with convert_load_errors(f"the path of a model must exist, but {name[:200]} cannot be read: {{}}".format):
        path = Path(name).expanduser()
        path.exists()  # fails for names that are too long
    if path.suffix.lower() != ".gguf":
        if path.is_file():
            raise ModelNotFound(f"a model must be a folder or a .gguf file, but {name} is {_advise_on_file(path)}")
        if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
            raise ModelNotFound(f"the path of a model must exist, but {name} does not exist; check the path")
        return (str(path) if path.exists() else name), {}
    if not path.is_file():
        raise ModelNotFound(f"a .gguf file must exist, but {name} does not exist; check the path")
    check_installed(f"loading {path.name} needs", ["gguf", "accelerate"], "gguf", error=ModelNotFound)
    return str(path.parent), {"gguf_file": path.name}
