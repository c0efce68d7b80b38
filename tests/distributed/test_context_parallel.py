from itertools import product

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as nnf

from cosmos_ref.config import ParallelConfig
from cosmos_ref.distributed.context_parallel import ContextParallel
from cosmos_ref.distributed.mesh import Split, build_meshes, split_processes
from cosmos_ref.errors import UserError
from tests.ranks import RanksFailed, run_ranks
from tests.strategies import normal

LENGTHS = (64, 45, 5, 3)
"""Even, odd, and so short that one or more of four processes have nothing but filling."""


def attention_of_slices(cp, q, k, v, weights):
    """Attention, and the gradients of q, k, v of a weighted sum of it, from slices and whole again."""
    length, slices = q.shape[2], [cp.shard(x, dim=2).requires_grad_() for x in (q, k, v)]
    with cp._clip(length):
        out = cp.attend(*slices)
        (out * cp.shard(weights, dim=2)).sum().backward()

    def whole(x):
        return cp.gather(x.movedim(2, 1).flatten(2), length).detach()

    return [whole(x) for x in (out, *(slice_.grad for slice_ in slices))]


def attention_is_that_of_one_process(arrangements, limits):
    for (heads, ulysses), (dtype, limit) in product(arrangements, limits.items()):
        split = split_processes(ParallelConfig(cp=dist.get_world_size(), ulysses=ulysses), dist.get_world_size(), heads)
        cp = ContextParallel(build_meshes(split, "cpu"))
        for length in LENGTHS:
            q, k, v, weights = normal(length, 4, 2, heads, length, 8).to(dtype).unbind(0)
            found = attention_of_slices(cp, q, k, v, weights)
            whole = [x.clone().requires_grad_() for x in (q, k, v)]
            out = nnf.scaled_dot_product_attention(*whole)
            (out * weights).sum().backward()
            for mine, theirs in zip(found, (out, *(x.grad for x in whole)), strict=True):
                difference = (mine - theirs.movedim(2, 1).flatten(2)).abs().max().item()
                assert difference < limit, f"{heads} heads, ulysses {ulysses}, {length} tokens: {difference:.1e}"


@pytest.mark.parametrize(
    ("ranks", "arrangements"),
    [(2, [(8, 2), (8, 1), (5, 0)]), (4, [(8, 4), (8, 2), (8, 1), (5, 0), (40, 0), (40, 2)])],
)
def test_attention_over_slices_is_attention_and_so_are_its_gradients(ranks, arrangements):
    """Ulysses, ring, both; with 5 heads nothing can be exchanged. In float64, where sums of 64 terms err by 1e-15."""
    run_ranks(attention_is_that_of_one_process, ranks, arrangements, {torch.float64: 1e-12})


def test_attention_over_slices_loses_no_more_than_its_precision():
    """In float32 by 1e-6 of numbers of about one; bfloat16 keeps three digits of numbers up to ten."""
    run_ranks(attention_is_that_of_one_process, 4, [(8, 2)], {torch.float32: 1e-5, torch.bfloat16: 6e-2})


def ring_under_autocast():
    """Float32 in, float32 out, though the products around would be made in bfloat16."""
    cp = ContextParallel(build_meshes(split_processes(ParallelConfig(cp=2, ulysses=1), 2, 2), "cpu"))
    q, k, v, weights = normal(0, 4, 2, 2, 9, 8).float().unbind(0)
    expected = attention_of_slices(cp, q, k, v, weights)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_of_slices(cp, q, k, v, weights)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_blocks_are_merged_in_float32_within_autocast_too():
    run_ranks(ring_under_autocast, 2)


# --- who shares what


@pytest.mark.parametrize(
    ("heads", "world", "parallel", "expected"),
    [
        (32, 32, ParallelConfig(cp=8), Split(4, 1, 8, 1, 32)),
        (40, 64, ParallelConfig(cp=16), Split(4, 2, 8, 1, 64)),  # 16 does not divide 40 heads: the ring takes the rest
        (40, 64, ParallelConfig(cp=16, ulysses=4, replicate=2), Split(4, 4, 4, 2, 32)),
        (5, 4, ParallelConfig(cp=4), Split(1, 4, 1, 1, 4)),
        (2, 4, ParallelConfig(world=4, replicate=2), Split(4, 1, 1, 2, 2)),
    ],
)
def test_as_many_neighbours_exchange_heads_as_divide_them(heads, world, parallel, expected):
    split = split_processes(parallel, world, heads)
    assert split == expected and split.world == world == split.data * split.cp and split.cp == parallel.cp


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (ParallelConfig(cp=3), "cp 3 must divide the 8 processes: 1, 2, 4, 8"),
        (ParallelConfig(cp=0), "cp 0 must divide the 8 processes: 1, 2, 4, 8"),
        (ParallelConfig(replicate=5), "replicate 5 must divide the 8 processes: 1, 2, 4, 8"),
        (ParallelConfig(cp=4, replicate=4), "with this cp, replicate can be 1, 2"),
        (ParallelConfig(cp=8, ulysses=8), "ulysses 8 must divide cp 8 and the model's 12 heads: 1, 2, 4"),
        (ParallelConfig(cp=8, ulysses=3), "ulysses 3 must divide cp 8 and the model's 12 heads: 1, 2, 4"),
        (ParallelConfig(world=16), "world 16, but 8 process"),
    ],
)
def test_numbers_that_do_not_divide_are_refused_with_those_that_do(parallel, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        split_processes(parallel, 8, 12)


def neighbours_share_a_clip():
    split = split_processes(ParallelConfig(cp=4, ulysses=2), 4, 2)
    meshes, rank = build_meshes(split, "cpu"), dist.get_rank()
    ranks = {name: dist.get_process_group_ranks(meshes.attention[name].get_group()) for name in ("ring", "ulysses")}
    assert ranks == {"ring": [rank % 2, rank % 2 + 2], "ulysses": [rank // 2 * 2, rank // 2 * 2 + 1]}


def test_heads_are_exchanged_among_neighbours():
    run_ranks(neighbours_share_a_clip, 4)


# --- the harness


def one_fails():
    if dist.get_rank() == 1:
        raise ValueError("this is process 1")
    dist.all_reduce(torch.ones(1))  # would wait for it


def one_sleeps():
    if dist.get_rank() == 0:
        import time

        time.sleep(100)


def test_a_process_that_fails_is_named_and_the_others_end():
    with pytest.raises(RanksFailed, match=r"^process 1:[^$]*ValueError: this is process 1"):
        run_ranks(one_fails, 2)


def test_processes_that_do_not_end_are_ended():
    with pytest.raises((TimeoutError, RanksFailed), match=r"has not ended after 3 s|Timed out"):
        run_ranks(one_sleeps, 2, timeout=3)
