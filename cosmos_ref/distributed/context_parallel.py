"""Context parallelism: the tokens of one clip, shared by several processes.

All of a block but self-attention treats tokens one by one, so every process can own a slice of them. Self-attention
communicates in two nested ways, and either can be alone:

- *Ulysses*, among neighbours: "my tokens, all heads" is exchanged for "tokens of all of us, my heads", and back. The
  number of neighbours must divide the number of heads.
- a *ring* of such groups: keys and values travel round it, and attention to each block is merged into the attention to
  those before. It may have any length.

Slices are contiguous and equally long; the last ones are filled up with zeros. No mask is needed: keys and values of
filling are cut off before attention, and what its queries see is cut off in `gather`. Positions are split like the
tokens they belong to, so every embedding of positions is right without knowing of this.

Every communication is differentiated as its transpose. What is minimised is therefore the mean over the processes of
their losses, which is what averaging their gradients means; with the loss of the whole clip in every process of a group
it is the loss of one process.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from cosmos_ref.blocks.dit_block import DiTBlock
from cosmos_ref.distributed.mesh import Meshes
from cosmos_ref.equations.sharding import block_attention, merge
from cosmos_ref.model.dit import CosmosDiT, Modulations, Prepared

Group = dist.ProcessGroup


class ContextParallel:
    """A slice of the tokens for each process of a group."""

    def __init__(self, meshes: Meshes):
        self.group: Group = meshes.data["cp"].get_group()
        self.ring: Group = meshes.attention["ring"].get_group()
        self.ulysses: Group = meshes.attention["ulysses"].get_group()
        self.enabled = True
        self._length: int | None = None  # tokens of the clip that is in the network just now, if they are split

    def install(self, network: CosmosDiT) -> None:
        """Split the tokens of everything that this network computes, `run` after `prepare` included."""
        predict_patches, prepare, run_patches = network.predict_patches, network.prepare, network.run_patches

        def predict_slice(
            patches: Tensor, c_noise: Tensor, text_embeddings: Tensor, positions: Tensor, fps: Tensor
        ) -> Tensor:
            places = self.shard(positions, dim=0)
            return self._on_slices(
                lambda slice_: predict_patches(slice_, c_noise, text_embeddings, places, fps), patches
            )

        def prepare_slice(text_embeddings: Tensor, positions: Tensor, fps: Tensor) -> Prepared:
            return prepare(text_embeddings, self.shard(positions, dim=0), fps)

        def run_slice(patches: Tensor, modulations: Modulations, prepared: Prepared) -> Tensor:
            return self._on_slices(lambda slice_: run_patches(slice_, modulations, prepared), patches)

        network.predict_patches, network.prepare, network.run_patches = predict_slice, prepare_slice, run_slice
        for block in cast("list[DiTBlock]", network.blocks):
            block.self_attention.attend = self.attend

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it every process computes clips of its own. What was prepared outside is of no use inside."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def remember(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For `checkpoint(context_fn=...)`: when a block is computed again, its clip is as long as it was."""
        return self._clip(self._length), self._clip(self._length)

    def shard(self, x: Tensor, dim: int) -> Tensor:
        """This process's slice of what all processes of the group have; as long as everyone's, filled up with zeros."""
        if not self.enabled:
            return x
        size = -(-x.shape[dim] // self.group.size())
        filling = size * self.group.size() - x.shape[dim]
        padded = nnf.pad(x, [0, 0] * (x.ndim - 1 - dim) + [0, filling])
        return padded.narrow(dim, self.group.rank() * size, size)

    def gather(self, x: Float[Tensor, "B l P"], length: int) -> Float[Tensor, "B L P"]:
        """The slices of all processes, side by side, without the filling.

        Everyone sends the same to all. The transpose therefore sums what all of them made of a slice.
        """
        slices = AllToAll.apply(x.expand(self.group.size(), *x.shape), self.group)
        return rearrange(slices, "R B l P -> B (R l) P")[:, :length]

    def attend(
        self, q: Float[Tensor, "B N l K"], k: Float[Tensor, "B N l K"], v: Float[Tensor, "B N l K"]
    ) -> Float[Tensor, "B N l K"]:
        """Attention of this process's tokens to all tokens of the clip."""
        if self._length is None:
            return nnf.scaled_dot_product_attention(q, k, v)
        u = self.ulysses.size()
        if u > 1:
            qkv = rearrange([q, k, v], "S B (u N) l K -> u S B N l K", u=u)
            q, k, v = rearrange(AllToAll.apply(qkv, self.ulysses), "u S B N l K -> S B N (u l) K")
        block = q.shape[2]
        lengths = [min(max(self._length - i * block, 0), block) for i in range(self.ring.size())]
        if self.ring.size() > 1:
            out = RingAttention.apply(q, k, v, lengths, self.ring)
        else:
            out = nnf.scaled_dot_product_attention(q, k[:, :, : lengths[0]], v[:, :, : lengths[0]])
        if u > 1:
            out = AllToAll.apply(rearrange(out, "B N (u l) K -> u B N l K", u=u), self.ulysses)
            out = rearrange(out, "u B N l K -> B (u N) l K")
        return out

    def _on_slices(self, inner: Callable[[Tensor], Tensor], patches: Tensor) -> Tensor:
        if not self.enabled:
            return inner(patches)
        length = patches.shape[1]
        with self._clip(length):
            slice_ = inner(self.shard(patches, dim=1))
        return self.gather(slice_, length)

    @contextmanager
    def _clip(self, length: int | None) -> Iterator[None]:
        before, self._length = self._length, length
        try:
            yield
        finally:
            self._length = before


class AllToAll(Function):
    """Entry i of the first axis goes to process i. Exchanging is its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        """Entry i of the result is what process i had for this one."""
        ctx.group = group
        x = x.contiguous()
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Send every entry back where it came from."""
        return AllToAll.apply(grad, ctx.group), None


class RingAttention(Function):
    """Attention to keys and values that travel round a ring of processes, of which `lengths[i]` came from process i."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: list[int], ring: Group) -> Tensor:
        """Attention of this process's queries to all keys."""
        out, lse = torch.zeros_like(q, dtype=wide(q)), q.new_full(q.shape[:-1], -torch.inf, dtype=wide(q))
        keys_values = torch.stack([k, v])
        for turn in range(ring.size()):
            coming = Turn(keys_values, ring) if turn < ring.size() - 1 else None  # travels while we compute
            if length := lengths[(ring.rank() - turn) % ring.size()]:  # a block may be filling alone
                out, lse = merge(out, lse, *attend_block(q, *keys_values[:, :, :, :length]))
            if coming:
                keys_values = coming.arrived()
        out = out.to(q)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.lengths, ctx.ring = lengths, ring
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of queries, which stay, and of keys and values, which travel along with their blocks and home."""
        q, k, v, out, lse = ctx.saved_tensors
        ring, home = ctx.ring, None
        keys_values, grad_q = torch.stack([k, v]), torch.zeros_like(q, dtype=wide(q))
        for turn in range(ring.size()):
            coming = Turn(keys_values, ring) if turn < ring.size() - 1 else None
            grad_block = torch.zeros_like(keys_values, dtype=wide(q))
            if length := ctx.lengths[(ring.rank() - turn) % ring.size()]:
                k, v = keys_values[:, :, :, :length]
                mine, grad_block[0, :, :, :length], grad_block[1, :, :, :length] = block_gradients(
                    grad, q, k, v, out, lse
                )
                grad_q += mine
            if home:
                grad_block += home.arrived()  # what the processes before made of this block
            home = Turn(grad_block, ring)
            if coming:
                keys_values = coming.arrived()
        assert home is not None
        grad_k, grad_v = home.arrived().to(k)
        return grad_q.to(q), grad_k, grad_v, None, None


class Turn:
    """A tensor on its way to the next process of the ring, while the one from the process before is coming."""

    def __init__(self, x: Tensor, ring: Group):
        self.sent, self.coming = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
        after, before = (ring.rank() + 1) % ring.size(), (ring.rank() - 1) % ring.size()
        sends = dist.P2POp(dist.isend, self.sent, group=ring, group_peer=after)
        receives = dist.P2POp(dist.irecv, self.coming, group=ring, group_peer=before)
        self.works = dist.batch_isend_irecv([sends, receives])

    def arrived(self) -> Tensor:
        """What the process before sent."""
        for work in self.works:
            work.wait()
        return self.coming


def wide(x: Tensor) -> torch.dtype:
    """Sums over blocks are kept in float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def is_fused(q: Tensor) -> bool:
    """Whether a fused kernel computes blocks of this kind: `benchmarks/training_on_gpu.py parity` compares them."""
    return q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] <= 256


def attend_block(
    q: Float[Tensor, "B N l K"], k: Float[Tensor, "B N m K"], v: Float[Tensor, "B N m K"]
) -> tuple[Float[Tensor, "B N l K"], Float[Tensor, "B N l"]]:
    """Attention to one block, and the logarithm of its softmax's denominator, in wide precision."""
    if is_fused(q):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
        return out.to(wide(q)), lse
    with torch.autocast(q.device.type, enabled=False):
        return block_attention(*(x.to(wide(q)) for x in (q, k, v)))


def block_gradients(
    grad: Float[Tensor, "B N l K"],
    q: Float[Tensor, "B N l K"],
    k: Float[Tensor, "B N m K"],
    v: Float[Tensor, "B N m K"],
    out: Float[Tensor, "B N l K"],
    lse: Float[Tensor, "B N l"],
) -> tuple[Float[Tensor, "B N l K"], Float[Tensor, "B N m K"], Float[Tensor, "B N m K"]]:
    r"""One block's share of the gradients of q, k and v; `out` and `lse` are those of all blocks together.

    $$P = e^{s - \ell}, \qquad \bar s = P \odot \big(\bar A v^\top - \operatorname{rowsum}(\bar A \odot A)\big)$$

    $$\bar q = \tfrac{1}{\sqrt K} \bar s\, k, \qquad \bar k = \tfrac{1}{\sqrt K} \bar s^\top q, \qquad
      \bar v = P^\top \bar A$$
    """
    if is_fused(q):
        undefined, no_dropout = None, (q.new_empty(2, dtype=torch.uint64), q.new_empty((), dtype=torch.uint64))
        return torch.ops.aten._scaled_dot_product_flash_attention_backward(
            *(grad, q, k, v, out, lse.contiguous()),
            *(undefined, undefined, q.shape[2], k.shape[2], 0.0, False),
            *no_dropout,
        )
    grad, q, k, v, out = (x.to(lse) for x in (grad, q, k, v, out))
    with torch.autocast(q.device.type, enabled=False):
        P = (q @ k.mT / q.shape[-1] ** 0.5 - lse[..., None]).exp()
        grad_s = P * (grad @ v.mT - (grad * out).sum(dim=-1, keepdim=True)) / q.shape[-1] ** 0.5
        return grad_s @ k, grad_s.mT @ q, P.mT @ grad
