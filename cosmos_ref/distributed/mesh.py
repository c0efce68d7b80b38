"""Who shares what with whom: the processes of a training in three arrangements.

Processes are numbered so that neighbours talk most: those that share the tokens of a clip stand side by side, and among
them those that exchange heads. A block's weights are spread over all processes of a replica, those that share clips
included: to the weights they are just more places.
"""

import math
from typing import NamedTuple

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from cosmos_ref.config import ParallelConfig
from cosmos_ref.errors import UserError


class Split(NamedTuple):
    """Numbers of processes: world = data * ring * ulysses = replicate * shard."""

    data: int
    """Groups that see different clips."""
    ring: int
    """Parts of a clip whose keys and values travel around."""
    ulysses: int
    """Parts of these, which exchange heads for tokens."""
    replicate: int
    """Groups that each hold all the weights."""
    shard: int
    """Parts of the weights."""

    @property
    def world(self) -> int:
        """All processes."""
        return self.replicate * self.shard

    @property
    def cp(self) -> int:
        """Processes that share the tokens of a clip."""
        return self.ring * self.ulysses


class Meshes(NamedTuple):
    """The same processes in the same order, three times."""

    data: DeviceMesh
    """(data, cp)"""
    attention: DeviceMesh
    """(data, ring, ulysses)"""
    weights: DeviceMesh
    """(replicate, shard)"""


def split_processes(parallel: ParallelConfig, world: int, num_heads: int) -> Split:
    """How `world` processes share clips, tokens, heads and weights.

    Args:
        parallel: what was asked for.
        world: processes that there are.
        num_heads: heads of the network's attention.

    Raises:
        UserError: the numbers do not divide one another; the message lists those that would.
    """
    replicate, cp = parallel.replicate, parallel.cp
    if parallel.world not in (0, world):
        raise UserError(
            f"--parallel.world {parallel.world}, but {world} process(es) were started: start as many, or leave it out"
        )
    for name, value in (("cp", cp), ("replicate", replicate)):
        if value < 1 or world % value:
            raise UserError(f"--parallel.{name} {value} must divide the {world} processes: {_listed(world)}")
    if world % (replicate * cp):
        raise UserError(
            f"--parallel.replicate {replicate} times --parallel.cp {cp} must divide the {world} processes: "
            f"with this cp, replicate can be {_listed(world // cp)}"
        )
    most = math.gcd(num_heads, cp)
    ulysses = parallel.ulysses or most
    if ulysses < 1 or most % ulysses:
        raise UserError(
            f"--parallel.ulysses {ulysses} must divide cp {cp} and the model's {num_heads} heads: {_listed(most)}"
        )
    return Split(world // cp, cp // ulysses, ulysses, replicate, world // replicate)


def build_meshes(split: Split, device_type: str) -> Meshes:
    """The arrangements, among processes that have joined."""
    data, ring, ulysses, replicate, shard = split
    return Meshes(
        init_device_mesh(device_type, (data, split.cp), mesh_dim_names=("data", "cp")),
        init_device_mesh(device_type, (data, ring, ulysses), mesh_dim_names=("data", "ring", "ulysses")),
        init_device_mesh(device_type, (replicate, shard), mesh_dim_names=("replicate", "shard")),
    )


def _listed(number: int) -> str:
    return ", ".join(str(i) for i in range(1, number + 1) if number % i == 0)
