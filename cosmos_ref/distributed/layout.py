"""A training, or a sampler, spread over many processes: what the loop asks for, see `training.layout`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from cosmos_ref.config import ParallelConfig
from cosmos_ref.distributed import fsdp
from cosmos_ref.distributed.context_parallel import ContextParallel
from cosmos_ref.distributed.mesh import build_meshes, split_processes
from cosmos_ref.errors import UserError, everywhere
from cosmos_ref.model.denoiser import Denoiser
from cosmos_ref.model.initialization import find_device

MOST_TEXT = 500
"""Characters of each process's error that the others are told."""


@contextmanager
def joined(device: str | torch.device, timeout: float = 1800) -> Iterator[torch.device]:
    """Within it this process is one of those that torchrun started; the value is the device it computes on.

    Args:
        device: cpu, or cuda for one GPU a process.
        timeout: seconds after which processes that wait for another one give up.

    Raises:
        UserError: if torchrun did not start this process, or could not restart it, or there is no GPU for it.
        RuntimeError: within it, if another process is gone.
    """
    missing = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise UserError(f"{', '.join(missing)} not set: start many processes with torchrun -m cosmos_ref.cli ...")
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    many_nodes = int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0
    if shares_store and many_nodes and restarts:  # torchrun counts its restarts on each node for itself
        raise UserError(
            "torchrun cannot restart processes on several nodes as it is: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "
            "for it, or leave --max-restarts out"
        )
    device = torch.device(device)
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if device.type == "cuda" and here > gpus:
        raise UserError(f"{here} processes on a machine with {gpus} GPU(s): give torchrun --nproc-per-node {gpus}")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    device = find_device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    limit = timedelta(seconds=timeout)
    store, rank, world = next(rendezvous("env://", timeout=limit))
    # torchrun keeps one store over all its restarts, and in it the addresses of processes that are gone.
    store = PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
    try:
        yield device
    except RuntimeError as error:
        if "by peer" not in str(error):  # gloo's words for a connection that broke
            raise
        lost = "another process of this training is gone; its own message says why, and --resume goes on"
        raise everywhere(RuntimeError(lost)) from error
    finally:
        dist.destroy_process_group()


class ManyProcesses:
    """The processes that have joined, arranged as they were asked to be."""

    def __init__(
        self,
        parallel: ParallelConfig,
        num_heads: int,
        device: torch.device,
        precision: fsdp.Precision = "fp32",
        spread_weights: bool = True,
    ):
        """Arrange the processes.

        Args:
            parallel: how.
            num_heads: heads of the network's attention.
            device: where this process computes, from `joined`.
            precision: of the network while it computes; its weights are kept as they are.
            spread_weights: whether each process keeps a part of the weights; if not, they are not trained.

        Raises:
            UserError: if the numbers do not divide one another.
        """
        self.parallel, self.device, self.spread_weights = parallel, device, spread_weights
        self.precision: fsdp.Precision = precision
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.split = split_processes(parallel, self.world, num_heads)
        self.meshes = build_meshes(self.split, device.type)
        self.context_parallel = ContextParallel(self.meshes) if self.split.cp > 1 else None
        self._images = False

    @property
    def data_rank(self) -> int:
        """Which of the groups that see different clips this process is in."""
        return self.rank if self._images else self.rank // self.split.cp

    @property
    def data_size(self) -> int:
        """How many such groups there are."""
        return self.world if self._images else self.split.data

    def place(self, module: nn.Module) -> None:
        """Spread a module, in place: first its tokens, then what is kept of its blocks, then its weights.

        A denoiser is spread block by block and computes in the layout's precision, another module as one part.
        """
        if not isinstance(module, Denoiser):
            if self.spread_weights:
                fsdp.shard(module, self.meshes)
            return
        if self.context_parallel:
            self.context_parallel.install(module.network)
        remember = [self.context_parallel.remember] if self.context_parallel else []
        fsdp.prepare_blocks(module, self.parallel, *remember)
        if self.spread_weights:
            fsdp.shard_denoiser(module, self.meshes, self.precision)

    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Put a whole value into a tensor of a placed module; every process brings the same one."""
        fsdp.write(tensor, value)

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a tensor of a placed module, or of its gradient; every process must ask."""
        return fsdp.whole(tensor)

    def first(self, tensor: Tensor) -> Tensor:
        """The tensor of the first process, in all of them."""
        tensor = tensor.clone()
        dist.broadcast(tensor, src=0)
        return tensor

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over all processes."""
        total = self.whole(value.detach()).clone()
        dist.all_reduce(total)
        return total / self.world

    def agree(self, error: Exception | None) -> None:
        """Wait for all processes; raise in all of them if one brings an error.

        A process with an error raises it. The others raise a `UserError` if all that went wrong is the user's to mend,
        else a `RuntimeError`, which says what went wrong where.
        """
        mine = None if error is None else (isinstance(error, UserError), _short(error))
        everyone: list[tuple[bool, str] | None] = [None] * self.world
        dist.all_gather_object(everyone, mine)
        if error is not None:
            raise everywhere(error)
        failed = {rank: each for rank, each in enumerate(everyone) if each is not None}
        if failed:
            kind = UserError if all(is_users for is_users, _ in failed.values()) else RuntimeError
            raise everywhere(kind("; ".join(f"process {rank}: {text}" for rank, (_, text) in failed.items())))

    @contextmanager
    def images(self) -> Iterator[None]:
        """Within it clips are images: every process sees its own, whole ones; `data_rank` and `data_size` say so."""
        before, self._images = self._images, True
        try:
            if self.context_parallel:
                with self.context_parallel.off():
                    yield
            else:
                yield
        finally:
            self._images = before


def _short(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}" if not isinstance(error, UserError) else str(error)
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 3] + "..."
