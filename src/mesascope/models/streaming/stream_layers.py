"""Models whose layers are read from safetensors files when they run, and released afterwards."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from mesascope.models._size_limit import limit_declared_size
from mesascope.models._weight_files import StoredWeights
from mesascope.models.load_errors import BrokenModelError, ModelNotFound, check_installed, convert_load_errors
from mesascope.models.streaming.tensor_files import StoredTensor, read_tensor_table
from mesascope.models.weight_checks import check_all_layers_used, check_weight

HALF_PRECISION = (torch.float16, torch.bfloat16)
ADVICE = "load the model without stream_layers"


class StreamedWeights(Mapping[str, Tensor]):
    """The weights of streamed layers, read from their files at every access.

    Args:
        stored: the tensors by the names that they have in the model.

    Attributes:
        num_reads: how often each tensor was read.
    """

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self._stored = dict(stored)
        self.num_reads: Counter[str] = Counter()

    def __getitem__(self, name: str) -> Tensor:
        """Read a weight.

        Args:
            name: its name in the model.

        Raises:
            KeyError: there is none of this name.
            BrokenModelError: its file has changed.
        """
        values = self._stored[name].read()
        self.num_reads[name] += 1
        return values

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of all weights."""
        return iter(self._stored)

    def __len__(self) -> int:
        """Return the number of weights."""
        return len(self._stored)


def build_streamed_model(
    name: str,
    config: PreTrainedConfig,
    folder: Path,
    dtype: torch.dtype | str,
    device: torch.device | str,
    *,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """Build a causal language model whose layers are read from files when they run.

    The layers are the elements of the largest ``nn.ModuleList``. All other weights, such as embeddings and output head,
    are in memory. Weights of layers are on the meta device; hooks of accelerate load those of each module before it
    runs, and drop them afterwards. They need no gradient.

    Args:
        name: the name of the model, for messages.
        config: its config.
        folder: its folder, with safetensors.
        dtype: type of the weights in memory; ``"auto"`` for that of the config, or in which they are stored.
        device: device on which the modules run.
        trust_remote_code: whether Python code that comes with the model may run.

    Returns:
        The model, in evaluation mode.

    Raises:
        ModelNotFound: weights are missing, have other names or shapes, or are not finite.
        BrokenModelError: the model cannot be streamed; the message says why.
    """
    _check_streamable(config)
    from accelerate.big_modeling import init_empty_weights  # an optional dependency
    from accelerate.hooks import attach_align_device_hook

    table = read_tensor_table(folder)
    if dtype == "auto":
        dtype = config.dtype or next(one.dtype for one in table.values())
    with (
        convert_load_errors("config.json and the weights make no model: {}".format, into=BrokenModelError),
        limit_declared_size(_sum_sizes(table)),
        init_empty_weights(include_buffers=False),
    ):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    model.tie_weights()  # empty weights are not tied while the model is built
    if model.dtype in HALF_PRECISION and (model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict):
        raise BrokenModelError(f"some of its modules stay in float32, which streaming does not support; {ADVICE}")
    stored = _match_weights(name, model, table)
    layers = find_streamed_layers(model)
    for names, declared in _group_tied(model):
        values = stored[names[0]].read().to(declared.dtype)
        check_weight(name, names[0], values)
        if not (isinstance(declared, nn.Parameter) and all(_is_within(key, layers) for key in names)):
            _set_tensor(model, names, values.to(device))
    weights = StreamedWeights({key: one for key, one in stored.items() if _is_within(key, layers)})
    for layer in layers:
        attach_align_device_hook(
            model.get_submodule(layer),
            execution_device=torch.device(device),
            offload=True,
            weights_map=weights,
            module_name=layer,
        )
    for module in model.modules():
        for key, buffer in module.named_buffers(recurse=False):
            module.register_buffer(key, buffer.to(device), persistent=key not in module._non_persistent_buffers_set)
    return model.eval().requires_grad_(False)


def find_streamed_layers(model: nn.Module) -> list[str]:
    """Return the names of the elements of the largest ``nn.ModuleList`` of a model.

    Args:
        model: the model.

    Raises:
        BrokenModelError: it has none.
    """
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise BrokenModelError(f"its layers are in no nn.ModuleList, so that they cannot be streamed; {ADVICE}")
    name, layers = max(lists, key=lambda one: sum(parameter.numel() for parameter in one[1].parameters()))
    return [f"{name}.{number}" for number in range(len(layers))]


def get_streamed_weights(module: nn.Module) -> StreamedWeights | None:
    """Return the weights that a module reads from files when it runs; ``None`` if it has its weights in memory.

    Args:
        module: a module of any model.
    """
    source = getattr(getattr(vars(module).get("_hf_hook"), "weights_map", None), "dataset", None)
    return source if isinstance(source, StreamedWeights) else None


def find_streamed_weights(model: nn.Module) -> StreamedWeights | None:
    """Return the weights of the streamed layers of a model; ``None`` if it has all weights in memory.

    Args:
        model: the model.
    """
    return next((weights for module in model.modules() if (weights := get_streamed_weights(module))), None)


def _check_streamable(config: PreTrainedConfig) -> None:
    check_installed("streaming its layers needs", ["accelerate"], "stream")
    if getattr(config, "quantization_config", None) is not None:
        raise BrokenModelError(f"its weights are quantised, which streaming does not support; {ADVICE}")


def _sum_sizes(table: Mapping[str, StoredTensor]) -> StoredWeights:
    sizes = [torch.Size(one.shape).numel() for one in table.values()]
    num_bytes = sum(one.num_bytes for one in table.values())
    return StoredWeights(tensors=len(sizes), elements=sum(sizes), num_bytes=num_bytes)


def _match_weights(name: str, model: PreTrainedModel, table: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the stored tensor of every weight and every persistent buffer of a model.

    Raises:
        ModelNotFound: one is missing, has another shape or holds integers, or layers of the files are not used.
    """
    prefix = f"{model.base_model_prefix}."
    found, used = dict[str, StoredTensor](), set[str]()
    for names, declared in _group_tied(model):
        candidates = [name for key in names for name in (key, key.removeprefix(prefix), prefix + key)]
        available = [candidate for candidate in dict.fromkeys(candidates) if candidate in table]
        if not available:
            raise ModelNotFound(
                f"the weights of {name} must have the names of the model's own, to stream its layers, but {names[0]} "
                f"is missing; {ADVICE}, save it with save_pretrained, and stream the saved one"
            )
        first = table[available[0]]
        if any(not torch.equal(first.read(), table[other].read()) for other in available[1:]):
            raise ModelNotFound(
                f"tied weights of {name} must be equal, but {', '.join(available)} differ; {ADVICE}, which unties them"
            )
        if first.shape != tuple(declared.shape):
            raise ModelNotFound(
                f"the weights of {name} must match config.json, but {available[0]} has shape {first.shape} instead of "
                f"{tuple(declared.shape)}; get the complete model"
            )
        if declared.is_floating_point() and not first.dtype.is_floating_point:
            raise ModelNotFound(
                f"the weights of {name} must be floating-point numbers, but {available[0]} has integers; get the "
                "complete model"
            )
        found |= dict.fromkeys(names, first)
        used.update(available)
    check_all_layers_used(name, model, {"unexpected_keys": set(table) - used})
    return found


def _group_tied(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Return all weights and persistent buffers with their names; tied weights have several."""
    groups: dict[int, tuple[list[str], Tensor]] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), ([], tensor))[0].append(key)
    return list(groups.values())


def _is_within(key: str, layers: Sequence[str]) -> bool:
    return any(key.startswith(f"{layer}.") for layer in layers)


def _set_tensor(model: nn.Module, names: Sequence[str], values: Tensor) -> None:
    """Set the values of a weight or buffer that has some names."""
    parameter = nn.Parameter(values, requires_grad=False) if values.is_floating_point() else values
    for key in names:
        path, _, leaf = key.rpartition(".")
        module = model.get_submodule(path)
        setattr(module, leaf, values if leaf in module._buffers else parameter)
