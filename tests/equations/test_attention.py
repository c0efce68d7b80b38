import math

import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import attention
from tests.impostors import impostor
from tests.strategies import normal, seeds

EXACT = dict(rtol=0, atol=1e-12)  # float64, a handful of products of size 1
lengths = st.integers(2, 7)
widths = st.integers(2, 8)


def queries_keys_values(seed, L, M, K):
    """Logits of order 1 once divided by the root of K; two samples, three heads."""
    return normal(seed, 2, 3, L, K), normal(seed + 1, 2, 3, M, K), normal(seed + 2, 2, 3, M, K)


# --- softmax_attention


@pytest.mark.verifies("attention.softmax_attention", by="point")
def test_attention_of_one_query_to_two_keys():
    """Four channels: the logits (2 ln 3, 0) are halved, so the weights are 3/4 and 1/4."""
    q = torch.tensor([[2 * math.log(3), 0, 0, 0]], dtype=torch.float64)
    k = torch.eye(4, dtype=torch.float64)[:2]
    v = torch.tensor([[4.0, 0, 1, 0], [0, 8, 1, 0]], dtype=torch.float64)
    value = attention.softmax_attention(q[None, None], k[None, None], v[None, None])
    torch.testing.assert_close(value.flatten(), v.new_tensor([3, 2, 1, 0]), **EXACT)


@pytest.mark.verifies("attention.softmax_attention")
@given(lengths, lengths, widths, seeds)
def test_attention_is_pytorchs(L, M, K, seed):
    """The model calls the fused kernel; the definition is this function."""
    q, k, v = queries_keys_values(seed, L, M, K)
    fused = nnf.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attention.softmax_attention(q, k, v), fused, **EXACT)


@pytest.mark.verifies("attention.softmax_attention")
@given(lengths, lengths, widths, seeds)
def test_attention_is_a_weighted_mean_of_the_values(L, M, K, seed):
    """Equal values come through unchanged, and nothing leaves the range of the values."""
    q, k, v = queries_keys_values(seed, L, M, K)
    equal = v[:, :, :1].expand_as(v)
    torch.testing.assert_close(attention.softmax_attention(q, k, equal), equal[:, :, :1].expand_as(q), **EXACT)
    out = attention.softmax_attention(q, k, v)
    assert (out <= v.amax(dim=2, keepdim=True) + 1e-12).all() and (out >= v.amin(dim=2, keepdim=True) - 1e-12).all()


@pytest.mark.verifies("attention.softmax_attention")
@given(lengths, lengths, widths, seeds)
def test_the_order_of_the_keys_does_not_matter(L, M, K, seed):
    q, k, v = queries_keys_values(seed, L, M, K)
    order = torch.arange(M).roll(1)
    torch.testing.assert_close(
        attention.softmax_attention(q, k[:, :, order], v[:, :, order]),
        attention.softmax_attention(q, k, v),
        **EXACT,
    )


@pytest.mark.verifies("attention.softmax_attention")
@given(lengths, lengths, widths, seeds)
def test_every_query_is_answered_as_if_it_were_alone(L, M, K, seed):
    q, k, v = queries_keys_values(seed, L, M, K)
    alone = torch.cat([attention.softmax_attention(q[:, :, i : i + 1], k, v) for i in range(L)], dim=2)
    torch.testing.assert_close(attention.softmax_attention(q, k, v), alone, **EXACT)


@pytest.mark.verifies("attention.softmax_attention")
@given(lengths, seeds)
def test_huge_logits_pick_the_best_key(M, seed):
    """exp(1000) is beyond every float: the softmax must subtract the largest logit first."""
    k = 100 * torch.eye(M, dtype=torch.float64)[None, None]
    v = normal(seed, 1, 1, M, M)
    torch.testing.assert_close(attention.softmax_attention(k, k, v), v, **EXACT)


@impostor("attention.softmax_attention", "logits not divided by the root of the head's width")
def attention_without_scale(q, k, v):
    return (q @ k.mT).softmax(dim=-1) @ v


@impostor("attention.softmax_attention", "logits divided by the width itself")
def attention_divided_by_the_width(q, k, v):
    return (q @ k.mT / q.shape[-1]).softmax(dim=-1) @ v


@impostor("attention.softmax_attention", "softmax over the queries")
def attention_normalised_over_queries(q, k, v):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-2) @ v


@impostor("attention.softmax_attention", "a causal mask: Cosmos' diffusion has none")
def attention_with_a_causal_mask(q, k, v):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return scores.masked_fill(~torch.ones_like(scores).tril().bool(), -math.inf).softmax(dim=-1) @ v


@impostor("attention.softmax_attention", "softmax as the textbook writes it, overflowing")
def attention_that_overflows(q, k, v):
    weights = (q @ k.mT / q.shape[-1] ** 0.5).exp()
    return weights / weights.sum(dim=-1, keepdim=True) @ v


# --- rms_norm


@pytest.mark.verifies("attention.rms_norm", by="point")
def test_rms_norm_of_three_and_four():
    """Mean square 12.5; with eps 3.5 the root is 4."""
    x, weight = torch.tensor([[3.0, 4.0], [1.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(
        attention.rms_norm(x, weight, 0.0), x.new_tensor([0.848528137, 2.262741700]), rtol=0, atol=1e-9
    )
    torch.testing.assert_close(attention.rms_norm(x, weight, 3.5), x.new_tensor([0.75, 2.0]), **EXACT)


@pytest.mark.verifies("attention.rms_norm")
@given(widths, st.floats(1e-3, 1e3), st.one_of(st.just(0.0), st.floats(0.1, 1)), seeds)
def test_rms_norm_forgets_the_scale(K, scale, eps, seed):
    """Without eps altogether; and eps, which is added to a square, scales like one."""
    x, weight = normal(seed, 3, K), normal(seed + 1, K)
    torch.testing.assert_close(
        attention.rms_norm(scale * x, weight, scale**2 * eps), attention.rms_norm(x, weight, eps), **EXACT
    )


@pytest.mark.verifies("attention.rms_norm")
@given(widths, seeds)
def test_rms_norm_gives_every_vector_unit_mean_square(K, seed):
    y = attention.rms_norm(normal(seed, 3, K), torch.ones(K, dtype=torch.float64), 0.0)
    torch.testing.assert_close((y**2).mean(dim=-1), torch.ones(3, dtype=torch.float64), **EXACT)


@pytest.mark.verifies("attention.rms_norm")
@given(widths, seeds)
def test_rms_norm_keeps_the_direction(K, seed):
    """Nothing is subtracted: with unit weights, x and its norm are parallel."""
    x = normal(seed, 3, K) + 3
    y = attention.rms_norm(x, torch.ones(K, dtype=torch.float64), 1e-6)
    torch.testing.assert_close(torch.cosine_similarity(x, y), torch.ones(3, dtype=torch.float64), **EXACT)


@pytest.mark.verifies("attention.rms_norm")
@given(widths, seeds)
def test_the_weight_of_rms_norm_multiplies(K, seed):
    x, weight = normal(seed, 3, K), normal(seed + 1, K)
    plain = attention.rms_norm(x, torch.ones_like(weight), 1e-6)
    torch.testing.assert_close(attention.rms_norm(x, weight, 1e-6), weight * plain, **EXACT)


@impostor("attention.rms_norm", "LayerNorm: the mean is subtracted")
def rms_norm_is_layer_norm(x, weight, eps):
    return nnf.layer_norm(x, weight.shape, weight, None, eps)


@impostor("attention.rms_norm", "eps outside the root (Cosmos does so for the learned positions, not here)")
def rms_norm_with_eps_outside(x, weight, eps):
    return weight * x / ((x**2).mean(dim=-1, keepdim=True).sqrt() + eps)


@impostor("attention.rms_norm", "length in place of root mean square")
def rms_norm_of_unit_length(x, weight, eps):
    return weight * x / ((x**2).sum(dim=-1, keepdim=True) + eps).sqrt()


@impostor("attention.rms_norm", "weight counted from one, as in Gemma")
def rms_norm_with_weight_from_one(x, weight, eps):
    return (1 + weight) * x / ((x**2).mean(dim=-1, keepdim=True) + eps).sqrt()


@impostor("attention.rms_norm", "the mean over all vectors at once")
def rms_norm_over_everything(x, weight, eps):
    return weight * x / ((x**2).mean() + eps).sqrt()


@impostor("attention.rms_norm", "variance left unrooted")
def rms_norm_without_root(x, weight, eps):
    return weight * x / ((x**2).mean(dim=-1, keepdim=True) + eps)
