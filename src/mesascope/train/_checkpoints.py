"""Start and checkpoints of a training, all that resuming needs."""

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mesascope.checksums import read_record
from mesascope.models.config import DecoderConfig
from mesascope.models.load import find_decoder_class, load_checkpoint, silence_transformers
from mesascope.models.transformer import Decoder
from mesascope.store import TRAINING_FILE, Run, RunError, verify_checkpoint
from mesascope.store.user_code import hash_user_code
from mesascope.tasks.base import Task
from mesascope.train._batches import INIT_STREAM, derive_seed
from mesascope.train._config import TrainingConfig
from mesascope.train._model_card import MODEL_CARD, format_model_card
from mesascope.train._optimizer_state import restore_state, state_tensors


def initialise_training(
    config: DecoderConfig, training: TrainingConfig, seed: int, checkpoint: Path | None, device: str
) -> tuple[Decoder, torch.optim.Optimizer, int]:
    """Build the model and the optimizer, and load a checkpoint if there is one.

    Args:
        config: The decoder configuration.
        training: The training configuration.
        seed: The training replicate; it determines the initial weights.
        checkpoint: The checkpoint to resume from, or None.
        device: The device to train on.

    Returns:
        The model in training mode, its optimizer, and the number of updates taken.

    Raises:
        CheckpointDamaged: If the checkpoint does not match its manifest.
    """
    model = _build_decoder(config, training, seed, checkpoint)
    torch.nn.Module.to(model, device)  # in place
    optimizer = training.optimizer.build_optimizer(model)
    return model, optimizer, 0 if checkpoint is None else _restore_optimizer(optimizer, model, checkpoint)


def save_checkpoint(
    run: Run, seed: int, model: Decoder, optimizer: torch.optim.Optimizer, step: int, *, rolling: bool = False
) -> None:
    """Save the weights and the optimizer state, all that resuming needs, and a model card.

    Args:
        run: Stores the checkpoint.
        seed: The training replicate.
        model: The model.
        optimizer: Its optimizer.
        step: Updates taken.
        rolling: Write the rolling checkpoint, which the next one overwrites.

    Raises:
        RunError: If the file system refuses.
    """

    def write_files(folder: Path) -> None:
        with silence_transformers():
            model.save_pretrained(folder)
        save_file(state_tensors(optimizer, model), folder / "state.safetensors")
        if not rolling:
            (folder / MODEL_CARD).write_text(format_model_card(run, seed, step), encoding="utf-8")

    run.write_checkpoint(seed, step, write_files, rolling=rolling)


def record_training_config(run: Run, task: Task, config: DecoderConfig, training: TrainingConfig, seed: int) -> None:
    """Store the training configuration next to the checkpoints, or check that it matches the stored one.

    Args:
        run: The run.
        task: The task.
        config: The decoder configuration.
        training: The training configuration.
        seed: The training replicate.

    Raises:
        RunError: If the folder holds checkpoints of another configuration.
    """
    folder, settings = run.seed_path(seed), _describe_training(task, config, training, seed)
    file = folder / f"{TRAINING_FILE}.json"
    if file.exists():
        stored = read_record(file, "training", f"delete {folder} and run again to train this seed again")
        _check_same_settings(folder, stored, settings, type(config))
    else:
        run.write_record(str(file.relative_to(run.path).with_suffix("")), settings, "training")


def _build_decoder(config: DecoderConfig, training: TrainingConfig, seed: int, checkpoint: Path | None) -> Decoder:
    """Build the decoder on the CPU, with the weights of the checkpoint or with initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, INIT_STREAM))
        model = find_decoder_class(config)(copy.deepcopy(config)).train()
    torch.nn.Module.to(model, dtype=training.weight_dtype)  # in place
    if checkpoint is not None:
        # copied, not used in place: memory-mapped weights can be aligned differently, which changes the order of sums
        # in a matrix product, and so the last bit
        model.load_state_dict(load_checkpoint(checkpoint).state_dict(), strict=True)
    return model


def _restore_optimizer(optimizer: torch.optim.Optimizer, model: Decoder, checkpoint: Path) -> int:
    """Restore the optimizer's state, and return the number of updates taken."""
    restore_state(optimizer, model, load_file(checkpoint / "state.safetensors"))
    return verify_checkpoint(checkpoint)


def _describe_training(task: Task, config: DecoderConfig, training: TrainingConfig, seed: int) -> dict[str, Any]:
    return {
        "task": _describe_value(task),
        "model": {key: getattr(config, key) for key in _config_arguments(type(config))},
        **({"model type": config.model_type} if config.model_type != DecoderConfig.model_type else {}),
        "training": _describe_value(training),
        "seed": seed,
        "torch seed": derive_seed(seed, INIT_STREAM),
        **({"data": task.token_digest} if task.token_digest else {}),
        **({"code": code} if (code := hash_user_code(task, config, training)) else {}),
    }


def _check_same_settings(
    folder: Path, stored: dict[str, Any], settings: dict[str, Any], config: type[DecoderConfig]
) -> None:
    completed = {
        **stored,
        "model": {**_config_defaults(config), **stored.get("model", {})},
    }
    differing = [
        key for key in {**completed, **settings} if completed.get(key) != settings.get(key) and key != "format"
    ]
    if differing:
        raise RunError(
            f"{folder} must be trained with one configuration, but holds another "
            f"{' and '.join(differing)}; choose another directory, or delete that folder"
        )


def _describe_value(value: object) -> str:
    """Return the representation of a value without memory addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _config_arguments(config: type[DecoderConfig]) -> list[str]:
    return [*(a.name for a in _list_arguments(config) if a.kind is a.KEYWORD_ONLY), "tie_word_embeddings"]


def _config_defaults(config: type[DecoderConfig]) -> dict[str, Any]:
    return {a.name: a.default for a in _list_arguments(config) if a.default is not a.empty}


def _list_arguments(config: type[DecoderConfig]) -> list[inspect.Parameter]:
    """List the arguments of a configuration: the decoder's, and those that a subclass adds or gives other defaults."""
    signatures = (inspect.signature(each.__init__).parameters for each in (DecoderConfig, config))
    return list({name: argument for each in signatures for name, argument in each.items()}.values())
