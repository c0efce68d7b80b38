import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import modulation
from tests.impostors import impostor
from tests.strategies import normal, seeds

EXACT = dict(rtol=0, atol=1e-12)  # float64, sums of a few products of size 1
widths = st.integers(1, 6)
ranks = st.integers(1, 3)
parts = st.sampled_from([2, 3])  # the final layer has no gate


def weights(seed, D, R, parts):
    """Embedding, down, up and shared term of two samples."""
    return normal(seed, 2, D), normal(seed + 1, R, D), normal(seed + 2, parts * D, R), normal(seed + 3, 2, parts * D)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


# --- adaln_lora


@pytest.mark.verifies("modulation.adaln_lora", by="point")
def test_adaln_lora_of_one():
    """SiLU(1) = 0.731059, down 2, up (1, 2, 3): 1.462117 times each, plus the shared (10, 20, 30)."""
    out = modulation.adaln_lora(column(1), column(2), column(1, 2, 3), column(10, 20, 30).T, 3)
    expected = column(11.4621171573, 22.9242343145, 34.3863514718)
    torch.testing.assert_close(torch.cat(out), expected, rtol=0, atol=1e-9)


@pytest.mark.verifies("modulation.adaln_lora")
@given(widths, ranks, parts, seeds)
def test_before_training_every_sub_block_gets_the_shared_term(D, R, parts, seed):
    """`up` begins at zero: what is left is the shared term, cut into shift, scale and gate in this order."""
    embedding, down, up, shared = weights(seed, D, R, parts)
    out = modulation.adaln_lora(embedding, down, 0 * up, shared, parts)
    assert len(out) == parts
    for i, part in enumerate(out):
        torch.testing.assert_close(part, shared[:, i * D : (i + 1) * D], rtol=0, atol=0)


@pytest.mark.verifies("modulation.adaln_lora")
@given(widths, ranks, parts, seeds)
def test_opposite_embeddings_differ_by_the_linear_map_of_one(D, R, parts, seed):
    """SiLU(e) - SiLU(-e) = e, so only W2 W1 e is left: the SiLU comes first, and the shared term cancels."""
    embedding, down, up, shared = weights(seed, D, R, parts)
    there = torch.cat(modulation.adaln_lora(embedding, down, up, shared, parts), dim=-1)
    back = torch.cat(modulation.adaln_lora(-embedding, down, up, shared, parts), dim=-1)
    torch.testing.assert_close(there - back, embedding @ down.T @ up.T, **EXACT)


@pytest.mark.verifies("modulation.adaln_lora")
@given(widths, ranks, parts, st.floats(1.5, 10), seeds)
def test_only_the_product_of_the_two_matrices_counts(D, R, parts, factor, seed):
    """What one loses the other may win: between them nothing happens."""
    embedding, down, up, shared = weights(seed, D, R, parts)
    out = modulation.adaln_lora(embedding, down, up, shared, parts)
    moved = modulation.adaln_lora(embedding, factor * down, up / factor, shared, parts)
    torch.testing.assert_close(torch.cat(moved), torch.cat(out), **EXACT)


@impostor("modulation.adaln_lora", "SiLU forgotten")
def adaln_lora_without_silu(noise_embedding, down, up, shared, parts):
    return (noise_embedding @ down.T @ up.T + shared).chunk(parts, dim=-1)


@impostor("modulation.adaln_lora", "SiLU between the two matrices, as in an MLP")
def adaln_lora_with_silu_between(noise_embedding, down, up, shared, parts):
    return (nnf.silu(noise_embedding @ down.T) @ up.T + shared).chunk(parts, dim=-1)


@impostor("modulation.adaln_lora", "shared term forgotten")
def adaln_lora_without_shared(noise_embedding, down, up, shared, parts):
    return (nnf.silu(noise_embedding) @ down.T @ up.T).chunk(parts, dim=-1)


@impostor("modulation.adaln_lora", "order scale, shift, gate")
def adaln_lora_with_scale_first(noise_embedding, down, up, shared, parts):
    shift, scale, *gate = (nnf.silu(noise_embedding) @ down.T @ up.T + shared).chunk(parts, dim=-1)
    return (scale, shift, *gate)


@impostor("modulation.adaln_lora", "channels dealt out in turn, not in thirds")
def adaln_lora_dealt_in_turn(noise_embedding, down, up, shared, parts):
    out = nnf.silu(noise_embedding) @ down.T @ up.T + shared
    return tuple(out[:, i::parts] for i in range(parts))[::-1]


@impostor("modulation.adaln_lora", "shared term under the SiLU too")
def adaln_lora_with_silu_over_everything(noise_embedding, down, up, shared, parts):
    return nnf.silu(noise_embedding @ down.T @ up.T + shared).chunk(parts, dim=-1)


@impostor("modulation.adaln_lora", "order gate, shift, scale")
def adaln_lora_with_gate_first(noise_embedding, down, up, shared, parts):
    *rest, last = (nnf.silu(noise_embedding) @ down.T @ up.T + shared).chunk(parts, dim=-1)
    return (last, *rest)


# --- layer_norm


@pytest.mark.verifies("modulation.layer_norm", by="point")
def test_layer_norm_of_one_and_three():
    """Mean 2, variance 1; with eps 3 the root is 2."""
    x = column(1, 3).T
    torch.testing.assert_close(modulation.layer_norm(x, 0.0), column(-1, 1).T, **EXACT)
    torch.testing.assert_close(modulation.layer_norm(x, 3.0), column(-0.5, 0.5).T, **EXACT)


@pytest.mark.verifies("modulation.layer_norm")
@given(st.integers(2, 8), st.floats(1e-6, 1), seeds)
def test_layer_norm_leaves_mean_zero_and_unit_variance_up_to_eps(D, eps, seed):
    """Of a variance v comes v / (v + eps), in each token by itself."""
    x = normal(seed, 2, 3, D) + normal(seed + 1, 2, 3, 1)
    y, v = modulation.layer_norm(x, eps), x.var(dim=-1, correction=0)
    torch.testing.assert_close(y.mean(dim=-1), torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-11)
    torch.testing.assert_close(y.var(dim=-1, correction=0), v / (v + eps), rtol=1e-9, atol=0)


@pytest.mark.verifies("modulation.layer_norm")
@given(st.integers(2, 8), st.floats(0.01, 100), st.floats(0.1, 1), seeds)
def test_layer_norm_forgets_offset_and_scale(D, scale, eps, seed):
    """eps is added to a variance and scales like one."""
    x, offset = normal(seed, 3, D), normal(seed + 1, 3, 1)
    moved = modulation.layer_norm(scale * (x + offset), scale**2 * eps)
    torch.testing.assert_close(moved, modulation.layer_norm(x, eps), rtol=1e-9, atol=1e-11)


@pytest.mark.verifies("modulation.layer_norm")
@given(st.integers(2, 64), seeds)
def test_an_offset_of_ten_thousand_costs_float32_nothing(D, seed):
    """Sixteenths up to one added to 2^13 are exact in float32. The mean of squares less the square of the mean is not:
    of 7e7 float32 knows nothing below 4."""
    sixteenths = torch.randint(-16, 17, (3, D), generator=torch.Generator().manual_seed(seed)).float() / 16
    near, far = modulation.layer_norm(sixteenths, 1e-6), modulation.layer_norm(sixteenths + 2**13, 1e-6)
    # float32 sums of 64 numbers near 8192: the mean is off by up to 1e-3 of a spread that may be 1/16
    torch.testing.assert_close(far, near, rtol=0, atol=2e-2)


@pytest.mark.verifies("modulation.layer_norm")
@given(st.integers(2, 8), st.floats(-1e3, 1e3))
def test_a_token_whose_channels_are_all_equal_becomes_zero(D, value):
    y = modulation.layer_norm(torch.full((2, D), value, dtype=torch.float64), 1e-6)
    # the mean is off by up to 1e-13, which a root of eps of 1e-3 divides
    torch.testing.assert_close(y, torch.zeros_like(y), rtol=0, atol=1e-9)


@impostor("modulation.layer_norm", "RMS norm: the mean is not subtracted")
def layer_norm_is_rms_norm(x, eps):
    return x / ((x**2).mean(dim=-1, keepdim=True) + eps).sqrt()


@impostor("modulation.layer_norm", "variance over n - 1, PyTorch's default for `var`")
def layer_norm_with_sample_variance(x, eps):
    return (x - x.mean(dim=-1, keepdim=True)) / (x.var(dim=-1, keepdim=True) + eps).sqrt()


@impostor("modulation.layer_norm", "eps outside the root")
def layer_norm_with_eps_outside(x, eps):
    return (x - x.mean(dim=-1, keepdim=True)) / (x.std(dim=-1, correction=0, keepdim=True) + eps)


@impostor("modulation.layer_norm", "variance as the mean of squares less the square of the mean, which cancels")
def layer_norm_that_cancels(x, eps):
    mean, square = x.mean(dim=-1, keepdim=True), (x**2).mean(dim=-1, keepdim=True)
    return (x - mean) / ((square - mean**2).clamp_min(0) + eps).sqrt()


@impostor("modulation.layer_norm", "over all tokens at once")
def layer_norm_over_everything(x, eps):
    return (x - x.mean()) / (x.var(correction=0) + eps).sqrt()


@impostor("modulation.layer_norm", "only centred")
def layer_norm_only_centred(x, eps):
    return x - x.mean(dim=-1, keepdim=True)


# --- modulate


@pytest.mark.verifies("modulation.modulate", by="point")
def test_modulate_three_by_a_half_and_two():
    value = modulation.modulate(column(3)[None], column(2), column(0.5))
    assert value.item() == 6.5


@pytest.mark.verifies("modulation.modulate")
@given(widths, seeds)
def test_no_shift_and_no_scale_leave_the_tokens_alone(D, seed):
    x = normal(seed, 2, 3, D)
    zero = x.new_zeros(2, D)
    torch.testing.assert_close(modulation.modulate(x, zero, zero), x, rtol=0, atol=0)


@pytest.mark.verifies("modulation.modulate")
@given(widths, seeds)
def test_tokens_of_zeros_become_the_shift(D, seed):
    shift, scale = normal(seed, 2, 2, D)
    value = modulation.modulate(shift.new_zeros(2, 3, D), shift, scale)
    torch.testing.assert_close(value, shift[:, None].expand(2, 3, D), rtol=0, atol=0)


@pytest.mark.verifies("modulation.modulate")
@given(widths, seeds)
def test_every_sample_is_modulated_by_its_own_noise_level(D, seed):
    x, (shift, scale) = normal(seed, 2, 3, D), normal(seed + 1, 2, 2, D)
    second = modulation.modulate(x[1:], shift[1:], scale[1:])
    torch.testing.assert_close(modulation.modulate(x, shift, scale)[1:], second, rtol=0, atol=0)


@impostor("modulation.modulate", "`1 +` forgotten")
def modulate_without_one(x, shift, scale):
    return x * scale[:, None] + shift[:, None]


@impostor("modulation.modulate", "shift and scale exchanged")
def modulate_with_arguments_exchanged(x, shift, scale):
    return x * (1 + shift[:, None]) + scale[:, None]


@impostor("modulation.modulate", "shifted before it is scaled")
def modulate_shift_first(x, shift, scale):
    return (x + shift[:, None]) * (1 + scale[:, None])


@impostor("modulation.modulate", "the first sample's modulation for the whole batch")
def modulate_by_the_first_sample(x, shift, scale):
    return x * (1 + scale[0]) + shift[0]


# --- gate


@pytest.mark.verifies("modulation.gate", by="point")
def test_gate_of_three_lets_an_update_of_two_through_three_times():
    assert modulation.gate(column(1)[None], column(2)[None], column(3)).item() == 7


@pytest.mark.verifies("modulation.gate")
@given(widths, seeds)
def test_a_closed_gate_makes_the_sub_block_the_identity(D, seed):
    x, update = normal(seed, 2, 2, 3, D)
    torch.testing.assert_close(modulation.gate(x, update, x.new_zeros(2, D)), x, rtol=0, atol=0)


@pytest.mark.verifies("modulation.gate")
@given(widths, seeds)
def test_an_open_gate_makes_it_a_plain_residual(D, seed):
    x, update = normal(seed, 2, 2, 3, D)
    torch.testing.assert_close(modulation.gate(x, update, x.new_ones(2, D)), x + update, rtol=0, atol=0)


@pytest.mark.verifies("modulation.gate")
@given(widths, seeds)
def test_every_sample_has_its_own_gate(D, seed):
    x, update = normal(seed, 2, 2, 3, D)
    gate = normal(seed + 1, 2, D)
    second = modulation.gate(x[1:], update[1:], gate[1:])
    torch.testing.assert_close(modulation.gate(x, update, gate)[1:], second, rtol=0, atol=0)


@impostor("modulation.gate", "the gate on the residual stream too")
def gate_on_everything(x, update, gate):
    return gate[:, None] * (x + update)


@impostor("modulation.gate", "counted from one, like the scale")
def gate_from_one(x, update, gate):
    return x + (1 + gate[:, None]) * update


@impostor("modulation.gate", "a highway: what the gate lets in pushes out what was there")
def gate_as_highway(x, update, gate):
    return (1 - gate[:, None]) * x + gate[:, None] * update


@impostor("modulation.gate", "the first sample's gate for the whole batch")
def gate_of_the_first_sample(x, update, gate):
    return x + gate[0] * update


# --- edges


def test_an_empty_batch_goes_through_and_stays_empty():
    parts = modulation.adaln_lora(torch.zeros(0, 2), torch.ones(1, 2), torch.ones(6, 1), torch.zeros(0, 6), 3)
    assert [part.shape for part in parts] == [(0, 2)] * 3
    shift, scale, gate = parts
    x = modulation.layer_norm(torch.zeros(0, 5, 2), 1e-6)
    assert modulation.gate(x, modulation.modulate(x, shift, scale), gate).shape == (0, 5, 2)
