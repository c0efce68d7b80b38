import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import noise, solvers
from tests.impostors import impostor
from tests.strategies import normal, seeds, sigmas

# The one distribution whose flow is known in closed form: data from N(0, S^2).
S = 0.5
ratios = st.floats(0.05, 0.95)  # of a step's end to its start


def gaussian_denoiser(x, sigma):
    return x * S**2 / (sigma**2 + S**2)


def gaussian_flow(x, sigma, sigma_next):
    """Where the exact flow carries x: its spread follows the spread of the noisy data."""
    return x * ((sigma_next**2 + S**2) / (sigma**2 + S**2)) ** 0.5


def run_euler(x, levels):
    for sigma, sigma_next in itertools.pairwise(levels):
        x = solvers.euler_step(x, gaussian_denoiser(x, sigma), sigma, sigma_next)
    return x


def run_heun(x, levels):
    for sigma, sigma_next in itertools.pairwise(levels):
        x = solvers.heun_step(gaussian_denoiser, x, sigma, sigma_next)
    return x


def run_res_2ab(x, levels):
    """The first step has no past: it is an Euler step, written out so that only RES 2AB is on trial."""
    D_previous = gaussian_denoiser(x, levels[0])
    x = D_previous + (x - D_previous) * levels[1] / levels[0]
    for previous, sigma, sigma_next in zip(levels, levels[1:], levels[2:], strict=False):
        D = gaussian_denoiser(x, sigma)
        x = solvers.res_2ab_step(x, D, D_previous, sigma, sigma_next, previous)
        D_previous = D
    return x


def observed_order(run):
    """Slope of log(error at sigma 0.1) over log(steps), from sigma 2: there 32 steps are already asymptotic."""
    counts, errors = (32, 64, 128, 256), []
    start = torch.ones(1, dtype=torch.float64)
    for steps in counts:
        levels = noise.karras_sigmas(steps + 1, 0.1, 2.0, 7.0)[:-1].tolist()
        errors.append((run(start, levels) - gaussian_flow(start, 2.0, 0.1)).abs().item())
    assert all(math.isfinite(error) and error > 0 for error in errors)
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


def from_80(run, levels):
    return run(torch.tensor([80.0], dtype=torch.float64), levels.tolist()).item()


def on_a_line(seed, sigma):
    """A clean sample, its noise, and the two together."""
    x0, n = normal(seed, 6), normal(seed + 1, 6)
    return x0, n, x0 + sigma * n


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
    assert abs(observed_order(run_euler) - 1) < 0.2


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
    exact = gaussian_flow(80.0, 80.0, 0.02)
    assert abs(from_80(run_heun, levels) - exact) < 4e-4 * exact  # measured 2.8e-4; Euler is off by 1.3e-2


@pytest.mark.verifies("solvers.heun_step", by="exact")
def test_heun_converges_to_the_gaussian_flow_with_order_two():
    assert abs(observed_order(run_heun) - 2) < 0.2


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
    assert abs(observed_order(run_res_2ab) - 2) < 0.2


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


@impostor("solvers.churn", "standard deviations added as if noises were parallel")
def churn_of_parallel_noises(x, noise, sigma, gamma):
    return x + sigma * gamma * noise, sigma * (1 + gamma)


@impostor("solvers.churn", "the whole new level on top of the old one")
def churn_adds_the_new_level(x, noise, sigma, gamma):
    return x + sigma * (1 + gamma) * noise, sigma * (1 + gamma)


@impostor("solvers.churn", "the denoiser is not told that the level rose")
def churn_keeps_the_level(x, noise, sigma, gamma):
    return x + ((sigma * (1 + gamma)) ** 2 - sigma**2) ** 0.5 * noise, sigma
