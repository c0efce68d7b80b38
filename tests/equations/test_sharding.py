import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import attention, sharding
from tests.impostors import impostor
from tests.strategies import normal, seeds

# Up to seven keys, cut into two blocks or three; either may be empty.
counts = st.integers(0, 3)
scales = st.sampled_from([1.0, 30.0, 1e3])  # of queries: logits of up to a million


def queries(seed, scale=1.0):
    return scale * normal(seed, 2, 2, 3, 5)


def blocks(seed, *counts):
    """Keys and values of consecutive blocks, each of so many keys."""
    k, v = normal(seed + 1, 2, 2, 2, sum(counts), 5)
    return list(zip(k.split(counts, dim=2), v.split(counts, dim=2), strict=True))


def joined(*parts):
    return (torch.cat(each, dim=2) for each in zip(*parts, strict=True))


def close(found, expected, atol=1e-12):
    """Both parts: attention is of size one; its logarithm is as large as the logits, and rounds relative to them."""
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=atol)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-14, atol=atol)


# --- block_attention


@pytest.mark.verifies("sharding.block_attention", by="point")
def test_a_query_that_prefers_the_second_key_three_to_one():
    """Scores 0 and ln 3: weights 1/4 and 3/4, denominator 1 + 3."""
    q = torch.full((1, 1, 1, 4), 2.0).double()
    k = (math.log(3) / 4 * torch.tensor([[0.0], [1.0]]).double()).expand(1, 1, -1, 4)
    v = torch.tensor([[0.0], [4.0]]).double().expand(1, 1, -1, 4)
    A, lse = sharding.block_attention(q, k, v)
    torch.testing.assert_close(A, torch.full_like(A, 3.0), rtol=0, atol=1e-14)
    assert lse.item() == pytest.approx(math.log(4), abs=1e-14)


@pytest.mark.verifies("sharding.block_attention")
@given(seeds, st.integers(1, 5))
def test_attention_to_the_only_block_is_attention(seed, count):
    q, ((k, v),) = queries(seed), blocks(seed, count)
    torch.testing.assert_close(
        sharding.block_attention(q, k, v)[0], attention.softmax_attention(q, k, v), rtol=0, atol=1e-14
    )


@pytest.mark.verifies("sharding.block_attention")
@given(seeds, st.integers(1, 5), st.integers(1, 50))
def test_the_same_key_many_times_adds_the_logarithm_of_how_often(seed, count, times):
    q, ((k, v),) = queries(seed), blocks(seed, count)
    once = sharding.block_attention(q, k, v)
    often = sharding.block_attention(q, k.repeat(1, 1, times, 1), v.repeat(1, 1, times, 1))
    close(often, (once[0], once[1] + math.log(times)))


@pytest.mark.verifies("sharding.block_attention")
@given(seeds)
def test_no_keys_are_an_empty_sum(seed):
    q, ((k, v),) = queries(seed), blocks(seed, 0)
    A, lse = sharding.block_attention(q, k, v)
    assert (A == 0).all() and (lse == -math.inf).all()


@pytest.mark.verifies("sharding.block_attention")
@given(seeds)
def test_the_logarithm_of_the_denominator_is_finite_for_huge_logits(seed):
    q, ((k, v),) = queries(seed, 1e4).float(), blocks(seed, 5)
    A, lse = sharding.block_attention(q, k.float(), v.float())
    assert torch.isfinite(lse).all() and torch.isfinite(A).all()
    assert lse.abs().max() > 1000  # exp of which is not finite


@impostor("sharding.block_attention", "exponentials taken as they are: huge logits overflow")
def block_attention_of_exponentials(q, k, v):
    p = (torch.einsum("bnlk,bnmk->bnlm", q, k) / q.shape[-1] ** 0.5).exp()
    total = p.sum(-1)
    A = torch.where(total[..., None] > 0, p @ v / total[..., None], 0)
    return A, total.log()


@impostor("sharding.block_attention", "the denominator itself, not its logarithm")
def block_attention_with_the_denominator(q, k, v):
    A, lse = block_attention_as_it_is(q, k, v)
    return A, lse.exp()


@impostor("sharding.block_attention", "the scale forgotten in the second part")
def block_attention_with_an_unscaled_logarithm(q, k, v):
    return block_attention_as_it_is(q, k, v)[0], torch.einsum("bnlk,bnmk->bnlm", q, k).logsumexp(-1)


@impostor("sharding.block_attention", "the largest logit instead of the sum of all")
def block_attention_with_the_maximum(q, k, v):
    A, lse = block_attention_as_it_is(q, k, v)
    scores = torch.einsum("bnlk,bnmk->bnlm", q, k) / q.shape[-1] ** 0.5
    return A, scores.amax(-1) if scores.shape[-1] else lse


@impostor("sharding.block_attention", "numerators, to be divided at the end")
def block_attention_not_divided(q, k, v):
    A, lse = block_attention_as_it_is(q, k, v)
    return A * lse[..., None].exp(), lse


def block_attention_as_it_is(q, k, v):
    scores = torch.einsum("bnlk,bnmk->bnlm", q, k) / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


# --- merge


@pytest.mark.verifies("sharding.merge", by="point")
def test_a_block_that_weighs_three_times_as_much():
    """Denominators 1 and 3: a quarter of 8 and three quarters of 4, and 4 together."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    A, lse = sharding.merge(8 * one, 0 * one[0], 4 * one, math.log(3) * one[0])
    assert (A.item(), lse.item()) == pytest.approx((5, math.log(4)), abs=1e-14)


@pytest.mark.verifies("sharding.merge")
@given(seeds, counts, counts, scales)
def test_merged_blocks_are_attention_to_all_their_keys(seed, n, m, scale):
    q, (one, two) = queries(seed, scale), blocks(seed, n, m)
    merged = sharding.merge(*block_attention_as_it_is(q, *one), *block_attention_as_it_is(q, *two))
    # logits of a million are rounded at 1e-10, and their exponential by as much
    close(merged, block_attention_as_it_is(q, *joined(one, two)), atol=1e-12 * scale)


@pytest.mark.verifies("sharding.merge")
@given(seeds, counts, counts, scales)
def test_the_order_of_two_blocks_does_not_matter(seed, n, m, scale):
    q, (one, two) = queries(seed, scale), blocks(seed, n, m)
    a, b = block_attention_as_it_is(q, *one), block_attention_as_it_is(q, *two)
    close(sharding.merge(*a, *b), sharding.merge(*b, *a))


@pytest.mark.verifies("sharding.merge")
@given(seeds, counts, counts, counts, scales)
def test_it_does_not_matter_which_blocks_are_merged_first(seed, n, m, o, scale):
    """So each place of a ring may begin with its own block."""
    q = queries(seed, scale)
    a, b, c = (block_attention_as_it_is(q, *block) for block in blocks(seed, n, m, o))
    close(sharding.merge(*sharding.merge(*a, *b), *c), sharding.merge(*a, *sharding.merge(*b, *c)), atol=1e-12 * scale)


@pytest.mark.verifies("sharding.merge")
@given(seeds, counts)
def test_an_empty_block_changes_nothing(seed, n):
    """To the bit, on either side; and nothing and nothing is nothing, not a number."""
    q, (one, empty) = queries(seed), blocks(seed, n, 0)
    a, nothing = block_attention_as_it_is(q, *one), block_attention_as_it_is(q, *empty)
    for merged in (sharding.merge(*a, *nothing), sharding.merge(*nothing, *a)):
        assert torch.equal(merged[0], a[0]) and torch.equal(merged[1], a[1])


@pytest.mark.verifies("sharding.merge")
@given(seeds, st.sampled_from([-1e30, -1e4, -90.0, 90.0, 1e4, 1e30]), st.floats(-5, 5))
def test_what_all_logits_have_in_common_changes_the_logarithm_alone(seed, shift, between):
    """In float32, where exp(90) is not finite and exp(-104) is nothing."""
    A, A2 = normal(seed, 2, 1, 2, 3, 4).float()
    lse, lse2 = normal(seed + 1, 2, 1, 2, 3).float()
    plain = sharding.merge(A, lse, A2, lse2 + between)
    # the difference is what counts, and it is what rounding leaves of it
    shifted = sharding.merge(A, lse + shift, A2, lse2 + between + shift)
    difference = (lse2 + between + shift) - (lse + shift)
    share = 1 / (1 + difference.double().exp())[..., None]
    torch.testing.assert_close(shifted[0].double(), share * A + (1 - share) * A2, rtol=0, atol=1e-6)
    torch.testing.assert_close(shifted[1], plain[1] + shift, rtol=1e-6, atol=1e-5)


@impostor("sharding.merge", "as it is printed: exponentials overflow, and two empty blocks are no number")
def merge_of_exponentials(A, lse, A2, lse2):
    e, e2 = lse.exp().unsqueeze(-1), lse2.exp().unsqueeze(-1)
    return (e * A + e2 * A2) / (e + e2), (e + e2).log().squeeze(-1)


@impostor("sharding.merge", "relative to the larger one, but without care for two empty blocks")
def merge_relative_to_the_larger(A, lse, A2, lse2):
    top = torch.maximum(lse, lse2)
    e, e2 = (lse - top).exp(), (lse2 - top).exp()
    return (e[..., None] * A + e2[..., None] * A2) / (e + e2)[..., None], top + (e + e2).log()


@impostor("sharding.merge", "the mean of both")
def merge_by_halves(A, lse, A2, lse2):
    return (A + A2) / 2, torch.logaddexp(lse, lse2)


@impostor("sharding.merge", "shares changed round")
def merge_with_shares_changed(A, lse, A2, lse2):
    share = torch.sigmoid(torch.where(lse == lse2, 0.0, lse2 - lse)).unsqueeze(-1)
    return share * A + (1 - share) * A2, torch.logaddexp(lse, lse2)


@impostor("sharding.merge", "the larger logarithm kept, not that of the sum: the third block weighs too much")
def merge_with_the_larger_logarithm(A, lse, A2, lse2):
    share = torch.sigmoid(torch.where(lse == lse2, 0.0, lse - lse2)).unsqueeze(-1)
    return share * A + (1 - share) * A2, torch.maximum(lse, lse2)


@impostor("sharding.merge", "weighed by the logarithms themselves")
def merge_by_logarithms(A, lse, A2, lse2):
    share = (lse / (lse + lse2)).unsqueeze(-1)
    return share * A + (1 - share) * A2, torch.logaddexp(lse, lse2)
