"""Checks of a model's config.json before anything is built from it."""

import re
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING_NAMES

from mesascope.models._weight_files import read_json_object
from mesascope.models.load_errors import BrokenModelError

TRUST_HINT = "pass --trust-remote-code (trust_remote_code=True in Python) if you trust its author"
MAX_COUNT = 100_000  # of layers, heads, experts or labels: lists of this length are built before any weight is known
_COUNT_NAME = re.compile(r"^(n|num)_.*(layer|head|expert|block|group|label)s?(_per_\w+)?$|^(layers|heads|depth)$")
_OTHER_TASK = re.compile(
    r"For(SequenceClassification|TokenClassification|MultipleChoice|QuestionAnswering|MaskedLM|PreTraining|NextSentence"
    r"Prediction|(Image|Audio|Video)\w*)$|RewardModel$"
)


def check_config_file(folder: Path, *, trust_remote_code: bool) -> None:
    """Check the config of a folder before transformers reads it.

    Args:
        folder: The folder of the model.
        trust_remote_code: Whether Python code of the model may run.

    Raises:
        BrokenModelError: The folder is that of an adapter or of a training, its config is broken, or it needs code that
            is not trusted.
    """
    if not (folder / "config.json").is_file():
        raise BrokenModelError(_explain_folder_without_config(folder))
    config = read_json_object(folder / "config.json")
    if (folder / "adapter_config.json").is_file():
        raise BrokenModelError(_explain_folder_without_config(folder))
    _check_counts(config)
    if not trust_remote_code and _needs_own_code(config):
        raise BrokenModelError(
            f"it needs Python code of its own (auto_map in config.json), which is not run; {TRUST_HINT}"
        )


def check_causal_lm(config: PreTrainedConfig, *, trust_remote_code: bool) -> None:
    """Check that a config is that of a causal language model.

    Args:
        config: The config.
        trust_remote_code: Whether Python code of the model may run, which may define other classes.

    Raises:
        BrokenModelError: It is another kind of model; the message says which.
    """
    if trust_remote_code and _needs_own_code(config.to_dict()):
        return
    name = next(iter(_list_architectures(config.architectures)), type(config).__name__)
    backbones = [
        one for names in MODEL_MAPPING_NAMES.values() for one in ([names] if isinstance(names, str) else names)
    ]
    if getattr(config, "is_encoder_decoder", False):
        kind = "an encoder-decoder"
    elif _OTHER_TASK.search(name):
        kind = "a model for another task"
    elif type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "a model without a causal language model class in transformers"
    elif name in backbones:
        kind = "a backbone without the head of a language model"
    else:
        return
    raise BrokenModelError(f"{name} ({config.model_type}) is {kind}; give a causal language model")


def _explain_folder_without_config(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "it is a PEFT adapter; load it with its base model, call merge_and_unload() and save the result"
    checkpoints = sorted(file.parent.name for file in folder.glob("*/config.json"))
    if checkpoints:
        some = ", ".join(checkpoints[:4])
        return f"it has no config.json, but its folders {some} have one; give one of them, or several with --steps"
    return "it has no config.json"


def _check_counts(value: object, name: str = "config.json", depth: int = 0) -> None:
    """Check numbers of layers, heads and labels, at all levels."""
    if isinstance(value, dict) and depth < 10:
        for key, inner in value.items():
            if _COUNT_NAME.match(str(key)) and isinstance(inner, int) and not 0 <= inner <= MAX_COUNT:
                raise BrokenModelError(f"{name} must have {key} between 0 and {MAX_COUNT}, but it is {inner}")
            _check_counts(inner, name, depth + 1)


def _needs_own_code(config: dict[str, Any]) -> bool:
    """Return whether transformers has no class of its own for a config that comes with code."""
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict) or not {"AutoConfig", "AutoModelForCausalLM"} & set(auto_map):
        return False
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return True
    if CONFIG_MAPPING[model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return True
    classes = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
    mapped = [one.__name__ for one in (classes if isinstance(classes, tuple | list) else (classes,)) if one]
    return not set(_list_architectures(config.get("architectures"))) & set(mapped)


def _list_architectures(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
