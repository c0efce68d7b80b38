import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import noise
from tests.impostors import impostor
from tests.strategies import normal, seeds, sigmas

rhos = st.floats(1.0, 10.0)
step_counts = st.integers(2, 60)
smallest = st.floats(2e-4, 2e-2)
largest = st.floats(10.0, 100.0)


# --- add_noise


@pytest.mark.verifies("noise.add_noise", by="point")
def test_noise_of_two_levels_on_two_samples():
    x0, n = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double(), torch.tensor([[1.0, -1.0], [0.5, 0.0]]).double()
    x = noise.add_noise(x0, n, torch.tensor([2.0, 10.0]).double())
    assert x.tolist() == [[3.0, 0.0], [8.0, 4.0]]


@pytest.mark.verifies("noise.add_noise")
@given(sigmas, seeds)
def test_without_noise_the_clean_sample_keeps_its_size(sigma, seed):
    x0 = normal(seed, 1, 3, 2)
    assert torch.equal(noise.add_noise(x0, torch.zeros_like(x0), sigma), x0)


@pytest.mark.verifies("noise.add_noise")
@given(sigmas, sigmas, seeds)
def test_noise_added_twice_is_noise_added_once_at_the_root_of_the_squares(a, b, seed):
    """Two independent noises of levels a and b are one of level sqrt(a^2 + b^2)."""
    x0, n, m = normal(seed, 1, 8), normal(seed + 1, 1, 8), normal(seed + 2, 1, 8)
    both = (a**2 + b**2).sqrt()
    twice = noise.add_noise(noise.add_noise(x0, n, a), m, b)
    torch.testing.assert_close(twice, noise.add_noise(x0, (a * n + b * m) / both, both), rtol=1e-12, atol=1e-11)


@pytest.mark.verifies("noise.add_noise")
@given(sigmas, seeds)
def test_each_sample_gets_its_own_noise_level(sigma, seed):
    x0, n = normal(seed, 2, 3, 4), normal(seed + 1, 2, 3, 4)
    both = noise.add_noise(x0, n, torch.cat([sigma, 2 * sigma]))
    assert torch.equal(both[1:], noise.add_noise(x0[1:], n[1:], 2 * sigma))


@impostor("noise.add_noise", "rectified flow's straight line between data and noise")
def add_noise_by_mixing(x0, noise, sigma):
    sigma = sigma.reshape(-1, *[1] * (x0.ndim - 1))
    return (1 - sigma) * x0 + sigma * noise


@impostor("noise.add_noise", "sigma taken for a variance")
def add_noise_of_that_variance(x0, noise, sigma):
    return x0 + sigma.sqrt().reshape(-1, *[1] * (x0.ndim - 1)) * noise


@impostor("noise.add_noise", "one level for the whole batch")
def add_noise_of_the_first_level(x0, noise, sigma):
    return x0 + sigma[0] * noise


# --- log_normal_sigma


@pytest.mark.verifies("noise.log_normal_sigma", by="point")
def test_log_normal_levels_one_deviation_from_the_median():
    z = torch.tensor([-1.0, 0.0, 1.0]).double()
    expected = z.new_tensor([0.740818, 2.718282, 9.974182])  # e^-0.3, e^1, e^2.3
    torch.testing.assert_close(noise.log_normal_sigma(z, 1.0, 1.3), expected, rtol=0, atol=6e-7)


@pytest.mark.verifies("noise.log_normal_sigma")
@given(st.floats(-2, 2), st.floats(0.1, 2))
def test_half_of_the_levels_lie_below_exp_p_mean(p_mean, p_std):
    """The quantiles of a standard normal are symmetric, so their middle one must land on the median."""
    z = torch.special.ndtri(torch.linspace(0.005, 0.995, 199, dtype=torch.float64))
    median = noise.log_normal_sigma(z, p_mean, p_std).median().item()
    assert math.isclose(median, math.exp(p_mean), rel_tol=1e-12)


@pytest.mark.verifies("noise.log_normal_sigma")
@given(st.floats(-2, 2), st.floats(0.1, 2), seeds)
def test_p_mean_and_p_std_can_be_read_off_a_histogram_of_log_sigma(p_mean, p_std, seed):
    z = normal(seed, 1000)
    z = (z - z.mean()) / z.std()  # an exact standard sample, so nothing is left to chance
    log_sigma = noise.log_normal_sigma(z, p_mean, p_std).log()
    assert math.isclose(log_sigma.mean().item(), p_mean, abs_tol=1e-12)
    assert math.isclose(log_sigma.std().item(), p_std, rel_tol=1e-12)


@impostor("noise.log_normal_sigma", "p_mean taken for the logarithm of the mean instead of the median")
def log_normal_with_that_mean(normal, p_mean, p_std):
    return torch.exp(p_mean - p_std**2 / 2 + p_std * normal)


@impostor("noise.log_normal_sigma", "p_std taken for a variance")
def log_normal_with_that_variance(normal, p_mean, p_std):
    return torch.exp(p_mean + p_std**0.5 * normal)


@impostor("noise.log_normal_sigma", "the constants of EDM (-1.2 and 1.2) written into the formula")
def log_normal_of_edm(normal, p_mean, p_std):
    return torch.exp(-1.2 + 1.2 * normal)


# --- video_noise_shift


@pytest.mark.verifies("noise.video_noise_shift", by="point")
def test_sixteen_latent_frames_quadruple_the_noise():
    assert noise.video_noise_shift(torch.tensor([0.25, 80.0]).double(), 16).tolist() == [1.0, 320.0]


@pytest.mark.verifies("noise.video_noise_shift")
@given(sigmas, st.integers(1, 40))
def test_the_average_of_a_still_video_is_as_noisy_as_an_image(sigma, frames):
    """T independent noises of level s average to one of level s / sqrt(T): that must be the image's level."""
    shifted = noise.video_noise_shift(sigma, frames)
    average = (frames * (shifted / frames) ** 2).sqrt()
    torch.testing.assert_close(average, sigma, rtol=1e-12, atol=0)


@pytest.mark.verifies("noise.video_noise_shift")
@given(sigmas, st.integers(1, 20), st.integers(1, 20))
def test_shifts_for_a_and_b_frames_make_the_shift_for_a_times_b(sigma, a, b):
    in_two_steps = noise.video_noise_shift(noise.video_noise_shift(sigma, a), b)
    torch.testing.assert_close(in_two_steps, noise.video_noise_shift(sigma, a * b), rtol=1e-12, atol=0)


@impostor("noise.video_noise_shift", "divided: videos taken for the harder riddle")
def shift_downwards(sigma, latent_frames):
    return sigma / latent_frames**0.5


@impostor("noise.video_noise_shift", "the frame count without its root")
def shift_without_root(sigma, latent_frames):
    return sigma * latent_frames


@impostor("noise.video_noise_shift", "pixel frames counted, as the paper's words suggest")
def shift_of_pixel_frames(sigma, latent_frames):
    return sigma * (1 + 8 * (latent_frames - 1)) ** 0.5


# --- karras_sigmas


@pytest.mark.verifies("noise.karras_sigmas", by="point")
def test_karras_sigmas_of_the_official_sampler():
    s = noise.karras_sigmas(35, 2e-4, 80.0, 7.0)
    first = s.new_tensor([80.0, 67.126, 56.070, 46.614, 38.558])
    last = s.new_tensor([0.01139, 0.00599, 0.00295, 0.00134, 0.000553, 0.0002, 0.0])
    torch.testing.assert_close(s[:5], first, rtol=0, atol=6e-4)  # printed to three decimals
    torch.testing.assert_close(s[-7:], last, rtol=0, atol=6e-6)  # printed to five
    by_hand = noise.karras_sigmas(3, 1.0, 16.0, 2.0)  # roots 4, 2.5, 1
    torch.testing.assert_close(by_hand, s.new_tensor([16.0, 6.25, 1.0, 0.0]), rtol=1e-14, atol=0)


@pytest.mark.verifies("noise.karras_sigmas")
@given(step_counts, smallest, largest, rhos)
def test_n_steps_go_from_sigma_max_to_sigma_min_and_then_to_zero(n, sigma_min, sigma_max, rho):
    s = noise.karras_sigmas(n, sigma_min, sigma_max, rho).tolist()
    assert len(s) == n + 1
    assert math.isclose(s[0], sigma_max, rel_tol=1e-12)
    assert math.isclose(s[-2], sigma_min, rel_tol=1e-9)  # a difference of numbers up to sigma_max^(1 / rho)
    assert s[-1] == 0


@pytest.mark.verifies("noise.karras_sigmas")
@given(step_counts, smallest, largest, rhos)
def test_the_levels_are_evenly_spaced_after_taking_the_root_rho(n, sigma_min, sigma_max, rho):
    s = noise.karras_sigmas(n, sigma_min, sigma_max, rho)[:-1] ** (1 / rho)
    steps = s.diff()
    torch.testing.assert_close(steps, steps.mean().expand(len(steps)), rtol=1e-10, atol=1e-11)


@pytest.mark.verifies("noise.karras_sigmas")
@given(step_counts, smallest, largest, rhos)
def test_every_step_lowers_the_noise(n, sigma_min, sigma_max, rho):
    assert (noise.karras_sigmas(n, sigma_min, sigma_max, rho).diff() < 0).all()


@pytest.mark.verifies("noise.karras_sigmas")
@given(st.integers(0, 1))
def test_a_schedule_of_fewer_than_two_steps_is_refused(n):
    try:
        levels = noise.karras_sigmas(n, 2e-4, 80.0, 7.0)
    except ValueError as error:
        assert f"num_steps is {n}" in str(error)
    else:
        raise AssertionError(f"{n} steps made {levels}")


@impostor("noise.karras_sigmas", "rho and 1 / rho exchanged")
def karras_with_inverted_rho(num_steps, sigma_min, sigma_max, rho):
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    levels = ((1 - ramp) * sigma_max**rho + ramp * sigma_min**rho) ** (1 / rho)
    return torch.cat([levels, levels.new_zeros(1)])


@impostor("noise.karras_sigmas", "sigma_min repeated instead of zero, as in the converted diffusers pipeline")
def karras_ending_in_sigma_min(num_steps, sigma_min, sigma_max, rho):
    s = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_steps, dtype=torch.float64) ** rho
    return torch.cat([s, s[-1:]])


@impostor("noise.karras_sigmas", "N intervals instead of N levels, as in NVIDIA's training-side sampler")
def karras_with_a_level_too_many(num_steps, sigma_min, sigma_max, rho):
    s = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_steps + 1, dtype=torch.float64)
    return torch.cat([s**rho, s.new_zeros(1)])


@impostor("noise.karras_sigmas", "evenly spaced in sigma itself")
def karras_linear(num_steps, sigma_min, sigma_max, rho):
    s = torch.linspace(sigma_max, sigma_min, num_steps, dtype=torch.float64)
    return torch.cat([s, s.new_zeros(1)])


@impostor("noise.karras_sigmas", "no zero at the end: N entries, N - 1 steps, and sigma_min left in the video")
def karras_without_zero(num_steps, sigma_min, sigma_max, rho):
    s = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_steps, dtype=torch.float64)
    return s**rho


@impostor("noise.karras_sigmas", "the zero among the N levels, so that there are only N - 1 steps")
def karras_with_the_zero_counted(num_steps, sigma_min, sigma_max, rho):
    s = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), max(num_steps - 1, 2), dtype=torch.float64)
    return torch.cat([s**rho, s.new_zeros(1)])


@impostor("noise.karras_sigmas", "evenly spaced in the logarithm: rho infinite")
def karras_geometric(num_steps, sigma_min, sigma_max, rho):
    s = torch.linspace(math.log(sigma_max), math.log(sigma_min), num_steps, dtype=torch.float64).exp()
    return torch.cat([s, s.new_zeros(1)])


@impostor("noise.karras_sigmas", "rho 7 written into the formula")
def karras_for_seven(num_steps, sigma_min, sigma_max, rho):
    s = torch.linspace(sigma_max ** (1 / 7), sigma_min ** (1 / 7), num_steps, dtype=torch.float64) ** 7
    return torch.cat([s, s.new_zeros(1)])


@impostor("noise.karras_sigmas", "computed in single precision: the seventh power of a root's rounding is seen")
def karras_in_single_precision(num_steps, sigma_min, sigma_max, rho):
    s = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_steps, dtype=torch.float32) ** rho
    return torch.cat([s, s.new_zeros(1)]).double()


def test_an_empty_batch_has_no_levels_and_no_noise():
    none, x0 = torch.zeros(0), torch.zeros(0, 3, 4)
    assert noise.add_noise(x0, x0, none).shape == (0, 3, 4)
    assert noise.log_normal_sigma(none, 0.0, 1.0).shape == noise.video_noise_shift(none, 16).shape == (0,)
