"""Quantisation of a model while it is loaded: named schemes, or a configuration of transformers."""

import json
from importlib import import_module
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig, TorchAoConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from mesascope.models.load_errors import BrokenModelError, check_installed

SCHEMES = ("int8", "int4", "nf4")
PACKAGES = {"torchao": ("torchao", "accelerate"), "bitsandbytes": ("bitsandbytes", "accelerate")}  # by quant_method
INT4_GROUP = 32  # entries of a row that share a scale: torchao's smallest usual group
BYTES_PER_WEIGHT = {"int8": 1.0, "int4": 1.0, "nf4": 0.5}  # torchao stores 4-bit integers for processors in bytes
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Quantization = str | QuantizationConfigMixin


def make_quantization_config(quantize: Quantization, dtype: torch.dtype | str) -> QuantizationConfigMixin:
    """Return the configuration with which transformers quantises a model while it loads it.

    Args:
        quantize: ``int8`` or ``int4`` for integers of torchao, ``nf4`` for 4-bit NormalFloat of bitsandbytes (Dettmers
            et al. 2023, QLoRA), or a configuration of transformers.
        dtype: the precision of all other weights, and of the products.

    Returns:
        The configuration. With a name, weights are quantised, activations are not: ``int8`` has a scale per row of a
        matrix, ``int4`` one per 32 entries of a row, and ``nf4`` one per 64 entries.

    Raises:
        BrokenModelError: its library is not installed, or it does not support the dtype.
    """
    if isinstance(quantize, QuantizationConfigMixin):
        check_packages(quantize.quant_method)
        return quantize
    if dtype != "auto" and dtype not in DTYPES:
        raise BrokenModelError(f"quantised weights need float32, bfloat16 or float16, but the dtype is {dtype}")
    check_packages("bitsandbytes" if quantize == "nf4" else "torchao")
    if quantize == "nf4":
        compute_dtype = None if dtype == "auto" else dtype  # float32
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype)
    torchao = import_module("torchao.quantization")
    if quantize == "int8":
        return TorchAoConfig(torchao.Int8WeightOnlyConfig())
    granularity = import_module("torchao.quantization.granularity").PerGroup(INT4_GROUP)
    four_bits = torch.int4  # pyright: ignore[reportAttributeAccessIssue] the stubs of torch lack it
    return TorchAoConfig(torchao.IntxWeightOnlyConfig(weight_dtype=four_bits, granularity=granularity))


def check_scheme(quantize: object) -> None:
    """Check that a model can be quantised in a given way.

    Args:
        quantize: the name of a scheme, or a configuration of transformers.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(quantize, QuantizationConfigMixin) and quantize not in SCHEMES:
        raise ValueError(
            f"quantize must be {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}, or a quantization config of transformers, "
            f"but got {quantize!r}"
        )


def name_quantization(quantize: Quantization) -> str:
    """Return a text that identifies a quantisation, for a record.

    Args:
        quantize: the name of a scheme, or a configuration of transformers.
    """
    return quantize if isinstance(quantize, str) else json.dumps(quantize.to_dict(), sort_keys=True, default=str)


def bound_bytes(quantize: Quantization, num_weights: int) -> float:
    """Return the least memory that a quantised model needs.

    Args:
        quantize: the name of a scheme, or a configuration of transformers.
        num_weights: the number of its weights.

    Returns:
        The bytes, as if all weights were quantised; those of an unknown scheme have at least 4 bits.
    """
    return num_weights * (BYTES_PER_WEIGHT[quantize] if isinstance(quantize, str) else 0.5)


def get_stored_method(config: PreTrainedConfig) -> str | None:
    """Return the method by which the weights of a model are stored quantised, such as ``torchao``, or ``None``.

    Args:
        config: the configuration of the model.
    """
    stored: Any = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    return "an unknown method" if method is None else str(getattr(method, "value", method))


def check_packages(method: object) -> None:
    """Check that the packages are installed that load weights of a method.

    Args:
        method: the method, such as ``torchao``; others than torchao and bitsandbytes are left to transformers.

    Raises:
        BrokenModelError: one is missing.
    """
    name = str(getattr(method, "value", method))
    check_installed(f"quantised weights of {name} need", PACKAGES.get(name, ()), "quantized")
