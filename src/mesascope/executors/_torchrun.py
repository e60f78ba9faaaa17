"""Jobs on the processes that torchrun has started, which train every model together.

torch is imported where it is used, since every process of other executors imports this package first.
"""

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mesascope.executors._jobs import ExecutorError, JobFn, JobLogFn, JobProgressFn, JobStateFn
from mesascope.store import do_nothing

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from mesascope.train import ParallelStrategy

STRATEGIES = ("ddp", "fsdp")
TRAINING_TIMEOUT = timedelta(minutes=30)  # in which every process must take part in a sum of gradients
WAITING_TIMEOUT = timedelta(days=365)  # for the next job: the first process may analyse or simulate for long
LAUNCHER_POLL_SECONDS = 1.0
_calls = itertools.count()  # all processes open their groups in the same order


@dataclass(frozen=True)
class TorchrunExecutor:
    """Runs jobs one after another; all processes that torchrun has started train each model together.

    The first process sends the jobs to the others, analyses what is trained, and alone writes to the run's directory,
    which all processes must be able to read.

    Attributes:
        strategy: ``ddp`` (every process has all weights) or ``fsdp`` (every process has a part of them).
    """

    strategy: "ParallelStrategy" = "ddp"
    _group: list[Any] = field(
        default_factory=list, repr=False, compare=False
    )  # for messages, while processes are joined

    def __post_init__(self) -> None:
        """Validate the fields."""
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy must be ddp or fsdp, but got {self.strategy!r}")

    @property
    def is_first(self) -> bool:
        """Return whether this is the first process.

        Raises:
            ValueError: If it was not started by torchrun.
        """
        return _read_number("RANK") == 0

    def map_jobs(
        self,
        fn: JobFn,
        jobs: Sequence[Any],
        progress: JobProgressFn = do_nothing,
        log: JobLogFn = do_nothing,
        change_state: JobStateFn = do_nothing,
    ) -> list[Any]:
        """Apply ``fn`` to every job in the first process, and to those that train a model in all processes.

        Args:
            fn: Called as ``fn(job, progress, log)``.
            jobs: The jobs.
            progress: Receives (job index, done, total, loss).
            log: Receives lines of text.
            change_state: Receives (job index, state).

        Returns:
            The results, in the order of the jobs.

        Raises:
            ExecutorError: If the processes are not joined.
        """
        from mesascope.runner import TrainingJob

        if not self._group:
            raise ExecutorError("the processes must be joined, but are not; call map_jobs inside join_processes")
        results = []
        for index, job in enumerate(jobs):
            change_state(index, "running")
            if isinstance(job, TrainingJob):
                self._exchange((fn, job))
            results.append(fn(job, lambda *news, index=index: progress(index, *news), log))
            change_state(index, "done")
        return results

    def follow_jobs(self) -> None:
        """Run the jobs that the first process sends, until it has no more; called by the other processes."""
        while (message := self._exchange(None)) is not None:
            fn, job = message
            fn(job, do_nothing, do_nothing)

    @contextmanager
    def join_processes(self, device: str) -> Iterator[None]:
        """Join the processes that torchrun has started to a process group for the duration of a ``with`` block.

        If a process is lost, the ``with`` block ends in all others. One of them raises the error, and the others exit.

        Args:
            device: ``cpu``, or ``cuda`` for one GPU per process.

        Raises:
            ValueError: If this process was not started by torchrun, or has no GPU.
            ExecutorError: If another process is lost, or cannot be reached.
        """
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        rank, num_processes = _read_number("RANK"), _read_number("WORLD_SIZE")
        backend = _select_backend(device)
        ended = threading.Event()
        threading.Thread(target=_exit_with_launcher, args=(ended,), daemon=True).start()
        store: Store | None = None
        try:
            env_store, _, _ = next(iter(rendezvous("env://", timeout=TRAINING_TIMEOUT)))
            store = PrefixStore(f"mesascope/{next(_calls)}", env_store)
            dist.init_process_group(backend, store=store, rank=rank, world_size=num_processes, timeout=TRAINING_TIMEOUT)
            self._group.append(dist.new_group(backend="gloo", timeout=WAITING_TIMEOUT))
            yield
            if rank == 0:
                self._exchange(None)
        except BaseException as error:
            if not _claim_report(store) or (rank > 0 and isinstance(error, KeyboardInterrupt)):
                raise SystemExit(1) from None  # another process reports the error
            if _is_connection_error(error):
                reason = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
                raise ExecutorError(
                    f"all {num_processes} processes must run until the end, but one has ended or does not answer "
                    f"({reason}); run again to resume from the last checkpoint"
                ) from error
            raise
        finally:
            ended.set()
            self._group.clear()
            if dist.is_initialized():
                with suppress(RuntimeError):  # of connections that are lost
                    dist.destroy_process_group()

    def _exchange(self, message: Any) -> Any:
        """Send a message from the first process to the others, and return it in all."""
        import torch
        import torch.distributed as dist

        messages = [message]
        dist.broadcast_object_list(messages, src=0, group=self._group[0], device=torch.device("cpu"))
        return messages[0]


def _read_number(name: str) -> int:
    """Read a variable that torchrun sets."""
    text = os.environ.get(name, "")
    if not text.isdigit():
        raise ValueError(
            f"the executor torchrun must be started by torchrun, but {name} is {text or 'not set'}; use `torchrun "
            "--standalone --nproc-per-node 2 -m mesascope run STUDY --on torchrun`"
        )
    return int(text)


def _select_backend(device: str) -> str:
    """Return the backend of a device, and select the GPU of this process."""
    import torch

    if device == "cpu":
        return "gloo"
    local_rank, num_devices = _read_number("LOCAL_RANK"), torch.cuda.device_count()
    if device != "cuda" or local_rank >= num_devices:
        raise ValueError(
            f"torchrun must have one GPU per process and the device cuda, but process {local_rank} of this machine has "
            f"{num_devices} GPUs and the device {device}; start as many processes as GPUs, or use --device cpu"
        )
    torch.cuda.set_device(local_rank)
    return "cpu:gloo,cuda:nccl"


def _claim_report(store: "Store | None") -> bool:
    """Return whether this process is the first to fail, or cannot ask."""
    if store is None:
        return True
    try:
        return store.add("errors", 1) == 1
    except RuntimeError:  # the store is gone with torchrun, or with the first process
        return True


def _is_connection_error(error: BaseException) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _exit_with_launcher(ended: threading.Event) -> None:
    """Exit as soon as torchrun is gone, even if it was killed."""
    launcher = os.getppid()
    while not ended.wait(LAUNCHER_POLL_SECONDS):
        if os.getppid() != launcher:
            os._exit(1)
