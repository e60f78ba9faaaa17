"""A decoder that several processes train together, with PyTorch's DDP or FSDP2."""

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mesascope.models.config import DecoderConfig
from mesascope.models.fused import fused_attention
from mesascope.models.transformer import Decoder
from mesascope.tasks.base import Batch, Task, training_loss
from mesascope.train._checkpoints import initialise_training
from mesascope.train._config import TrainingConfig
from mesascope.train._optimizer_state import restore_state, state_tensors
from mesascope.train._step import check_finite, update_weights

ParallelStrategy = Literal["ddp", "fsdp"]
"""``ddp``: every process has all weights; ``fsdp``: every process has a part of them."""

Optimizer = torch.optim.Optimizer


class ParallelModel:
    """The part that this process has of a decoder, which all processes of the default process group train together.

    Args:
        config: The decoder configuration.
        training: The training configuration.
        seed: The training replicate; it determines the initial weights.
        checkpoint: The checkpoint to resume from, which all processes can read, or None.
        strategy: ``ddp`` or ``fsdp``.
        device: The device of this process.
    """

    def __init__(
        self,
        config: DecoderConfig,
        training: TrainingConfig,
        seed: int,
        checkpoint: Path | None,
        strategy: ParallelStrategy,
        device: str,
    ) -> None:
        self._training, self._device = training, device
        self._is_first, self._is_sharded = dist.get_rank() == 0, strategy == "fsdp"
        self._has_bucket_order = self._is_sharded
        home = "cpu" if self._is_sharded else device
        decoder, optimizer, self.num_updates = initialise_training(config, training, seed, checkpoint, home)
        self._saved = (decoder, optimizer) if self._is_first else None
        if self._is_sharded:
            state = state_tensors(optimizer, decoder)
            self._decoder = copy.deepcopy(decoder) if self._is_first else decoder
            _shard_decoder(self._decoder, torch.device(device).type)
            self._optimizer = training.optimizer.build_optimizer(self._decoder)
            if isinstance(self._optimizer, torch.optim.SGD):  # whose fused kernel does not take sharded tensors
                for group in self._optimizer.param_groups:
                    group.update(fused=False, foreach=True)
            restore_state(self._optimizer, self._decoder, _shard_state(state, self._decoder, device))
            self._forward: nn.Module = self._decoder
        else:
            self._decoder, self._optimizer = decoder, optimizer
            self._forward = DistributedDataParallel(decoder)

    def take_step(
        self, task: Task, batch: Batch, step: int, where: str, *, request_save: bool
    ) -> tuple[float, float, bool]:
        """Take one training step; every process computes the gradient of its share of the sequences.

        The loss is that of the whole batch: the sums of weighted losses over the shares, divided by the sum of all
        weights.

        Args:
            task: Defines the loss.
            batch: The whole batch, the same in all processes, on the CPU.
            step: Updates taken before this one.
            where: The seed and step, for error messages.
            request_save: Whether the first process wants to save; ignored in the others.

        Returns:
            The loss of the whole batch before the update, the gradient norm, and whether the first process wants to
            save. They are the same in all processes.

        Raises:
            TrainingDiverged: If the loss or the gradient is not finite, in all processes; the weights are unchanged.
        """
        total_weight = batch.weight.to(self._training.weight_dtype).sum().to(self._device)
        shard = batch[select_shard(len(batch))].to(self._device, self._training.weight_dtype)
        if not self._has_bucket_order:
            self._fix_bucket_order(shard)
        loss = training_loss(task, self._predict(shard), shard, total_weight)
        value, wants_save = self._sum_over_processes(loss.item(), float(request_save and self._is_first))
        check_finite(value, "loss", where)
        self._optimizer.zero_grad()
        (loss * dist.get_world_size()).backward()  # gradients are averaged over processes
        norm, _ = update_weights(self._optimizer, self._training, step, where)
        return value, norm, wants_save > 0

    def gather(self) -> tuple[Decoder, Optimizer] | None:
        """Gather all weights and the optimizer state in the first process; called by all processes.

        Returns:
            Decoder and optimizer as in a training by one process; None in the other processes.
        """
        if self._is_sharded:
            weights = _gather_tensors(dict(self._decoder.named_parameters()), keep=self._is_first)
            state = _gather_tensors(_list_state(self._optimizer, self._decoder), keep=self._is_first)
            if self._saved is not None:
                decoder, optimizer = self._saved
                _copy_weights(decoder, weights)
                restore_state(optimizer, decoder, state)
        return self._saved

    def _predict(self, batch: Batch) -> Tensor:
        with fused_attention(self._decoder, batch.inputs.shape[1]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*returned a view tensor")  # nothing is written into the logits
            return self._forward(batch.inputs).logits

    def _fix_bucket_order(self, batch: Batch) -> None:
        """Run one backward pass whose gradients are dropped.

        After the first backward pass, DDP moves gradients to other places in its buckets, which changes the order of
        sums over more than two processes. The first step after a resume would differ from that without interruption.
        """
        self._predict(batch).sum().backward()
        self._has_bucket_order = True

    def _sum_over_processes(self, *values: float) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return total.tolist()


def select_shard(batch_size: int) -> slice:
    """Return the rows of a batch that this process computes.

    Args:
        batch_size: Sequences of the batch, a multiple of the number of processes.
    """
    size = batch_size // dist.get_world_size()
    return slice(dist.get_rank() * size, (dist.get_rank() + 1) * size)


def broadcast_value(value: Any) -> Any:
    """Return the value of the first process in all processes.

    Args:
        value: A picklable value; ignored in the other processes.
    """
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _shard_decoder(decoder: Decoder, device_type: str) -> None:
    """Shard the parameters in place, layer by layer; parameters that layers share are gathered all at once."""
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    if not decoder.config.share_layers:
        for layer in decoder.layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(decoder, mesh=mesh)


def _shard_state(state: Mapping[str, Tensor], decoder: Decoder, device: str) -> dict[str, Tensor]:
    """Shard the optimizer's state like its parameters; step counts stay whole."""
    parameters, sharded = dict(decoder.named_parameters()), {}
    for path, tensor in state.items():
        parameter = parameters[path.rsplit("/", 1)[0]]
        if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
            sharded[path] = distribute_tensor(tensor.to(device), parameter.device_mesh, parameter.placements)
        else:
            sharded[path] = tensor
    return sharded


def _list_state(optimizer: Optimizer, decoder: Decoder) -> dict[str, Tensor]:
    """Return the tensors of an optimizer's state as they are, by ``PARAMETER/KEY``."""
    return {
        f"{name}/{key}": value
        for name, parameter in decoder.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


@torch.no_grad()
def _gather_tensors(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Gather tensors one after another; return them on the CPU, or nothing."""
    gathered = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            gathered[name] = full.cpu().contiguous()
    return gathered


@torch.no_grad()
def _copy_weights(decoder: Decoder, weights: Mapping[str, Tensor]) -> None:
    for name, parameter in decoder.named_parameters():
        parameter.copy_(weights[name])
