"""Models that accelerate spreads over devices, the processor's memory and the disk."""

from collections.abc import Mapping
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any
from weakref import finalize

import torch
from torch import nn

from mesascope.models.load_errors import BrokenModelError, check_installed

DeviceMap = str | Mapping[str, int | str | torch.device]
NAMED_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def check_device_map(device_map: object) -> None:
    """Check that a value is a device map.

    Args:
        device_map: the value.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(device_map, Mapping) and device_map not in NAMED_MAPS:
        raise ValueError(
            f"device_map must be {', '.join(NAMED_MAPS[:-1])} or {NAMED_MAPS[-1]}, or name the device of every part, "
            f"but got {device_map!r}"
        )


def check_can_spread(*, is_gguf: bool, stream_layers: bool) -> None:
    """Check that weights are read in a way in which a device map can spread them.

    Args:
        is_gguf: whether they are in a ``.gguf`` file.
        stream_layers: whether layers are read whenever they run.

    Raises:
        BrokenModelError: they are not, or accelerate is not installed.
    """
    check_installed("a device_map needs", ["accelerate"], "stream")
    if is_gguf:
        raise BrokenModelError(
            "a .gguf file cannot be spread by a device_map; omit it, or give a folder with safetensors"
        )
    if stream_layers:
        raise BrokenModelError("layers that are read whenever they run need no device_map; omit one of both")


def make_spread_options(device_map: DeviceMap, resources: ExitStack) -> dict[str, Any]:
    """Return the options of transformers that spread a model, with a folder for weights on the disk.

    Args:
        device_map: the device map.
        resources: removes the folder when it is closed.
    """
    folder = resources.enter_context(TemporaryDirectory(prefix="mesascope-offloaded-"))
    return {
        "device_map": device_map if isinstance(device_map, str) else dict(device_map),
        "offload_folder": folder,
    }


def close_with_model(model: nn.Module, resources: ExitStack) -> None:
    """Close resources when a model is deleted.

    Args:
        model: the model.
        resources: what it needs until then.
    """
    finalize(model, resources.pop_all().close)
