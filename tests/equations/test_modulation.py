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
