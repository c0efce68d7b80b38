import math

import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import embeddings
from tests.impostors import impostor
from tests.strategies import normal, seeds

noise_inputs = st.floats(-2.2, 1.1)  # the range of c_noise over the schedule
widths = st.sampled_from([4, 8, 32, 128])
frequencies = st.floats(-20, 20)
epsilons = st.floats(1e-6, 1.0)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


# --- sinusoidal


def as_complex(embedding: torch.Tensor) -> torch.Tensor:
    """cos + i sin, from an embedding whose first half is the cosines."""
    cos, sin = embedding.chunk(2, dim=-1)
    return torch.complex(cos, sin)


@pytest.mark.verifies("embeddings.sinusoidal", by="point")
def test_sinusoidal_of_zero_and_one():
    values = embeddings.sinusoidal(torch.tensor([0.0, 1.0]).double(), 4)
    cosines_first = [0.540302, 0.999950, 0.841471, 0.010000]  # cos 1, cos 0.01, sin 1, sin 0.01
    expected = values.new_tensor([[1.0, 1.0, 0.0, 0.0], cosines_first])
    torch.testing.assert_close(values, expected, rtol=0, atol=6e-7)


@pytest.mark.verifies("embeddings.sinusoidal")
@given(noise_inputs, noise_inputs, widths)
def test_a_shift_is_a_rotation_by_a_fixed_angle(c, offset, width):
    shifted = as_complex(embeddings.sinusoidal(scalar(c + offset), width))
    rotation = as_complex(embeddings.sinusoidal(scalar(offset), width))
    rotated = as_complex(embeddings.sinusoidal(scalar(c), width)) * rotation
    torch.testing.assert_close(shifted, rotated, rtol=0, atol=1e-13)


@pytest.mark.verifies("embeddings.sinusoidal")
@given(noise_inputs.filter(lambda c: abs(c) > 0.01), widths)
def test_the_first_pair_turns_by_c_and_each_next_one_slower_by_the_same_factor(c, width):
    angles = as_complex(embeddings.sinusoidal(scalar(c), width)).angle()[0]
    torch.testing.assert_close(angles[0].item(), c, rtol=1e-12, atol=0)
    ratio = angles[1:] / angles[:-1]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1e4 ** (-2 / width)), rtol=1e-9, atol=0)


halves = st.sampled_from([torch.float16, torch.bfloat16])


@pytest.mark.verifies("embeddings.sinusoidal")
@given(noise_inputs, st.sampled_from([128, 2048]), halves)
def test_a_noise_level_in_half_precision_is_embedded_to_the_last_bit(c, width, dtype):
    """Only what comes out is rounded. (Counted in bfloat16, frequency 257 would be frequency 256 once more.)"""
    c = torch.tensor([c], dtype=torch.float64).to(dtype)
    embedded = embeddings.sinusoidal(c, width)
    assert embedded.dtype == dtype
    exact = embeddings.sinusoidal(c.double(), width)
    # half a unit in the last place, and float32's error on an angle below 3
    torch.testing.assert_close(embedded.double(), exact, rtol=torch.finfo(dtype).eps / 2, atol=1e-6)


@pytest.mark.verifies("embeddings.sinusoidal")
@given(st.lists(noise_inputs, max_size=3), widths)
def test_every_noise_level_is_embedded_by_itself(levels, width):
    """None at all, too."""
    together = embeddings.sinusoidal(torch.tensor(levels, dtype=torch.float64), width)
    assert together.shape == (len(levels), width)
    for c, row in zip(levels, together, strict=True):
        torch.testing.assert_close(row, embeddings.sinusoidal(scalar(c), width)[0], rtol=0, atol=1e-15)


@impostor("embeddings.sinusoidal", "frequencies counted in the precision of the noise level")
def sinusoidal_in_the_precision_of_c(c_noise, width):
    exponent = torch.arange(width // 2, dtype=c_noise.dtype) / (width // 2)
    return torch.cat(waves(c_noise, torch.exp(-math.log(10000) * exponent)), dim=-1)


@impostor("embeddings.sinusoidal", "cosines and sines in turn")
def sinusoidal_in_turn(c_noise, width):
    frequencies = 10000 ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)
    return torch.stack(waves(c_noise, frequencies), dim=-1).flatten(1)


@impostor("embeddings.sinusoidal", "the first noise level for the whole batch")
def sinusoidal_of_the_first_level(c_noise, width):
    frequencies = 10000 ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)
    return torch.cat(waves(c_noise[:1].expand(len(c_noise)), frequencies), dim=-1)


@impostor("embeddings.sinusoidal", "sines first, as the Transformer paper writes them")
def sinusoidal_sines_first(c_noise, width):
    frequencies = 10000 ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)
    cos, sin = waves(c_noise, frequencies)
    return torch.cat([sin, cos], dim=-1)


@impostor("embeddings.sinusoidal", "times 1000, as for time steps between 0 and 1")
def sinusoidal_of_a_thousand_steps(c_noise, width):
    frequencies = 10000 ** (-2 * torch.arange(width // 2, dtype=torch.float64) / width)
    return torch.cat(waves(1000 * c_noise, frequencies), dim=-1)


@impostor("embeddings.sinusoidal", "the slowest frequency is 1 / 10000 itself: D / 2 - 1 in the exponent")
def sinusoidal_with_closed_range(c_noise, width):
    frequencies = 10000 ** -torch.linspace(0, 1, width // 2, dtype=torch.float64)
    return torch.cat(waves(c_noise, frequencies), dim=-1)


def waves(c_noise, frequencies):
    angles = c_noise[:, None] * frequencies
    return angles.cos(), angles.sin()


# --- noise_embedding


def layers(seed, D, P):
    """Sinusoid of two samples, weight of the norm, the two linear layers."""
    return normal(seed, 2, D), normal(seed + 1, D), normal(seed + 2, D, D), normal(seed + 3, P, D)


sizes = st.integers(1, 6)


@pytest.mark.verifies("embeddings.noise_embedding", by="point")
def test_noise_embedding_of_three_and_four():
    """Mean square 12.5, and with eps 3.5 the root is 4. W1 adds up to 1, SiLU(1) = 0.7310586, W2 is (1, 10)."""
    s, weight = torch.tensor([[3.0, 4.0], [1.0, 2.0]], dtype=torch.float64)
    linear_1, linear_2 = s.new_tensor([[-1.0, 1.0], [0, 0]]), s.new_tensor([[1.0, 0], [10, 0]])
    embedding, shared = embeddings.noise_embedding(s[None], weight, linear_1, linear_2, 3.5)
    torch.testing.assert_close(embedding, s.new_tensor([[0.75, 2.0]]), rtol=0, atol=1e-14)
    torch.testing.assert_close(shared, s.new_tensor([[0.7310585786, 7.310585786]]), rtol=0, atol=6e-10)


@pytest.mark.verifies("embeddings.noise_embedding")
@given(sizes, sizes, seeds)
def test_the_layers_do_not_reach_the_embedding(D, P, seed):
    """It is the sinusoid, normalised; what the layers make of it is the shared term alone."""
    s, weight, linear_1, linear_2 = layers(seed, D, P)
    embedding, _ = embeddings.noise_embedding(s, weight, linear_1, linear_2, 1e-6)
    other, _ = embeddings.noise_embedding(s, weight, -linear_1, 3 * linear_2, 1e-6)
    torch.testing.assert_close(embedding, other, rtol=0, atol=0)
    unit = embeddings.noise_embedding(s, torch.ones_like(weight), linear_1, linear_2, 0.0)[0]
    torch.testing.assert_close(torch.cosine_similarity(unit, s), s.new_ones(2), rtol=0, atol=1e-12)
    torch.testing.assert_close(rms(unit), s.new_ones(2), rtol=0, atol=1e-12)


@pytest.mark.verifies("embeddings.noise_embedding")
@given(sizes, sizes, st.floats(0.1, 10), seeds)
def test_the_shared_term_sees_the_sinusoid_before_its_norm(D, P, factor, seed):
    """SiLU(y) - SiLU(-y) = y: from s and -s comes W2 W1 s, of whatever size s is and with whatever weight."""
    s, weight, linear_1, linear_2 = layers(seed, D, P)
    there, back = (
        embeddings.noise_embedding(x, weight, linear_1, linear_2, 1e-6)[1] for x in (factor * s, -factor * s)
    )
    torch.testing.assert_close(there - back, factor * s @ linear_1.T @ linear_2.T, rtol=1e-11, atol=1e-11)


@pytest.mark.verifies("embeddings.noise_embedding")
@given(sizes, sizes, st.floats(-3, 3), seeds)
def test_the_shared_term_is_linear_in_the_second_layer_alone(D, P, factor, seed):
    """No nonlinearity behind it; one in front of it, and SiLU's at that: its slope at zero is one half."""
    s, weight, linear_1, linear_2 = layers(seed, D, P)
    shared = embeddings.noise_embedding(s, weight, linear_1, linear_2, 1e-6)[1]
    scaled = embeddings.noise_embedding(s, weight, linear_1, factor * linear_2, 1e-6)[1]
    torch.testing.assert_close(scaled, factor * shared, rtol=1e-11, atol=1e-11)
    small = embeddings.noise_embedding(s, weight, 1e-7 * linear_1, linear_2, 1e-6)[1]
    torch.testing.assert_close(2e7 * small, s @ linear_1.T @ linear_2.T, rtol=1e-4, atol=1e-4)


def mlp_of(s, linear_1, linear_2):
    return nnf.silu(s @ linear_1.T) @ linear_2.T


@impostor("embeddings.noise_embedding", "the embedding is what the layers make of the sinusoid, as in the DiT paper")
def noise_embedding_of_the_mlp(sinusoid, weight, linear_1, linear_2, eps):
    shared = mlp_of(sinusoid, linear_1, linear_2)
    return nnf.rms_norm(sinusoid @ linear_1.T, weight.shape, weight, eps), shared


@impostor("embeddings.noise_embedding", "the raw sinusoid, not normalised")
def noise_embedding_not_normalised(sinusoid, weight, linear_1, linear_2, eps):
    return sinusoid * weight, mlp_of(sinusoid, linear_1, linear_2)


@impostor("embeddings.noise_embedding", "normalised first, and the layers see that")
def noise_embedding_normalised_for_the_layers(sinusoid, weight, linear_1, linear_2, eps):
    embedding = nnf.rms_norm(sinusoid, weight.shape, weight, eps)
    return embedding, mlp_of(embedding, linear_1, linear_2)


@impostor("embeddings.noise_embedding", "SiLU forgotten between the layers")
def noise_embedding_without_silu(sinusoid, weight, linear_1, linear_2, eps):
    return nnf.rms_norm(sinusoid, weight.shape, weight, eps), sinusoid @ linear_1.T @ linear_2.T


@impostor("embeddings.noise_embedding", "GELU between the layers")
def noise_embedding_with_gelu(sinusoid, weight, linear_1, linear_2, eps):
    shared = nnf.gelu(sinusoid @ linear_1.T) @ linear_2.T
    return nnf.rms_norm(sinusoid, weight.shape, weight, eps), shared


@impostor("embeddings.noise_embedding", "SiLU behind the second layer as well")
def noise_embedding_with_two_silus(sinusoid, weight, linear_1, linear_2, eps):
    shared = nnf.silu(mlp_of(sinusoid, linear_1, linear_2))
    return nnf.rms_norm(sinusoid, weight.shape, weight, eps), shared


# --- fourier_features


def all_phases(frequency: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One frequency at eight evenly spread phases: averages over them are exact averages over all."""
    phases = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    return torch.full_like(phases, frequency), phases


@pytest.mark.verifies("embeddings.fourier_features", by="point")
def test_fourier_features_by_hand():
    """A phase comes on top of the angle: the cosine of 90 and 30 degrees is -1/2."""
    f, phases = math.pi * torch.tensor([[1, 0, 2, 1], [0, 1 / 3, 0, 1 / 6]], dtype=torch.float64)
    values = embeddings.fourier_features(scalar(0.5), f, phases)
    torch.testing.assert_close(values, values.new_tensor([[0.0, 0.707107, -1.414214, -0.707107]]), rtol=0, atol=6e-7)


@pytest.mark.verifies("embeddings.fourier_features")
@given(noise_inputs, frequencies)
def test_over_all_phases_the_features_have_unit_mean_square(c, frequency):
    features = embeddings.fourier_features(scalar(c), *all_phases(frequency))
    assert math.isclose((features**2).mean().item(), 1, rel_tol=1e-12)


@pytest.mark.verifies("embeddings.fourier_features")
@given(noise_inputs, noise_inputs, frequencies)
def test_the_features_of_two_inputs_correlate_by_their_distance_alone(a, b, frequency):
    """Over all phases, E[phi(a) phi(b)] = cos(f (a - b)): what u(sigma) can tell apart."""
    phi_a = embeddings.fourier_features(scalar(a), *all_phases(frequency))
    phi_b = embeddings.fourier_features(scalar(b), *all_phases(frequency))
    assert math.isclose((phi_a * phi_b).mean().item(), math.cos(frequency * (a - b)), abs_tol=1e-12)


@pytest.mark.verifies("embeddings.fourier_features")
@given(noise_inputs, frequencies, halves)
def test_features_in_half_precision_are_rounded_once(c, frequency, dtype):
    """An angle of 20 in bfloat16 is off by 0.06, and so would be the feature."""
    c, frequency, phase = (torch.tensor([v], dtype=torch.float64).to(dtype) for v in (c, frequency, 1.0))
    features = embeddings.fourier_features(c, frequency, phase)
    assert features.dtype == dtype
    exact = embeddings.fourier_features(c.double(), frequency.double(), phase.double())
    # half a unit in the last place, and float32's error on an angle below 45
    torch.testing.assert_close(features.double(), exact, rtol=torch.finfo(dtype).eps / 2, atol=1e-5)
    mixed = embeddings.fourier_features(c, frequency.float(), phase.float())
    torch.testing.assert_close(mixed, exact.float(), rtol=0, atol=1e-5)


@impostor("embeddings.fourier_features", "angles in the precision of the noise level")
def features_in_the_precision_of_c(c_noise, frequencies, phases):
    return math.sqrt(2) * torch.cos(c_noise[:, None] * frequencies + phases)


@impostor("embeddings.fourier_features", "without the factor that gives unit variance")
def features_of_half_variance(c_noise, frequencies, phases):
    return torch.cos(c_noise[:, None] * frequencies + phases)


@impostor(
    "embeddings.fourier_features", "phases subtracted: as good before training, and not what a trained layer expects"
)
def features_with_phases_subtracted(c_noise, frequencies, phases):
    return math.sqrt(2) * torch.cos(c_noise[:, None] * frequencies - phases)


@impostor("embeddings.fourier_features", "phases forgotten")
def features_without_phases(c_noise, frequencies, phases):
    return math.sqrt(2) * torch.cos(c_noise[:, None] * frequencies)


@impostor("embeddings.fourier_features", "2 pi applied again, though the frequencies already hold it")
def features_in_turns(c_noise, frequencies, phases):
    return math.sqrt(2) * torch.cos(2 * math.pi * c_noise[:, None] * frequencies + phases)


# --- position_embedding


@pytest.mark.verifies("embeddings.position_embedding", by="point")
def test_position_embedding_of_a_three_four_five_triangle():
    t, h, w = (torch.tensor(v).double() for v in ([3.0, 0.0], [0.0, 4.0], [0.0, 0.0]))
    value = embeddings.position_embedding(t, h, w, eps=0.5)
    expected = value.new_tensor([0.743396, 0.991195])  # [3, 4] / (0.5 + 5 / sqrt 2)
    torch.testing.assert_close(value, expected, rtol=0, atol=6e-7)


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean(dim=-1).sqrt()


@pytest.mark.verifies("embeddings.position_embedding")
@given(seeds, epsilons)
def test_position_embedding_has_unit_root_mean_square_up_to_eps(seed, eps):
    """eps stands beside the root mean square r, not under a root: what comes out has r / (r + eps)."""
    t, h, w = normal(seed, 3, 6), normal(seed + 1, 3, 6), normal(seed + 2, 3, 6)
    r = rms(t + h + w)
    torch.testing.assert_close(rms(embeddings.position_embedding(t, h, w, eps)), r / (r + eps), rtol=1e-12, atol=0)


@pytest.mark.verifies("embeddings.position_embedding")
@given(seeds)
def test_only_the_sum_of_the_three_axes_counts(seed):
    t, h, w, d = (normal(seed + i, 3, 6) for i in range(4))
    moved = embeddings.position_embedding(t + d, h - d, w, 1e-6)
    torch.testing.assert_close(moved, embeddings.position_embedding(t, h, w, 1e-6), rtol=1e-9, atol=1e-12)


@pytest.mark.verifies("embeddings.position_embedding")
@given(seeds, st.floats(0.01, 100))
def test_the_size_of_the_tables_does_not_matter(seed, factor):
    t, h, w = normal(seed, 3, 6), normal(seed + 1, 3, 6), normal(seed + 2, 3, 6)
    scaled = embeddings.position_embedding(factor * t, factor * h, factor * w, 0.0)
    torch.testing.assert_close(scaled, embeddings.position_embedding(t, h, w, 0.0), rtol=1e-12, atol=0)


@pytest.mark.verifies("embeddings.position_embedding")
@given(st.integers(1, 8), epsilons)
def test_rows_that_cancel_give_no_position_and_a_finite_gradient(width, eps):
    """At zero the root of a mean square has no derivative: written out, it sends NaN into the tables."""
    t = torch.zeros(2, width, dtype=torch.float64, requires_grad=True)
    embedded = embeddings.position_embedding(t, t.detach(), t.detach(), eps)
    embedded.sum().backward()
    assert torch.equal(embedded, torch.zeros_like(t))
    assert t.grad is not None and t.grad.isfinite().all()


@pytest.mark.verifies("embeddings.position_embedding")
@given(st.sampled_from([1e-4, 300.0]), seeds)
def test_neither_large_nor_small_tables_are_lost_in_float16(size, seed):
    """The square of 300 is beyond float16's largest number and that of 1e-4 below its smallest."""
    t, zero = size * torch.ones(2, 64, dtype=torch.float16), torch.zeros(2, 64, dtype=torch.float16)
    embedded = embeddings.position_embedding(t, zero, zero, 0.0)
    torch.testing.assert_close(embedded, torch.ones_like(t), rtol=0, atol=2e-3)


@impostor("embeddings.position_embedding", "root of the mean square written out: NaN at zero, overflow in float16")
def position_with_the_root_written_out(t, h, w, eps):
    e = t + h + w
    return e / (eps + e.square().mean(dim=-1, keepdim=True).sqrt())


@impostor("embeddings.position_embedding", "the mean over all tokens at once")
def position_normalised_over_everything(t, h, w, eps):
    e = t + h + w
    return e / (eps + torch.linalg.vector_norm(e) / math.sqrt(e.numel()))


@impostor("embeddings.position_embedding", "eps under the root, as RMSNorm has it")
def position_with_eps_inside(t, h, w, eps):
    e = t + h + w
    return e / (e.square().mean(dim=-1, keepdim=True) + eps).sqrt()


@impostor("embeddings.position_embedding", "unit length instead of unit root mean square")
def position_of_unit_length(t, h, w, eps):
    e = t + h + w
    return e / (eps + torch.linalg.vector_norm(e, dim=-1, keepdim=True))


@impostor("embeddings.position_embedding", "each axis normalised before the sum")
def position_normalised_by_axis(t, h, w, eps):
    return sum(axis / (eps + rms(axis)[..., None]) for axis in (t, h, w)) / 3**0.5


@impostor("embeddings.position_embedding", "the plain sum")
def position_not_normalised(t, h, w, eps):
    return t + h + w


# --- edges


def test_an_empty_batch_goes_through_and_stays_empty():
    nothing = torch.zeros(0)
    assert embeddings.fourier_features(nothing, torch.ones(3), torch.ones(3)).shape == (0, 3)
    embedding, shared = embeddings.noise_embedding(
        torch.zeros(0, 2), *(torch.ones(2), torch.ones(2, 2)), torch.ones(6, 2), 1e-6
    )
    assert embedding.shape == (0, 2) and shared.shape == (0, 6)
    assert embeddings.position_embedding(*torch.zeros(3, 0, 4), 1e-6).shape == (0, 4)
