import math

import pytest
import torch
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


# --- fourier_features


def all_phases(frequency: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One frequency at eight evenly spread phases: averages over them are exact averages over all."""
    phases = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    return torch.full_like(phases, frequency), phases


@pytest.mark.verifies("embeddings.fourier_features", by="point")
def test_fourier_features_by_hand():
    f, phases = torch.tensor([math.pi, 0.0, 2 * math.pi]).double(), torch.tensor([0, math.pi / 3, 0]).double()
    values = embeddings.fourier_features(scalar(0.5), f, phases)
    torch.testing.assert_close(values, values.new_tensor([[0.0, 0.707107, -1.414214]]), rtol=0, atol=6e-7)


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


@impostor("embeddings.fourier_features", "without the factor that gives unit variance")
def features_of_half_variance(c_noise, frequencies, phases):
    return torch.cos(c_noise[:, None] * frequencies + phases)


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
