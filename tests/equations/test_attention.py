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


@pytest.mark.verifies("attention.softmax_attention")
@given(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]), st.integers(2, 6))
def test_a_logit_of_ten_thousand_is_no_harm_in_any_precision(dtype, M):
    """128 channels of 30 make 115200, beyond float16; over the root of 128 it is 10182 and fits. As textbooks write it
    the softmax overflows at 11 in float16 and at 88 in float32 and bfloat16."""
    k = torch.full((1, 1, M, 128), 30.0, dtype=dtype)
    k[:, :, 1:] = -30
    v = torch.arange(1, M + 1, dtype=dtype).reshape(1, 1, M, 1).expand(-1, -1, -1, 128)
    best = torch.ones(1, 1, 1, 128, dtype=dtype)
    torch.testing.assert_close(attention.softmax_attention(k[:, :, :1], k, v), best, rtol=0, atol=0)


@pytest.mark.verifies("attention.softmax_attention")
@given(widths, seeds)
def test_a_single_key_is_answered_with_its_value(K, seed):
    q, k, v = queries_keys_values(seed, 3, 1, K)
    torch.testing.assert_close(attention.softmax_attention(q, 100 * k, v), v.expand(-1, -1, 3, -1), **EXACT)


@pytest.mark.verifies("attention.softmax_attention")
@given(lengths, lengths, widths, st.integers(1, 5), seeds)
def test_padded_text_takes_its_share_of_the_attention(L, M, K, padding, seed):
    """A row of zeros has logit 0 and value 0: with Z the sum over the real keys, answers shrink by Z / (Z + padding).
    Cosmos was trained so; a mask over the padding changes every output."""
    q, k, v = queries_keys_values(seed, L, M, K)
    zeros = k.new_zeros(2, 3, padding, K)
    padded = attention.softmax_attention(q, torch.cat([k, zeros], dim=2), torch.cat([v, zeros], dim=2))
    Z = torch.einsum("bnlk,bnmk->bnlm", q, k).div(K**0.5).exp().sum(dim=-1, keepdim=True)
    torch.testing.assert_close(padded, attention.softmax_attention(q, k, v) * Z / (Z + padding), **EXACT)


@impostor("attention.softmax_attention", "rows of zeros masked, as padding is elsewhere")
def attention_with_a_mask_over_padding(q, k, v):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return scores.masked_fill(~k.any(dim=-1)[:, :, None], -math.inf).softmax(dim=-1) @ v


@impostor("attention.softmax_attention", "divided only when the product has overflowed already")
def attention_divided_too_late(q, k, v):
    return (torch.einsum("bnlk,bnmk->bnlm", q, k) / q.shape[-1] ** 0.5).softmax(dim=-1) @ v


@impostor("attention.softmax_attention", "one more in the denominator, as `softmax1` has it: it may attend to nothing")
def attention_to_nothing(q, k, v):
    nothing = [torch.cat([x, x.new_zeros(*x.shape[:2], 1, x.shape[3])], dim=2) for x in (k, v)]
    return nnf.scaled_dot_product_attention(q, *nothing)


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


@pytest.mark.verifies("attention.rms_norm")
@given(widths, seeds)
def test_every_head_of_every_token_is_normalised_by_itself(K, seed):
    x, weight = normal(seed, 2, 3, 4, K), normal(seed + 1, K)
    x = x * torch.arange(1, 25, dtype=torch.float64).reshape(2, 3, 4, 1)  # no two of a size
    together = attention.rms_norm(x, weight, 1e-6)
    for alone, y in zip(x.reshape(-1, 1, K), together.reshape(-1, 1, K), strict=True):
        torch.testing.assert_close(y, attention.rms_norm(alone, weight, 1e-6), **EXACT)


@pytest.mark.verifies("attention.rms_norm")
@given(st.floats(1e-6, 1), widths)
def test_zero_stays_zero_and_its_gradient_finite(eps, K):
    """The text's padding, say."""
    x = torch.zeros(2, K, dtype=torch.float64, requires_grad=True)
    y = attention.rms_norm(x, torch.ones(K, dtype=torch.float64), eps)
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(x))
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.verifies("attention.rms_norm")
@given(st.sampled_from([1e-4, 300.0]))
def test_neither_large_nor_small_vectors_are_lost_in_float16(size):
    """The square of 300 is beyond float16's largest number, that of 1e-4 below its smallest."""
    x = torch.full((2, 64), size, dtype=torch.float16)
    y = attention.rms_norm(x, torch.ones(64, dtype=torch.float16), 0.0)
    torch.testing.assert_close(y, torch.ones_like(x), rtol=0, atol=1e-3)


@impostor("attention.rms_norm", "squares in the precision of x, which overflow in float16")
def rms_norm_that_overflows(x, weight, eps):
    return x / ((x * x).mean(dim=-1, keepdim=True) + eps).sqrt() * weight


@impostor("attention.rms_norm", "over the heads of a token together")
def rms_norm_over_the_heads(x, weight, eps):
    axes = (-1, 1) if x.ndim == 4 else -1
    return weight * x / ((x**2).mean(dim=axes, keepdim=True) + eps).sqrt()


@impostor("attention.rms_norm", "root and eps in turn: no derivative at zero")
def rms_norm_with_root_before_eps(x, weight, eps):
    root = (x**2).mean(dim=-1, keepdim=True).sqrt()
    return weight * x / (root**2 + eps).sqrt()


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


# --- qk_norm


heads = st.integers(1, 4)


@pytest.mark.verifies("attention.qk_norm", by="point")
def test_qk_norm_of_two_heads_of_two():
    """(3, 4) and (0, 2) with weight (1, 2) and eps 3.5: roots of 12.5 + 3.5 = 16 and of 2 + 3.5."""
    x, weight = torch.tensor([[[3.0, 4, 0, 2]]], dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    normed = attention.qk_norm(x, weight, 3.5)
    expected = x.new_tensor([[0.75, 2.0], [0, 4 / 5.5**0.5]]).reshape(1, 2, 1, 2)
    torch.testing.assert_close(normed, expected, **EXACT)


@pytest.mark.verifies("attention.qk_norm")
@given(heads, lengths, widths, seeds)
def test_head_n_is_the_nth_run_of_channels_normalised_by_itself(N, L, K, seed):
    x, weight = normal(seed, 2, L, N * K), normal(seed + 1, K)
    normed = attention.qk_norm(x, weight, 1e-6)
    assert normed.shape == (2, N, L, K)
    for n in range(N):
        run = x[:, :, n * K : (n + 1) * K]
        torch.testing.assert_close(normed[:, n], attention.rms_norm(run, weight, 1e-6), **EXACT)


@pytest.mark.verifies("attention.qk_norm", "attention.softmax_attention")
@given(heads, lengths, widths, st.floats(1, 1e6), seeds)
def test_no_logit_outgrows_the_root_of_the_heads_width(N, L, K, size, seed):
    """However large the weights that made them: |q k| / sqrt(K) <= sqrt(K) with norms of weight one. So of L keys none
    gets more than e^(2 sqrt K) times the weight of another, and a softmax that has saturated can be left again."""
    one = torch.ones(K, dtype=torch.float64)
    q, k = (attention.qk_norm(size * x, one, 1e-6) for x in normal(seed, 2, 2, L, N * K))
    logits = torch.einsum("bnlk,bnmk->bnlm", q, k) / K**0.5
    assert logits.abs().max() <= K**0.5 * (1 + 1e-12)
    # the values are the keys' own numbers, one-hot: what comes out are the weights
    weights = attention.softmax_attention(q, k, torch.eye(L, dtype=torch.float64).expand(2, N, L, L))
    assert (weights.amax(dim=-1) <= weights.amin(dim=-1) * math.exp(2 * K**0.5) * (1 + 1e-9)).all()


@pytest.mark.verifies("attention.qk_norm")
@given(heads, lengths, widths, seeds)
def test_one_head_does_not_feel_the_size_of_another(N, L, K, seed):
    """The norm is the head's own: as many as there are, each is scaled back by itself."""
    x, weight = normal(seed, 2, L, N * K), normal(seed + 1, K)
    sizes = torch.arange(1, N + 1, dtype=torch.float64).repeat_interleave(K)
    torch.testing.assert_close(attention.qk_norm(sizes * x, weight, 0.0), attention.qk_norm(x, weight, 0.0), **EXACT)


def split(x, K):
    return x.unflatten(-1, (-1, K)).transpose(1, 2)


@impostor("attention.qk_norm", "over the whole width, all heads together")
def qk_norm_over_the_width(x, weight, eps):
    return split(x / ((x**2).mean(dim=-1, keepdim=True) + eps).sqrt(), len(weight)) * weight


@impostor("attention.qk_norm", "heads dealt out in turn, channel by channel")
def qk_norm_of_heads_in_turn(x, weight, eps):
    K = len(weight)
    return attention.rms_norm(x.unflatten(-1, (K, -1)).permute(0, 3, 1, 2), weight, eps)


@impostor("attention.qk_norm", "LayerNorm, as in ViT-22B")
def qk_norm_is_layer_norm(x, weight, eps):
    return nnf.layer_norm(split(x, len(weight)), weight.shape, weight, None, eps)


@impostor("attention.qk_norm", "unit length: logits between -1 and 1 over the root of the width, hardly any attention")
def qk_norm_of_unit_length(x, weight, eps):
    x = split(x, len(weight))
    return weight * x / ((x**2).sum(dim=-1, keepdim=True) + eps).sqrt()


@impostor("attention.qk_norm", "no norm at all: heads are cut, nothing else")
def qk_norm_forgotten(x, weight, eps):
    return split(x, len(weight)) * weight


# --- edges


def test_an_empty_batch_goes_through_and_stays_empty():
    q = attention.qk_norm(torch.zeros(0, 5, 12), torch.ones(4), 1e-6)
    assert q.shape == (0, 3, 5, 4)
    assert attention.softmax_attention(q, q, q).shape == (0, 3, 5, 4)
