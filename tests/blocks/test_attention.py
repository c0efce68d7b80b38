import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.blocks.attention import CrossAttention, RMSNorm, SelfAttention, normed_heads
from cosmos_ref.equations import attention, rope
from tests.blocks.filled import filled
from tests.strategies import normal, seeds

WIDTH, HEADS, TEXT_WIDTH = 36, 3, 10
HEAD_DIM = WIDTH // HEADS
FPS = torch.tensor([24.0, 30.0], dtype=torch.float64)
EXACT = dict(rtol=0, atol=1e-12)  # float64 rounding of sums of a few dozen numbers near one
GRID = torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(2))


def angles(positions):
    table = rope.angles_3d(positions, FPS, HEAD_DIM, (1.0, 1.0, 1.0), 10000.0, 24.0)
    return table.cos(), table.sin()


def nowhere(tokens):
    """No positions: nothing is rotated."""
    return torch.ones(2, tokens, HEAD_DIM).double(), torch.zeros(2, tokens, HEAD_DIM).double()


@pytest.fixture(scope="module")
def self_attention():
    return filled(SelfAttention(WIDTH, HEADS, 1e-6))


@pytest.fixture(scope="module")
def cross_attention():
    return filled(CrossAttention(WIDTH, TEXT_WIDTH, HEADS, 1e-6))


@given(order=st.permutations(range(7)), seed=seeds)
def test_self_attention_without_positions_only_reorders_when_its_tokens_are_reordered(self_attention, order, seed):
    x = normal(seed, 2, 7, WIDTH)
    torch.testing.assert_close(
        self_attention(x[:, order], *nowhere(7)), self_attention(x, *nowhere(7))[:, order], **EXACT
    )


def test_self_attention_with_positions_is_not_blind_to_order(self_attention):
    x = normal(0, 2, 8, WIDTH)
    swapped = [1, 0, *range(2, 8)]
    moved = self_attention(x[:, swapped], *angles(GRID))[:, swapped]
    assert (moved - self_attention(x, *angles(GRID))).abs().max() > 1e-3


@given(shift=st.tuples(*[st.integers(0, 40)] * 3), seed=seeds)
def test_self_attention_feels_only_how_far_tokens_stand_apart(self_attention, shift, seed):
    x = normal(seed, 2, 8, WIDTH)
    here, there = (self_attention(x, *angles(GRID + torch.tensor(by))) for by in ((0, 0, 0), shift))
    torch.testing.assert_close(here, there, **EXACT)


@given(scale=st.floats(0.1, 100), seed=seeds)
def test_attention_does_not_feel_the_size_of_its_queries(self_attention, cross_attention, scale, seed):
    """The norm's eps of 1e-6 is felt, against mean squares of about 0.01 and more: 1e-3 of the output covers it."""
    x, text = normal(seed, 2, 8, WIDTH), normal(seed + 1, 2, 5, TEXT_WIDTH)
    calls = {
        self_attention: lambda: self_attention(x, *angles(GRID)),
        cross_attention: lambda: cross_attention(x, *cross_attention.keys_values(text)),
    }
    for module, call in calls.items():
        before, weight = call(), module.to_q.weight.detach().clone()
        with torch.no_grad():
            module.to_q.weight.mul_(scale)
            after = call()
            module.to_q.weight.copy_(weight)
        torch.testing.assert_close(after, before, rtol=0, atol=1e-3)


@given(seed=seeds)
def test_the_fused_attention_is_the_attention_of_the_equations(seed):
    module = filled(SelfAttention(WIDTH, HEADS, 1e-6), seed % 100)
    x = normal(seed, 2, 8, WIDTH)
    fused = module(x, *angles(GRID))
    module.attend = attention.softmax_attention
    torch.testing.assert_close(fused, module(x, *angles(GRID)), **EXACT)


def test_attend_is_all_that_mixes_tokens(self_attention):
    """With an `attend` that gives every token its own value, the module is linear, token by token."""
    module = filled(SelfAttention(WIDTH, HEADS, 1e-6))
    module.attend = lambda q, k, v: v
    x = normal(1, 2, 8, WIDTH)
    expected = x @ module.to_v.weight.T @ module.to_out.weight.T
    torch.testing.assert_close(module(x, *angles(GRID)), expected, **EXACT)


def test_attend_meets_normalised_then_rotated_queries_and_keys():
    """Rotation keeps lengths, so behind norms of weight one every query and key has length sqrt(head_dim)."""
    module, met = filled(SelfAttention(WIDTH, HEADS, 1e-6)), {}
    with torch.no_grad():
        module.norm_q.weight.fill_(1)
        module.norm_k.weight.fill_(1)

    def attend(q, k, v):
        met.update(q=q, k=k, v=v)
        return v

    module.attend = attend
    x = normal(2, 2, 8, WIDTH)
    module(x, *angles(GRID))
    for name in "qk":
        # the norm's eps, 1e-6 against mean squares above 0.01
        torch.testing.assert_close(
            met[name].norm(dim=-1), torch.full((2, HEADS, 8), HEAD_DIM**0.5).double(), rtol=1e-4, atol=0
        )
    module(x, *nowhere(8))
    assert (
        met["q"][:, :, 0] - module.norm_q((x[:, 0] @ module.to_q.weight.T).unflatten(-1, (HEADS, -1)))
    ).abs().max() < 1e-12
    heads = (x @ module.to_v.weight.T).chunk(HEADS, dim=-1)  # head n owns channels nK .. (n+1)K
    torch.testing.assert_close(met["v"], torch.stack(heads, dim=1), **EXACT)


def test_angles_in_float32_leave_a_bfloat16_module_in_bfloat16():
    module = filled(SelfAttention(WIDTH, HEADS, 1e-6)).bfloat16()
    cos, sin = (table.float() for table in angles(GRID))
    met = []
    module.attend = lambda q, k, v: met.extend((q.dtype, k.dtype, v.dtype)) or v
    module(normal(3, 2, 8, WIDTH).bfloat16(), cos, sin)
    assert set(met) == {torch.bfloat16}


def test_a_norm_with_float32_weights_leaves_bfloat16_in_bfloat16():
    """As under autocast, which hands it what a linear layer made."""
    norm, x = filled(RMSNorm(HEAD_DIM)).float(), normal(4, 2, 8, WIDTH).bfloat16()
    assert norm(x[..., :HEAD_DIM]).dtype == normed_heads(x, norm).dtype == torch.bfloat16


@given(order=st.permutations(range(5)), seed=seeds)
def test_cross_attention_does_not_feel_the_order_of_the_text(cross_attention, order, seed):
    x, text = normal(seed, 2, 4, WIDTH), normal(seed + 1, 2, 5, TEXT_WIDTH)
    straight = cross_attention(x, *cross_attention.keys_values(text))
    torch.testing.assert_close(cross_attention(x, *cross_attention.keys_values(text[:, order])), straight, **EXACT)


@given(seed=seeds, rows=st.integers(1, 4))
def test_cross_attention_attends_to_padded_rows_as_to_any_other(cross_attention, seed, rows):
    """A zero row has score 0 and value 0: it takes weight from the others and gives nothing, so M rows of text whose
    scores are all 0 come out as M / (M + rows) of themselves."""
    x = normal(seed, 2, 4, WIDTH)
    text = normal(seed + 1, 2, 3, TEXT_WIDTH)
    padded = torch.cat([text, text.new_zeros(2, rows, TEXT_WIDTH)], dim=1)
    alone, beside_zeros = (cross_attention(x, *cross_attention.keys_values(y)) for y in (text, padded))
    assert (alone - beside_zeros).abs().max() > 1e-3
    keys, values = cross_attention.keys_values(text)
    padded_keys, padded_values = cross_attention.keys_values(padded)
    flat = cross_attention(x, 0 * keys, values), cross_attention(x, 0 * padded_keys, padded_values)
    torch.testing.assert_close(flat[1], flat[0] * 3 / (3 + rows), **EXACT)


@given(seed=seeds)
def test_cross_attention_is_the_attention_of_the_equations(cross_attention, seed):
    x, text = normal(seed, 2, 4, WIDTH), normal(seed + 1, 2, 5, TEXT_WIDTH)
    module = cross_attention

    def heads(y):
        return torch.stack(y.chunk(HEADS, dim=-1), dim=1)

    def normed(y, weight):
        return y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    q = normed(heads(x @ module.to_q.weight.T), module.norm_q.weight)
    k = normed(heads(text @ module.to_k.weight.T), module.norm_k.weight)
    mixed = attention.softmax_attention(q, k, heads(text @ module.to_v.weight.T))
    expected = torch.cat(list(mixed.unbind(1)), dim=-1) @ module.to_out.weight.T
    torch.testing.assert_close(module(x, *module.keys_values(text)), expected, **EXACT)
