"""Counting what a training step would take: bytes that are sent, and what is kept for the backward pass.

It works on real tensors and on fake ones, under a real process group and under torch's `fake` one. So the same count
can be made of a small model on this machine and of the 14B model on a cluster that is not there.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

FEW = 16
QUIET = {"recv_", "barrier", "monitored_barrier_", "wait_tensor"}
"""Collectives that send nothing worth counting: what is received was sent, and counted, elsewhere."""


class SentBytes(TorchDispatchMode):
    """Bytes that this process hands to the network within it, by kind of collective, and the calls.

    `all_gather`: its piece, to each of the others. `reduce_scatter` and `all_to_all`: all pieces but its own. `send`:
    the whole. `all_reduce`: what a ring sends, `costs.all_reduce_bytes`; a few numbers (losses, a norm) are counted as
    `scalars`.
    """

    def __init__(self):
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace in ("c10d", "_c10d_functional"):
            self._record(function._schema.name.split("::")[1], args)
        return function(*args, **(kwargs or {}))

    def _record(self, name: str, args: Sequence) -> None:
        """Count one call; its arguments are those of torch's schemas."""
        if name in QUIET:
            return
        if name == "_allgather_base_":  # output, input
            kind, sent = "all_gather", size(args[0]) - size(args[1])
        elif name == "all_gather_into_tensor":  # input, processes
            kind, sent = "all_gather", size(args[0]) * (args[1] - 1)
        elif name == "_reduce_scatter_base_":  # output, input
            kind, sent = "reduce_scatter", size(args[1]) - size(args[0])
        elif name == "reduce_scatter_tensor":  # input, operation, processes
            kind, sent = "reduce_scatter", size(args[0]) // args[2] * (args[2] - 1)
        elif name == "alltoall_base_":  # output, input, group, sizes
            kind, sent = "all_to_all", others_share(size(args[1]), group_size(args[2]))
        elif name == "all_to_all_single":  # input, output sizes, input sizes
            kind, sent = "all_to_all", others_share(size(args[0]), len(args[2]))
        elif name == "send":
            kind, sent = "send", size(args[0])
        elif name == "allreduce_":  # tensors, group
            few = all(tensor.numel() <= FEW for tensor in tree_iter(args[0]))
            kind, sent = "scalars" if few else "all_reduce", 2 * others_share(size(args[0]), group_size(args[1]))
        else:
            raise ValueError(f"the collective {name} is not counted: say here what a process sends in it")
        self.bytes[kind] += sent
        self.calls[kind] += 1


class KeptBytes:
    """Bytes in tensors that autograd keeps from the forward pass that runs within it; weights are not among them.

    `total` is what is still allocated at its end: gathered weights that were freed again do not count either. A storage
    that several operations keep counts once.

    Args:
        module: whose weights.
        shared: tensors that do not count either.
    """

    def __init__(self, module: nn.Module, shared: Iterable[Tensor] = ()):
        self.module, self.shared, self.total = module, list(shared), 0
        self._kept: dict[int, torch.UntypedStorage] = {}

    def __enter__(self) -> Self:
        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            self._kept[storage._cdata] = storage  # held, so that no other gets its place and its number
            return tensor

        self._hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)
        not_kept = [local(tensor).untyped_storage()._cdata for tensor in (*self.module.parameters(), *self.shared)]
        self.total = sum(storage.nbytes() for key, storage in self._kept.items() if key not in not_kept)
        self._kept.clear()


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: of a sharded one its shard."""
    return getattr(tensor, "_local_tensor", tensor)


def size(tensors) -> int:
    """Bytes in the numbers of one tensor, or of nested lists of them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tree_iter(tensors) if isinstance(tensor, Tensor))


def group_size(group) -> int:
    """Processes of a group, as operators are handed one."""
    return dist.ProcessGroup.unbox(group).size()


def others_share(size: int, ranks: int) -> int:
    """What is not one's own of that many bytes, in equal parts."""
    return size * (ranks - 1) // ranks
