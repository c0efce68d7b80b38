import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import exact, noise, solvers
from tests.impostors import impostor
from tests.strategies import normal, seeds, sigmas

S = 0.5
ratios = st.floats(0.05, 0.95)  # of a step's end to its start
extremes = st.sampled_from([1e-6, 1.0, 1e6])

# Two blobs on a line. Their flow has no formula, but on a line it cannot change the order of points, so each point
# keeps the share of the density that lies below it.
WEIGHTS, MEANS, STD = (torch.tensor(v, dtype=torch.float64) for v in ([0.3, 0.7], [-1.0, 0.6], 0.25))


def gaussian_denoiser(x, sigma):
    return exact.gaussian_denoiser(x, x.new_tensor(sigma), x.new_zeros(()), S)


def gaussian_flow(x, sigma, sigma_next):
    return exact.gaussian_flow(x, x.new_tensor(sigma), x.new_tensor(sigma_next), x.new_zeros(()), S)


def mixture_denoiser(x, sigma):
    return exact.mixture_denoiser(x, x.new_full((len(x),), sigma), WEIGHTS, MEANS[:, None], STD.item())


def share_below(x, sigma):
    return (WEIGHTS * torch.special.ndtr((x - MEANS) / torch.hypot(STD, x.new_tensor(sigma)))).sum(1, keepdim=True)


def mixture_flow(x, sigma, sigma_next):
    """Bisection for the point below which the same share lies."""
    low, high = torch.full_like(x, -20), torch.full_like(x, 20)
    for _ in range(80):
        middle = (low + high) / 2
        left = share_below(middle, sigma_next) < share_below(x, sigma)
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    return low


def run_euler(denoise, x, levels):
    for sigma, sigma_next in itertools.pairwise(levels):
        x = solvers.euler_step(x, denoise(x, sigma), sigma, sigma_next)
    return x


def run_heun(denoise, x, levels):
    for sigma, sigma_next in itertools.pairwise(levels):
        x = solvers.heun_step(denoise, x, sigma, sigma_next)
    return x


def run_res_2mid(denoise, x, levels):
    for sigma, sigma_next in itertools.pairwise(levels):
        x = solvers.res_2mid_step(denoise, x, sigma, sigma_next)
    return x


def run_res_2ab(denoise, x, levels):
    """The first step has no past: it is an Euler step, written out so that only RES 2AB is on trial."""
    D_previous = denoise(x, levels[0])
    x = D_previous + (x - D_previous) * levels[1] / levels[0]
    for previous, sigma, sigma_next in zip(levels, levels[1:], levels[2:], strict=False):
        D = denoise(x, sigma)
        x = solvers.res_2ab_step(x, D, D_previous, sigma, sigma_next, previous)
        D_previous = D
    return x


def observed_order(run, denoise, flow):
    """Slope of log(error at sigma 0.1) over log(steps), from sigma 2: there 64 steps are already asymptotic.

    Of three starting points the one that ends worst counts, so that no error hides where it happens to change its sign.
    """
    counts, errors = (64, 128, 256), []
    start = torch.tensor([[-2.5], [0.4], [2.0]], dtype=torch.float64)
    for steps in counts:
        levels = noise.karras_sigmas(steps + 1, 0.1, 2.0, 7.0)[:-1].tolist()
        errors.append((run(denoise, start, levels) - flow(start, 2.0, 0.1)).abs().max().item())
    assert all(math.isfinite(error) and error > 0 for error in errors)
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


on_gaussian = (gaussian_denoiser, gaussian_flow)
on_mixture = (mixture_denoiser, mixture_flow)


def from_80(run, levels):
    return run(gaussian_denoiser, torch.tensor([80.0], dtype=torch.float64), levels.tolist()).item()


def on_a_line(seed, sigma):
    """A clean sample, its noise, and the two together."""
    x0, n = normal(seed, 6), normal(seed + 1, 6)
    return x0, n, x0 + sigma * n


# --- initial_std


@pytest.mark.verifies("solvers.initial_std", by="point")
def test_the_first_sample_of_three_implementations():
    """The original sampler and diffusers, the released sampler, and what noisy latents of spread 0.5 have."""
    stds = [solvers.initial_std(80.0, data_std) for data_std in (0, 1, 0.5)]
    assert stds == pytest.approx([80, 80.0062498, 80.0015625], abs=1e-7)


@pytest.mark.verifies("solvers.initial_std")
@given(sigmas, st.floats(0, 2), seeds)
def test_the_first_sample_is_as_spread_as_noisy_data(sigma_max, data_std, seed):
    """Orthogonal vectors of unit mean square stand for independent data and noise."""
    x0, n = torch.linalg.qr(normal(seed, 8, 2)).Q.T * 8**0.5
    x = data_std * x0 + sigma_max * n
    assert math.isclose(solvers.initial_std(sigma_max.item(), data_std), (x**2).mean().item() ** 0.5, rel_tol=1e-12)


@pytest.mark.verifies("solvers.initial_std")
@given(st.sampled_from([1e-200, 1e200]))
def test_the_first_sample_is_finite_where_squares_are_not(scale):
    """Squares of 1e200 overflow and those of 1e-200 vanish; a right-angled triangle of 3, 4 and 5 does neither."""
    assert math.isclose(solvers.initial_std(3 * scale, 4 * scale), 5 * scale, rel_tol=1e-15)


@impostor("solvers.initial_std", "standard deviations added")
def initial_std_by_adding(sigma_max, data_std):
    return sigma_max + data_std


@impostor("solvers.initial_std", "the released sampler's 1 for every spread of the data")
def initial_std_of_unit_data(sigma_max, data_std):
    return math.hypot(sigma_max, 1)


@impostor("solvers.initial_std", "the root of the squares, which overflow or vanish")
def initial_std_by_squares(sigma_max, data_std):
    return float(np.sqrt(np.float64(sigma_max) * sigma_max + np.float64(data_std) * data_std))


# --- ode_derivative


@pytest.mark.verifies("solvers.ode_derivative", by="point")
def test_slope_from_three_to_one_at_noise_four_is_a_half():
    three = torch.tensor([3.0], dtype=torch.float64)
    assert solvers.ode_derivative(three, three / 3, 4.0).item() == 0.5


@pytest.mark.verifies("solvers.ode_derivative")
@given(sigmas, seeds)
def test_the_slope_is_the_noise(sigma, seed):
    x0, n, x = on_a_line(seed, sigma.item())
    # x0 + sigma n rounds at 1e-16 |x0|, which the division by sigma >= 2e-3 magnifies
    torch.testing.assert_close(solvers.ode_derivative(x, x0, sigma.item()), n, rtol=0, atol=1e-11)


@pytest.mark.verifies("solvers.ode_derivative", by="exact")
@given(sigmas, seeds)
def test_the_slope_is_tangent_to_the_gaussian_flow(sigma, seed):
    sigma, x = sigma.item(), normal(seed, 6)
    slope = solvers.ode_derivative(x, gaussian_denoiser(x, sigma), sigma)
    # d/dsigma of sqrt(sigma^2 + S^2); x - D cancels by (sigma / S)^2 = 1.6e-5 at the lowest level
    torch.testing.assert_close(slope, x * sigma / (sigma**2 + S**2), rtol=1e-9, atol=0)


@impostor("solvers.ode_derivative", "the score: divided by the variance, pointing to the data")
def derivative_is_the_score(x, D, sigma):
    return (D - x) / sigma**2


@impostor("solvers.ode_derivative", "the sign flipped: noise grows while sigma falls")
def derivative_points_away(x, D, sigma):
    return (D - x) / sigma


@impostor("solvers.ode_derivative", "the denoised estimate taken for the noise")
def derivative_is_the_estimate(x, D, sigma):
    return D


# --- euler_step


@pytest.mark.verifies("solvers.euler_step", by="point")
def test_euler_halves_the_distance_when_sigma_halves():
    two = torch.tensor([2.0], dtype=torch.float64)
    assert solvers.euler_step(two, two / 2, 2.0, 1.0).item() == 1.5


@pytest.mark.verifies("solvers.euler_step", by="point")
def test_euler_over_the_whole_schedule_ends_at_the_known_value():
    """The official sampler: 35 levels from 80 to 0.0002, then zero, on N(0, 0.25) from x = 80."""
    assert abs(from_80(run_euler, noise.karras_sigmas(35, 2e-4, 80.0, 7.0)) - 0.456869) < 6e-7


@pytest.mark.verifies("solvers.euler_step", by="point")
def test_euler_with_the_last_level_repeated_ends_at_the_known_value():
    """The schedule of diffusers: 36 levels from 80 to 0.002; the 36th evaluation moves nothing."""
    levels = noise.karras_sigmas(36, 2e-3, 80.0, 7.0)
    assert abs(from_80(run_euler, torch.cat([levels[:-1], levels[-2:-1]])) - 0.461004) < 6e-7


@pytest.mark.verifies("solvers.euler_step")
@given(sigmas, ratios, seeds)
def test_euler_is_exact_where_the_estimate_does_not_change(sigma, ratio, seed):
    """The un-composed state of a given frame runs down this straight line."""
    sigma = sigma.item()
    x0, n, x = on_a_line(seed, sigma)
    torch.testing.assert_close(
        solvers.euler_step(x, x0, sigma, sigma * ratio), x0 + sigma * ratio * n, rtol=0, atol=1e-12
    )


@pytest.mark.verifies("solvers.euler_step")
@given(sigmas, seeds)
def test_an_euler_step_to_zero_is_the_estimate(sigma, seed):
    x0, _, x = on_a_line(seed, sigma.item())
    torch.testing.assert_close(solvers.euler_step(x, x0, sigma.item(), 0.0), x0, rtol=0, atol=1e-12)


@pytest.mark.verifies("solvers.euler_step", by="exact")
def test_euler_converges_to_the_gaussian_flow_with_order_one():
    assert abs(observed_order(run_euler, *on_gaussian) - 1) < 0.2


@pytest.mark.verifies("solvers.euler_step", by="exact")
def test_euler_converges_to_the_flow_of_a_mixture_with_order_one():
    assert abs(observed_order(run_euler, *on_mixture) - 1) < 0.2


@pytest.mark.verifies("solvers.euler_step")
@given(sigmas, st.one_of(st.just(0.0), ratios), seeds)
def test_an_euler_step_follows_the_slope(sigma, ratio, seed):
    x, D = normal(seed, 2, 6)
    sigma, sigma_next = sigma.item(), ratio * sigma.item()
    along = x + (sigma_next - sigma) * solvers.ode_derivative(x, D, sigma)
    torch.testing.assert_close(solvers.euler_step(x, D, sigma, sigma_next), along, rtol=0, atol=1e-13)


@pytest.mark.verifies("solvers.euler_step")
@given(sigmas, ratios, seeds)
def test_an_euler_step_is_the_first_order_exponential_step(sigma, ratio, seed):
    """NVIDIA's "1euler": in -ln sigma the flow is dx/dl = D - x, and D taken as constant is the whole error."""
    x, D = normal(seed, 2, 6)
    h = -math.log(ratio)
    exponential = math.exp(-h) * x + h * solvers.phi1(-h) * D
    torch.testing.assert_close(
        solvers.euler_step(x, D, sigma.item(), ratio * sigma.item()), exponential, rtol=0, atol=1e-13
    )


@pytest.mark.verifies("solvers.euler_step")
@given(extremes, st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_an_euler_step_to_zero_is_the_estimate_to_the_bit(sigma, dtype):
    """Also in half precision, and also where the sample is a million times larger than what it hides."""
    x0, n = normal(1, 2, 6).to(dtype)
    assert torch.equal(solvers.euler_step(x0 + n * min(sigma, 1e4), x0, sigma, 0.0), x0)


@impostor("solvers.euler_step", "the form in which it is printed: x rounds the estimate away")
def euler_along_the_slope(x, D, sigma, sigma_next):
    return x + (sigma_next - sigma) * ((x - D) / sigma)


@impostor("solvers.euler_step", "shares of the estimate and of the sample changed round")
def euler_with_shares_changed(x, D, sigma, sigma_next):
    return x + sigma_next / sigma * (D - x)


@impostor("solvers.euler_step", "slope divided by the noise level it goes to")
def euler_divided_by_the_next_sigma(x, D, sigma, sigma_next):
    return x + (sigma_next - sigma) * (x - D) / sigma_next


@impostor("solvers.euler_step", "drift of the reverse SDE (twice the ODE's), its noise forgotten")
def euler_with_the_drift_of_the_sde(x, D, sigma, sigma_next):
    return x + 2 * (sigma_next - sigma) * (x - D) / sigma


@impostor("solvers.euler_step", "variances where standard deviations belong")
def euler_in_the_variance(x, D, sigma, sigma_next):
    return D + (sigma_next / sigma) ** 2 * (x - D)


# --- heun_step


@pytest.mark.verifies("solvers.heun_step", by="point")
def test_heun_from_one_to_a_half():
    """D = 0.2, slope 0.8, so x = 0.6; there D = 0.3, slope 0.6; the mean 0.7 leads to 0.65."""
    value = solvers.heun_step(gaussian_denoiser, torch.ones(1, dtype=torch.float64), 1.0, 0.5)
    torch.testing.assert_close(value, value.new_tensor([0.65]), rtol=0, atol=1e-12)


@pytest.mark.verifies("solvers.heun_step")
@given(sigmas, st.one_of(st.just(0.0), ratios), seeds)
def test_heun_asks_twice_but_once_on_the_way_to_zero(sigma, ratio, seed):
    asked = []

    def denoise(x, level):
        asked.append(level)
        return gaussian_denoiser(x, level)

    sigma = sigma.item()
    solvers.heun_step(denoise, normal(seed, 3), sigma, sigma * ratio)
    assert asked == ([sigma, sigma * ratio] if ratio else [sigma])


@pytest.mark.verifies("solvers.heun_step")
@given(sigmas, seeds)
def test_a_heun_step_to_zero_is_the_estimate(sigma, seed):
    sigma, x = sigma.item(), normal(seed, 6)
    torch.testing.assert_close(
        solvers.heun_step(gaussian_denoiser, x, sigma, 0.0), gaussian_denoiser(x, sigma), rtol=0, atol=1e-12
    )


@pytest.mark.verifies("solvers.heun_step", by="exact")
def test_heun_meets_the_gaussian_flow():
    levels = noise.karras_sigmas(200, 0.02, 80.0, 7.0)[:-1]
    end = 80 * ((0.02**2 + S**2) / (80**2 + S**2)) ** 0.5
    assert abs(from_80(run_heun, levels) - end) < 4e-4 * end  # measured 2.8e-4; Euler is off by 1.3e-2


@pytest.mark.verifies("solvers.heun_step", by="exact")
def test_heun_converges_to_the_gaussian_flow_with_order_two():
    assert abs(observed_order(run_heun, *on_gaussian) - 2) < 0.2


@pytest.mark.verifies("solvers.heun_step", by="exact")
def test_heun_converges_to_the_flow_of_a_mixture_with_order_two():
    assert abs(observed_order(run_heun, *on_mixture) - 2) < 0.2


@pytest.mark.verifies("solvers.heun_step")
@given(sigmas, ratios, seeds)
def test_a_heun_step_follows_the_mean_of_both_slopes(sigma, ratio, seed):
    """As it is printed."""
    x = normal(seed, 6)
    sigma, sigma_next = sigma.item(), ratio * sigma.item()
    slope = (x - gaussian_denoiser(x, sigma)) / sigma
    there = x + (sigma_next - sigma) * slope
    slope_there = (there - gaussian_denoiser(there, sigma_next)) / sigma_next
    along = x + (sigma_next - sigma) * (slope + slope_there) / 2
    # the printed form loses digits to x - D, relative to sigma_next: at worst 1e-16 * 20
    torch.testing.assert_close(solvers.heun_step(gaussian_denoiser, x, sigma, sigma_next), along, rtol=0, atol=1e-13)


@pytest.mark.verifies("solvers.heun_step")
@given(extremes, st.sampled_from([1e-6, 1e-3]))
def test_a_heun_step_in_float32_finds_an_answer_that_does_not_change(sigma, ratio):
    """Down from any level to next to none: what is left of the noise, and rounding of numbers of size one."""
    x0, n = normal(2, 2, 6).float()
    sigma_next = ratio * sigma
    value = solvers.heun_step(lambda x, level: x0, x0 + sigma * n, sigma, sigma_next)
    torch.testing.assert_close(value, x0 + sigma_next * n, rtol=2e-7, atol=0.2 * sigma_next)


@impostor("solvers.heun_step", "the form in which it is printed: the second slope is nothing but rounding")
def heun_along_the_slopes(denoise, x, sigma, sigma_next):
    slope = (x - denoise(x, sigma)) / sigma
    x_euler = x + (sigma_next - sigma) * slope
    if sigma_next == 0:
        return x_euler
    slope_next = (x_euler - denoise(x_euler, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * (slope + slope_next) / 2


@impostor("solvers.heun_step", "NVIDIA's 2heun_naive: the slope at the start with the state on arrival, first order")
def heun_of_nvidia_naive(denoise, x, sigma, sigma_next):
    D = denoise(x, sigma)
    x_euler = D + (x - D) * sigma_next / sigma
    if sigma_next == 0:
        return x_euler
    slope, slope_next = (x_euler - D) / sigma, (x_euler - denoise(x_euler, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * (slope + slope_next) / 2


@impostor("solvers.heun_step", "NVIDIA's 2heun_edm: the mean of the estimates, second order but not the one of EDM")
def heun_of_nvidia_edm(denoise, x, sigma, sigma_next):
    D = denoise(x, sigma)
    x_euler = D + (x - D) * sigma_next / sigma
    if sigma_next == 0:
        return x_euler
    D = (D + denoise(x_euler, sigma_next)) / 2
    return D + (x - D) * sigma_next / sigma


@impostor("solvers.heun_step", "the denoiser asked at the next level both times")
def heun_at_the_next_level_twice(denoise, x, sigma, sigma_next):
    D = denoise(x, sigma_next or sigma)
    x_euler = D + (x - D) * sigma_next / sigma
    return x_euler if sigma_next == 0 else x_euler + (sigma / sigma_next - 1) / 2 * (denoise(x_euler, sigma_next) - D)


@impostor("solvers.heun_step", "the second slope alone, not the mean")
def heun_with_the_last_slope(denoise, x, sigma, sigma_next):
    x_euler = x + (sigma_next - sigma) * (x - denoise(x, sigma)) / sigma
    if sigma_next == 0:
        return x_euler
    return x + (sigma_next - sigma) * (x_euler - denoise(x_euler, sigma_next)) / sigma_next


@impostor("solvers.heun_step", "Ralston's weights (1/4, 3/4) on the slopes of Heun")
def heun_with_the_weights_of_ralston(denoise, x, sigma, sigma_next):
    slope = (x - denoise(x, sigma)) / sigma
    x_euler = x + (sigma_next - sigma) * slope
    if sigma_next == 0:
        return x_euler
    slope_next = (x_euler - denoise(x_euler, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * (slope + 3 * slope_next) / 4


@impostor("solvers.heun_step", "the second evaluation at the old state")
def heun_at_the_old_state(denoise, x, sigma, sigma_next):
    slope = (x - denoise(x, sigma)) / sigma
    if sigma_next == 0:
        return x + (sigma_next - sigma) * slope
    return x + (sigma_next - sigma) * (slope + (x - denoise(x, sigma_next)) / sigma_next) / 2


@impostor("solvers.heun_step", "no correction at all")
def heun_is_euler(denoise, x, sigma, sigma_next):
    return x + (sigma_next - sigma) * (x - denoise(x, sigma)) / sigma


@impostor("solvers.heun_step", "a correction on the last step too, at a level where there is no noise left")
def heun_corrects_at_zero(denoise, x, sigma, sigma_next):
    slope = (x - denoise(x, sigma)) / sigma
    x_euler = x + (sigma_next - sigma) * slope
    slope_next = (x_euler - denoise(x_euler, sigma_next)) / max(sigma_next, 1e-8)
    return x + (sigma_next - sigma) * (slope + slope_next) / 2


# --- phi1 and phi2


def mean_over_a_step(weight, z):
    """Mean of weight(s) exp(z s) over a step, by Gauss's rule: 40 points are exact to the last digits for |z| <= 30."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    s = (nodes + 1) / 2
    return float(np.sum(weights / 2 * weight(s) * np.exp(z * s)))


steps_in_log_sigma = st.floats(-30, 3)


@pytest.mark.verifies("solvers.phi1", by="point")
def test_phi1_of_a_halving_of_sigma():
    """(1/2 - 1) / -ln 2; and 1 for no step."""
    assert [solvers.phi1(-math.log(2)), solvers.phi1(0.0)] == pytest.approx([0.7213475204, 1], abs=1e-10)


@pytest.mark.verifies("solvers.phi1")
@given(steps_in_log_sigma)
def test_phi1_is_the_mean_of_the_exponential(z):
    assert math.isclose(solvers.phi1(z), mean_over_a_step(np.ones_like, z), rel_tol=1e-13)


@pytest.mark.verifies("solvers.phi1")
@given(st.floats(-12, -4))
def test_phi1_keeps_its_digits_in_short_steps(log10_h):
    """1 - h/2 + h^2/6: the next term is 1e-13 at h = 1e-4 and nothing further down."""
    h = 10**log10_h
    assert math.isclose(solvers.phi1(-h), 1 - h / 2 + h**2 / 6, rel_tol=1e-13)


@impostor("solvers.phi1", "exp(z) - 1 as it is printed: in short steps its digits cancel")
def phi1_by_exp(z):
    return (math.exp(z) - 1) / z if z else 1.0


@impostor("solvers.phi1", "the sign of the step lost")
def phi1_of_the_other_sign(z):
    return math.expm1(-z) / -z if z else 1.0


@impostor("solvers.phi1", "exp(z) / z, the one forgotten")
def phi1_without_one(z):
    return math.exp(z) / z if z else 1.0


@impostor("solvers.phi1", "0 where there is no step")
def phi1_of_no_step(z):
    return math.expm1(z) / z if z else 0.0


@pytest.mark.verifies("solvers.phi2", by="point")
def test_phi2_of_a_halving_of_sigma():
    """(phi1 - 1) / -ln 2; and 1/2 for no step; and (e - 1 - 1) for a step of one, the longest done by the series."""
    values = [solvers.phi2(z) for z in (-math.log(2), 0.0, 1.0)]
    assert values == pytest.approx([0.4020105504, 0.5, math.e - 2], abs=1e-10)


@pytest.mark.verifies("solvers.phi2")
@given(steps_in_log_sigma)
def test_phi2_is_the_mean_of_the_exponential_under_a_falling_line(z):
    assert math.isclose(solvers.phi2(z), mean_over_a_step(lambda s: 1 - s, z), rel_tol=1e-13)


@pytest.mark.verifies("solvers.phi2")
@given(steps_in_log_sigma)
def test_phi1_and_phi2_are_neighbours_in_the_series(z):
    assert math.isclose(1 + z * solvers.phi2(z), solvers.phi1(z), rel_tol=1e-12)


@pytest.mark.verifies("solvers.phi2")
@given(st.floats(-12, -4))
def test_phi2_keeps_its_digits_in_short_steps(log10_h):
    """1/2 - h/6 + h^2/24: the next term is 1e-14 at h = 1e-4 and nothing further down."""
    h = 10**log10_h
    assert math.isclose(solvers.phi2(-h), 1 / 2 - h / 6 + h**2 / 24, rel_tol=1e-13)


@pytest.mark.verifies("solvers.phi2")
@given(st.sampled_from([-1.0, 1.0]))
def test_the_series_of_phi2_is_long_enough(z):
    """To four units in the last place where it converges most slowly; exact values from the series in fractions."""
    value = float(sum(Fraction(int(z)) ** k / math.factorial(k + 2) for k in range(40)))
    assert abs(solvers.phi2(z) - value) <= 4 * math.ulp(value)


@impostor("solvers.phi2", "the quotient as it is printed: in short steps its digits cancel")
def phi2_by_the_quotient(z):
    return (solvers.phi1(z) - 1) / z if z else 0.5


@impostor("solvers.phi2", "phi1 / 2, the limit of no step at all")
def phi2_of_no_step(z):
    return solvers.phi1(z) / 2


@impostor("solvers.phi2", "the mean under a rising line: the weight of the wrong end of the step")
def phi2_of_the_wrong_end(z):
    return (math.exp(z) - solvers.phi1(z)) / z if z else 0.5


@impostor("solvers.phi2", "a series of ten terms: not enough for steps of one")
def phi2_by_a_short_series(z):
    return (solvers.phi1(z) - 1) / z if abs(z) > 1 else sum(z**k / math.factorial(k + 2) for k in range(10))


# --- res_2ab_step


@pytest.mark.verifies("solvers.res_2ab_step", by="point")
def test_res_2ab_weights_when_sigma_halves_twice():
    """h = ln 2 and c2 = -1: weights 1/2 for x, 1/2 + b for D, -b for the one before; b = 1 - 1 / (2 ln 2)."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    weights = [solvers.res_2ab_step(*unit, 1.0, 0.5, 2.0) for unit in
               ((one, zero, zero), (zero, one, zero), (zero, zero, one))]  # fmt: skip
    torch.testing.assert_close(
        torch.cat(weights), one.new_tensor([0.5, 0.7786524796, -0.2786524796]), rtol=0, atol=1e-9
    )


@pytest.mark.verifies("solvers.res_2ab_step", by="point")
def test_res_2ab_over_the_whole_schedule_ends_at_the_known_values():
    """36 levels from 80 to 0.002 (35 steps), then the clean step."""
    levels = noise.karras_sigmas(36, 2e-3, 80.0, 7.0)
    assert abs(from_80(run_res_2ab, levels[:-1]) - 0.509686) < 6e-7
    assert abs(from_80(run_res_2ab, levels) - 0.509678) < 6e-7


@pytest.mark.verifies("solvers.res_2ab_step")
@given(sigmas, ratios, ratios, seeds)
def test_res_2ab_is_exact_where_the_estimate_does_not_change(sigma, ratio, ratio_before, seed):
    sigma = sigma.item()
    x0, n, x = on_a_line(seed, sigma)
    value = solvers.res_2ab_step(x, x0, x0, sigma, sigma * ratio, sigma / ratio_before)
    torch.testing.assert_close(value, x0 + sigma * ratio * n, rtol=0, atol=1e-11)


@pytest.mark.verifies("solvers.res_2ab_step")
@given(sigmas, ratios, ratios, seeds)
def test_res_2ab_is_exact_where_the_estimate_is_linear_in_log_sigma(sigma, ratio, ratio_before, seed):
    """With l = -ln sigma and D = a + b l, the flow dx/dl = D - x is solved by x = c exp(-l) + a - b + b l."""
    a, b, c = normal(seed, 3, 6)
    sigma = sigma.item()
    sigma_next, sigma_previous = sigma * ratio, sigma / ratio_before

    def D(level):
        return a - b * math.log(level)

    def flow(level):
        return c * level + D(level) - b

    value = solvers.res_2ab_step(flow(sigma), D(sigma), D(sigma_previous), sigma, sigma_next, sigma_previous)
    # phi2 of a step as small as h = 0.05 loses two digits to cancellation
    torch.testing.assert_close(value, flow(sigma_next), rtol=0, atol=1e-11)


@pytest.mark.verifies("solvers.res_2ab_step")
@given(sigmas, ratios, seeds)
def test_a_res_2ab_step_to_zero_is_the_estimate(sigma, ratio, seed):
    x, D, D_previous = normal(seed, 3, 6)
    value = solvers.res_2ab_step(x, D, D_previous, sigma.item(), 0.0, sigma.item() / ratio)
    torch.testing.assert_close(value, D, rtol=0, atol=0)


@pytest.mark.verifies("solvers.res_2ab_step", by="exact")
def test_res_2ab_converges_to_the_gaussian_flow_with_order_two():
    assert abs(observed_order(run_res_2ab, *on_gaussian) - 2) < 0.2


@pytest.mark.verifies("solvers.res_2ab_step", by="exact")
def test_res_2ab_converges_to_the_flow_of_a_mixture_with_order_two():
    assert abs(observed_order(run_res_2ab, *on_mixture) - 2) < 0.2


@pytest.mark.verifies("solvers.res_2ab_step")
@given(sigmas, ratios, ratios, seeds)
def test_res_2ab_has_the_weights_of_the_exponential_integrator(sigma, ratio, ratio_before, seed):
    """As they are printed."""
    x, D, D_previous = normal(seed, 3, 6)
    h, h_before = -math.log(ratio), -math.log(ratio_before)
    b2 = -solvers.phi2(-h) * h / h_before
    printed = math.exp(-h) * x + h * ((solvers.phi1(-h) - b2) * D + b2 * D_previous)
    value = solvers.res_2ab_step(x, D, D_previous, sigma.item(), ratio * sigma.item(), sigma.item() / ratio_before)
    torch.testing.assert_close(value, printed, rtol=0, atol=1e-11)


@pytest.mark.verifies("solvers.res_2ab_step")
@given(extremes, st.sampled_from([1e-6, 1e-3]), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_a_res_2ab_step_in_float32_finds_an_answer_that_does_not_change(sigma, ratio, h_before):
    """Down from any level to next to none, however short the step before."""
    x0, n = normal(2, 2, 6).float()
    value = solvers.res_2ab_step(x0 + sigma * n, x0, x0, sigma, ratio * sigma, sigma * math.exp(h_before))
    torch.testing.assert_close(value, x0 + ratio * sigma * n, rtol=2e-7, atol=0.2 * ratio * sigma)


@impostor("solvers.res_2ab_step", "the form in which it is printed: after a short step its weights are huge and cancel")
def res_2ab_as_printed(*args):
    return res_2ab_with()(*args)


def res_2ab_with(log_ratio=lambda a, b: math.log(a / b), c2_sign=-1, phi2=lambda phi1, h: (1 - phi1) / h):
    """RES 2AB with one part exchanged; step to zero as it should be."""

    def step(x, D, D_previous, sigma, sigma_next, sigma_previous):
        if sigma_next == 0:
            return D
        h = log_ratio(sigma, sigma_next)
        phi1 = (1 - math.exp(-h)) / h
        b2 = phi2(phi1, h) / (c2_sign * log_ratio(sigma_previous, sigma) / h)
        return math.exp(-h) * x + h * ((phi1 - b2) * D + b2 * D_previous)

    return step


@impostor("solvers.res_2ab_step", "sign of c2 flipped: the past taken for the future")
def res_2ab_with_c2_flipped(*args):
    return res_2ab_with(c2_sign=1)(*args)


@impostor("solvers.res_2ab_step", "phi2 = phi1 / 2, the limit of no step at all")
def res_2ab_with_wrong_phi2(*args):
    return res_2ab_with(phi2=lambda phi1, h: phi1 / 2)(*args)


@impostor("solvers.res_2ab_step", "steps measured in sigma, not in its logarithm")
def res_2ab_in_linear_sigma(*args):
    return res_2ab_with(log_ratio=lambda a, b: a - b)(*args)


@impostor("solvers.res_2ab_step", "equal steps assumed: c2 = -1")
def res_2ab_with_equal_steps(x, D, D_previous, sigma, sigma_next, sigma_previous):
    return res_2ab_with()(x, D, D_previous, sigma, sigma_next, sigma**2 / max(sigma_next, 1e-300))


@impostor("solvers.res_2ab_step", "the past forgotten: first order")
def res_2ab_without_memory(x, D, D_previous, sigma, sigma_next, sigma_previous):
    return D + (x - D) * sigma_next / sigma


@impostor("solvers.res_2ab_step", "the clean step returns the noisy sample")
def res_2ab_without_clean_step(x, D, D_previous, sigma, sigma_next, sigma_previous):
    if sigma_next == 0:
        return x
    return res_2ab_with()(x, D, D_previous, sigma, sigma_next, sigma_previous)


# --- res_2mid_step


@pytest.mark.verifies("solvers.res_2mid_step", by="point")
def test_res_2mid_from_one_to_a_quarter():
    """h = ln 4, the middle at 1/2: D = 0.2, x there 0.6, D there 0.3; b2 = 2 phi2 = 0.6621817, b1 = -0.1211710."""
    value = solvers.res_2mid_step(gaussian_denoiser, torch.ones(1, dtype=torch.float64), 1.0, 0.25)
    torch.testing.assert_close(value, value.new_tensor([0.4917979]), rtol=0, atol=6e-8)


@pytest.mark.verifies("solvers.res_2mid_step", by="point")
def test_res_2mid_ends_where_nvidias_own_code_does():
    """Its 2mid with 35 evaluations: 17 steps from 80 to 0.002 of two each, then the clean one. Run, six digits."""
    levels = noise.karras_sigmas(18, 2e-3, 80.0, 7.0)
    assert abs(from_80(run_res_2mid, levels[:-1]) - 0.495266) < 6e-7
    assert abs(from_80(run_res_2mid, levels) - 0.495258) < 6e-7


@pytest.mark.verifies("solvers.res_2mid_step")
@given(sigmas, st.one_of(st.just(0.0), ratios), seeds)
def test_res_2mid_asks_at_the_start_and_in_the_middle_but_once_on_the_way_to_zero(sigma, ratio, seed):
    asked = []

    def denoise(x, level):
        asked.append(level)
        return gaussian_denoiser(x, level)

    sigma = sigma.item()
    solvers.res_2mid_step(denoise, normal(seed, 3), sigma, sigma * ratio)
    assert asked == pytest.approx([sigma, sigma * ratio**0.5] if ratio else [sigma], rel=1e-12)


@pytest.mark.verifies("solvers.res_2mid_step")
@given(sigmas, ratios, seeds)
def test_res_2mid_is_exact_where_the_estimate_is_linear_in_log_sigma(sigma, ratio, seed):
    """With l = -ln sigma and D = a + b l, the flow dx/dl = D - x is solved by x = c exp(-l) + a - b + b l."""
    a, b, c = normal(seed, 3, 6)
    sigma = sigma.item()

    def D(x, level):
        return a - b * math.log(level)

    def flow(level):
        return c * level + D(None, level) - b

    value = solvers.res_2mid_step(D, flow(sigma), sigma, sigma * ratio)
    torch.testing.assert_close(value, flow(sigma * ratio), rtol=0, atol=1e-11)


@pytest.mark.verifies("solvers.res_2mid_step")
@given(sigmas, seeds)
def test_a_res_2mid_step_to_zero_is_the_estimate(sigma, seed):
    sigma, x = sigma.item(), normal(seed, 6)
    value = solvers.res_2mid_step(gaussian_denoiser, x, sigma, 0.0)
    torch.testing.assert_close(value, gaussian_denoiser(x, sigma), rtol=0, atol=0)


@pytest.mark.verifies("solvers.res_2mid_step", by="exact")
def test_res_2mid_converges_to_the_gaussian_flow_with_order_two():
    assert abs(observed_order(run_res_2mid, *on_gaussian) - 2) < 0.2


@pytest.mark.verifies("solvers.res_2mid_step", by="exact")
def test_res_2mid_converges_to_the_flow_of_a_mixture_with_order_two():
    assert abs(observed_order(run_res_2mid, *on_mixture) - 2) < 0.2


def res_2mid_with(denoise, x, sigma, sigma_next, middle, c2=0.5, at_the_state=True):
    """RES 2mid with one part exchanged; step to zero as it should be."""
    D = denoise(x, sigma)
    if sigma_next == 0:
        return D
    h = math.log(sigma / sigma_next)
    there = D + middle / sigma * (x - D) if at_the_state else x
    b2 = solvers.phi2(-h) / c2
    return math.exp(-h) * x + h * ((solvers.phi1(-h) - b2) * D + b2 * denoise(there, middle))


@impostor("solvers.res_2mid_step", "the middle of the levels, not of their logarithms")
def res_2mid_in_linear_sigma(denoise, x, sigma, sigma_next):
    return res_2mid_with(denoise, x, sigma, sigma_next, (sigma + sigma_next) / 2)


@impostor("solvers.res_2mid_step", "the middle's estimate with the weights of the step's end (c2 = 1)")
def res_2mid_weighed_as_the_end(denoise, x, sigma, sigma_next):
    return res_2mid_with(denoise, x, sigma, sigma_next, math.sqrt(sigma * sigma_next), c2=1)


@impostor("solvers.res_2mid_step", "the middle's estimate taken at the state of the start")
def res_2mid_at_the_old_state(denoise, x, sigma, sigma_next):
    return res_2mid_with(denoise, x, sigma, sigma_next, math.sqrt(sigma * sigma_next), at_the_state=False)


@impostor("solvers.res_2mid_step", "NVIDIA's 2mid_stable under the same name: the middle's estimate alone")
def res_2mid_stable(denoise, x, sigma, sigma_next):
    middle = math.sqrt(sigma * sigma_next)
    D = denoise(x, sigma)
    D = denoise(D + middle / sigma * (x - D), middle) if middle else D
    return D + sigma_next / sigma * (x - D)


@impostor("solvers.res_2mid_step", "the clean step returns the noisy sample")
def res_2mid_without_clean_step(denoise, x, sigma, sigma_next):
    return x if sigma_next == 0 else res_2mid_with(denoise, x, sigma, sigma_next, math.sqrt(sigma * sigma_next))


# --- churn_gamma


@pytest.mark.verifies("solvers.churn_gamma", by="point")
def test_churn_of_edm_and_of_cosmos():
    """EDM's S_churn of 40 in 256 steps and of 80 in 18, which is more than sqrt 2 allows; Cosmos stops at sqrt 1.2."""
    edm, cosmos = math.sqrt(2) - 1, math.sqrt(1.2) - 1
    shares = [solvers.churn_gamma(1.0, 40, 256, 0.05, 50, edm), solvers.churn_gamma(1.0, 80, 18, 0, math.inf, edm),
              solvers.churn_gamma(1.0, 40, 36, 0, math.inf, cosmos)]  # fmt: skip
    assert shares == pytest.approx([0.15625, 0.41421356, 0.09544512], abs=1e-8)


@pytest.mark.verifies("solvers.churn_gamma")
@given(st.floats(0, 80), st.integers(1, 300), sigmas, st.floats(1, 100), st.floats(1, 100))
def test_levels_are_raised_within_their_bounds_and_nowhere_else(s_churn, num_steps, sigma, below, above):
    sigma, limit = sigma.item(), math.sqrt(2) - 1
    inside = solvers.churn_gamma(sigma, s_churn, num_steps, sigma / below, sigma * above, limit)
    assert inside == solvers.churn_gamma(sigma, s_churn, num_steps, 0, math.inf, limit)
    assert solvers.churn_gamma(sigma, s_churn, num_steps, 1.01 * sigma, 2 * sigma, limit) == 0
    assert solvers.churn_gamma(sigma, s_churn, num_steps, 0, 0.99 * sigma, limit) == 0


@pytest.mark.verifies("solvers.churn_gamma")
@given(st.one_of(st.just(0.0), st.floats(1e-3, 300)), st.integers(1, 300))
def test_fresh_noise_is_never_more_than_the_old(s_churn, num_steps):
    """The limit sqrt 2 - 1 doubles the variance; below it the shares of all steps add up to what was asked for."""
    limit = math.sqrt(2) - 1
    gamma = solvers.churn_gamma(1.0, s_churn, num_steps, 0, math.inf, limit)
    assert (1 + gamma) ** 2 <= 2 + 1e-12
    assert gamma == limit or math.isclose(num_steps * gamma, s_churn, rel_tol=1e-12)


@impostor("solvers.churn_gamma", "the whole amount in each step")
def churn_gamma_in_each_step(sigma, s_churn, num_steps, s_min, s_max, limit):
    return min(s_churn, limit) if s_min <= sigma <= s_max else 0.0


@impostor("solvers.churn_gamma", "no limit")
def churn_gamma_without_limit(sigma, s_churn, num_steps, s_min, s_max, limit):
    return s_churn / num_steps if s_min <= sigma <= s_max else 0.0


@impostor("solvers.churn_gamma", "at every level")
def churn_gamma_everywhere(sigma, s_churn, num_steps, s_min, s_max, limit):
    return min(s_churn / num_steps, limit)


@impostor("solvers.churn_gamma", "bounds excluded, as in NVIDIA's code: the lowest level named is not raised")
def churn_gamma_between_bounds(sigma, s_churn, num_steps, s_min, s_max, limit):
    return min(s_churn / num_steps, limit) if s_min < sigma < s_max else 0.0


# --- churn


@pytest.mark.verifies("solvers.churn", by="point")
def test_churn_from_three_to_five_adds_four():
    """A right-angled triangle: 3^2 + 4^2 = 5^2."""
    one = torch.ones(1, dtype=torch.float64)
    x, sigma = solvers.churn(3 * one, one, 3.0, 2 / 3)
    torch.testing.assert_close(torch.cat([x, sigma * one]), one.new_tensor([7, 5]), rtol=0, atol=1e-12)


@pytest.mark.verifies("solvers.churn")
@given(sigmas, st.floats(0, 0.5), seeds)
def test_churned_noise_has_the_variance_of_its_new_level(sigma, gamma, seed):
    """Orthogonal vectors of unit mean square stand for independent unit noises."""
    old, fresh = torch.linalg.qr(normal(seed, 8, 2)).Q.T * 8**0.5
    x, sigma_hat = solvers.churn(sigma.item() * old, fresh, sigma.item(), gamma)
    assert abs((x**2).mean().item() / sigma_hat**2 - 1) < 1e-12
    assert abs(sigma_hat / sigma.item() - 1 - gamma) < 1e-12


@pytest.mark.verifies("solvers.churn")
@given(sigmas, seeds)
def test_no_churn_leaves_the_sample_alone(sigma, seed):
    x, n = normal(seed, 2, 6)
    churned, sigma_hat = solvers.churn(x, n, sigma.item(), 0.0)
    assert torch.equal(churned, x) and sigma_hat == sigma.item()


@pytest.mark.verifies("solvers.churn")
@given(sigmas, st.floats(-15, -3))
def test_a_breath_of_noise_keeps_its_digits(sigma, log10_gamma):
    """The fresh noise is sigma sqrt(2 gamma + gamma^2), in exact fractions."""
    sigma, gamma = sigma.item(), 10**log10_gamma
    one = torch.ones(1, dtype=torch.float64)
    added = solvers.churn(0 * one, one, sigma, gamma)[0].item()
    g = Fraction(gamma)
    assert abs(Fraction(added) ** 2 / (Fraction(sigma) ** 2 * (2 * g + g**2)) - 1) < 1e-14


@impostor("solvers.churn", "the difference of the squares as it is printed: a small gamma is lost in it")
def churn_by_the_difference_of_squares(x, noise, sigma, gamma):
    sigma_hat = sigma * (1 + gamma)
    return x + (sigma_hat**2 - sigma**2) ** 0.5 * noise, sigma_hat


@impostor("solvers.churn", "standard deviations added as if noises were parallel")
def churn_of_parallel_noises(x, noise, sigma, gamma):
    return x + sigma * gamma * noise, sigma * (1 + gamma)


@impostor("solvers.churn", "the whole new level on top of the old one")
def churn_adds_the_new_level(x, noise, sigma, gamma):
    return x + sigma * (1 + gamma) * noise, sigma * (1 + gamma)


@impostor("solvers.churn", "the denoiser is not told that the level rose")
def churn_keeps_the_level(x, noise, sigma, gamma):
    return x + ((sigma * (1 + gamma)) ** 2 - sigma**2) ** 0.5 * noise, sigma
