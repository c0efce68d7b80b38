import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.equations import schedules
from tests.impostors import impostor

lengths = st.integers(2, 5000)
starts = st.floats(0, 0.5)
gammas = st.floats(0.5, 40)


# --- warmup


@pytest.mark.verifies("schedules.warmup", by="point")
def test_warmup_over_four_steps_from_a_fifth():
    factors = [schedules.warmup(step, 4, 0.2) for step in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0], abs=1e-12)


@pytest.mark.verifies("schedules.warmup", by="point")
def test_warmup_of_the_paper():
    factors = [schedules.warmup(step, 2500, 1e-6) for step in (0, 1250, 2500, 9999)]
    assert factors == pytest.approx([1e-6, 0.5000005, 1.0, 1.0], abs=1e-12)


@pytest.mark.verifies("schedules.warmup")
@given(lengths, starts, st.integers(0, 10000))
def test_warmup_begins_at_its_start_and_is_over_after_its_length(n, start, later):
    assert schedules.warmup(0, n, start) == start
    assert math.isclose(schedules.warmup(n + later, n, start), 1, rel_tol=1e-12)


@pytest.mark.verifies("schedules.warmup")
@given(lengths, starts)
def test_every_step_of_the_warmup_is_equally_high(n, start):
    rises = np.diff([schedules.warmup(step, n, start) for step in range(n + 1)])
    np.testing.assert_allclose(rises, (1 - start) / n, rtol=0, atol=1e-12)


@pytest.mark.verifies("schedules.warmup")
@given(starts, st.integers(0, 10))
def test_without_a_warmup_the_rate_is_full_at_once(start, step):
    assert schedules.warmup(step, 0, start) == 1


@impostor("schedules.warmup", "divided by its length although that is nought, the crash mended by adding to it")
def warmup_with_an_added_one(step, warmup_steps, start):
    return start + (1 - start) * min(1.0, step / (warmup_steps + 1))


@impostor("schedules.warmup", "off by one: updates counted from one, the first is no longer at the start")
def warmup_counted_from_one(step, warmup_steps, start):
    return start + (1 - start) * min(1.0, (step + 1) / max(1, warmup_steps))


@impostor("schedules.warmup", "the start left on top: ends above one")
def warmup_on_top_of_the_start(step, warmup_steps, start):
    return start + min(1.0, step / max(1, warmup_steps))


@impostor("schedules.warmup", "from zero, whatever the start")
def warmup_from_zero(step, warmup_steps, start):
    return min(1.0, step / max(1, warmup_steps))


@impostor("schedules.warmup", "half a cosine instead of a line")
def warmup_by_cosine(step, warmup_steps, start):
    done = min(1.0, step / max(1, warmup_steps))
    return start + (1 - start) * (1 - math.cos(math.pi * done)) / 2


@impostor("schedules.warmup", "does not stop at one")
def warmup_without_end(step, warmup_steps, start):
    return start + (1 - start) * step / max(1, warmup_steps)


# --- cooling_down


@pytest.mark.verifies("schedules.cooling_down", by="point")
def test_cooling_down_over_the_last_quarter():
    factors = [schedules.cooling_down(step, 300, 400) for step in (0, 300, 325, 350, 400)]
    assert factors == [1.0, 1.0, 0.75, 0.5, 0.0]


@pytest.mark.verifies("schedules.cooling_down")
@given(lengths, lengths, st.floats(0, 1))
def test_the_rate_is_full_until_cooling_begins_and_zero_at_the_end(n, cooling, share):
    assert schedules.cooling_down(int(share * n), n, n + cooling) == 1
    assert schedules.cooling_down(n + cooling, n, n + cooling) == 0


@pytest.mark.verifies("schedules.cooling_down")
@given(lengths, lengths)
def test_every_step_of_the_cooling_is_equally_deep(n, cooling):
    falls = np.diff([schedules.cooling_down(step, n, n + cooling) for step in range(n, n + cooling + 1)])
    np.testing.assert_allclose(falls, -1 / cooling, rtol=0, atol=1e-12)


@pytest.mark.verifies("schedules.cooling_down")
@given(lengths, st.integers(0, 500), st.integers(0, 100))
def test_a_run_that_goes_on_after_its_end_learns_nothing(n, cooling, later):
    """A rate below zero would unlearn. Without cooling the last update is still a full one."""
    assert schedules.cooling_down(n + cooling + later, n, n + cooling) == 0
    assert schedules.cooling_down(n - 1, n, n + cooling) == 1


@pytest.mark.verifies("schedules.cooling_down", "schedules.warmup")
@given(st.integers(1, 500), st.floats(0, 1))
def test_cooling_from_the_first_step_is_a_warmup_from_nought_run_backwards(n, share):
    step = round(share * n)
    assert math.isclose(schedules.cooling_down(step, 0, n), schedules.warmup(n - step, n, 0.0), abs_tol=1e-15)


@impostor("schedules.cooling_down", "not stopped at zero: the rate of a run that goes on is negative")
def cooling_below_zero(step, start_step, num_steps):
    return min(1.0, (num_steps - step) / max(1, num_steps - start_step))


@impostor("schedules.cooling_down", "off by one: the last update of all is already lost")
def cooling_one_early(step, start_step, num_steps):
    return min(1.0, max(0, num_steps - 1 - step) / max(1, num_steps - 1 - start_step))


@impostor("schedules.cooling_down", "decays over the whole run")
def cooling_from_the_first_step(step, start_step, num_steps):
    return 1 - step / num_steps


@impostor("schedules.cooling_down", "half a cosine instead of a line")
def cooling_by_cosine(step, start_step, num_steps):
    done = min(1.0, max(0.0, (step - start_step) / (num_steps - start_step)))
    return (1 + math.cos(math.pi * done)) / 2


@impostor("schedules.cooling_down", "cools for as long as the run before it")
def cooling_measured_from_zero(step, start_step, num_steps):
    return min(1.0, max(0.0, 1 - (step - start_step) / num_steps))


# --- ema_gamma and ema_beta


def ema_weights(num_updates: int, gamma: float) -> np.ndarray:
    """How much the weights after each update count in the average of a whole run."""
    betas = np.array([schedules.ema_beta(step, gamma) for step in range(num_updates)])
    survives = np.append(np.cumprod(betas[:0:-1])[::-1], 1.0)  # the product of all later betas
    return (1 - betas) * survives


@pytest.mark.verifies("schedules.ema_gamma", by="point")
def test_ema_gammas_of_the_three_averages():
    gammas = [schedules.ema_gamma(s) for s in (0.1, 0.05, 0.025)]
    assert gammas == pytest.approx([6.937204, 16.972199, 36.986840], abs=6e-7)
    assert {type(gamma) for gamma in gammas} == {float}  # a plain number, not one of numpy's


@pytest.mark.verifies("schedules.ema_gamma")
@given(st.floats(0.02, 0.25))
def test_the_average_of_a_whole_run_is_as_wide_as_asked_for(relative_std):
    """Standard deviation of the times that the average looks at, measured on a run of 20,000 updates."""
    updates = 20_000
    time = (np.arange(updates) + 0.5) / updates
    weights = np.diff(np.linspace(0, 1, updates + 1) ** (schedules.ema_gamma(relative_std) + 1))
    std = math.sqrt(np.sum(weights * time**2) - np.sum(weights * time) ** 2)
    assert math.isclose(std, relative_std, rel_tol=1e-5)  # time is cut into pieces of 5e-5


@pytest.mark.verifies("schedules.ema_gamma")
@given(st.floats(1e-4, 0.28))
def test_gamma_solves_the_equation_of_the_width(relative_std):
    """Variance of a time drawn with density (gamma + 1) t^gamma, from its closed form."""
    gamma = schedules.ema_gamma(relative_std)
    assert math.isclose((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)), relative_std**2, rel_tol=1e-9)
    assert gamma > 0  # at 0 all moments weigh the same: width 0.2887, wider cannot be


@impostor("schedules.ema_gamma", "the width itself passed on where its gamma belongs")
def gamma_is_the_width(relative_std):
    return relative_std


@impostor("schedules.ema_gamma", "another root of the cubic")
def gamma_of_another_root(relative_std):
    inverse = relative_std**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.min())


@impostor("schedules.ema_gamma", "the rule of thumb 1 / s, right for very narrow averages only")
def gamma_by_rule_of_thumb(relative_std):
    return 1 / relative_std


@impostor("schedules.ema_gamma", "the square of s where its inverse belongs")
def gamma_of_the_inverse(relative_std):
    inverse = relative_std**2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


@pytest.mark.verifies("schedules.ema_beta", by="point")
def test_ema_beta_at_the_first_updates():
    betas = [schedules.ema_beta(step, 1.0) for step in (0, 1, 2, 9)]
    assert betas == pytest.approx([0.0, 1 / 4, 4 / 9, 0.81], abs=1e-12)


@pytest.mark.verifies("schedules.ema_beta")
@given(gammas, st.integers(2, 500))
def test_the_average_weighs_time_by_a_power(gamma, updates):
    """The first k of n updates hold (k / n)^(gamma + 1) of the weight: its density grows as t^gamma."""
    held = np.cumsum(ema_weights(updates, gamma))
    share = np.arange(1, updates + 1) / updates
    np.testing.assert_allclose(held, share ** (gamma + 1), rtol=0, atol=1e-12)


@pytest.mark.verifies("schedules.ema_beta")
@given(gammas)
def test_the_first_update_forgets_the_initial_weights(gamma):
    assert schedules.ema_beta(0, gamma) == 0


@pytest.mark.verifies("schedules.ema_beta", "schedules.ema_gamma")
@given(st.floats(0.02, 0.25))
def test_both_together_give_the_width(relative_std):
    updates = 4000
    weights = ema_weights(updates, schedules.ema_gamma(relative_std))
    time = (np.arange(updates) + 0.5) / updates
    std = math.sqrt(np.sum(weights * time**2) - np.sum(weights * time) ** 2)
    assert math.isclose(std, relative_std, rel_tol=1e-4)  # time is cut into pieces of 2.5e-4


@impostor("schedules.ema_beta", "gamma where gamma + 1 belongs")
def beta_with_gamma(step, gamma):
    return (1 - 1 / (step + 1)) ** gamma


@impostor("schedules.ema_beta", "the weight of the new weights given to the old average")
def beta_of_the_new(step, gamma):
    return 1 - (1 - 1 / (step + 1)) ** (gamma + 1)


@impostor("schedules.ema_beta", "a constant, as in most code")
def beta_constant(step, gamma):
    return 0.999


@impostor("schedules.ema_beta", "updates counted from one: the initial weights stay in the average")
def beta_counted_from_one(step, gamma):
    return (1 - 1 / (step + 2)) ** (gamma + 1)


# --- profile_overlap and posthoc_weights

POINTS, POINT_WEIGHTS = np.polynomial.legendre.leggauss(60)
times = st.integers(2, 3000).map(np.float64)
profiles = st.tuples(times, st.floats(1, 40).map(np.float64))


def profile(tau, time, gamma):
    """How much an average of exponent gamma, read after `time` updates, looks at the moment tau."""
    return np.where(tau <= time, (gamma + 1) / time * (np.minimum(tau, time) / time) ** gamma, 0.0)


def integral(function, ends):
    """Of a function that is smooth between `ends`, by quadrature."""
    edges = np.unique([0.0, *(share * end for end in ends for share in (0.5, 0.8, 1.0))])
    low, high = edges[:-1, None], edges[1:, None]
    return float(((high - low) / 2 * POINT_WEIGHTS * function((high + low + (high - low) * POINTS) / 2)).sum())


def kept(seed, count=4):
    """Averages that a training has kept: times from 100 to 1000 updates, two kinds of exponents."""
    generator = np.random.default_rng(seed)
    times = np.sort(generator.choice(np.arange(100.0, 1000.0, 50), count, replace=False))
    return times, generator.choice([6.9, 17.0], count)


@pytest.mark.verifies("schedules.profile_overlap", by="point")
def test_overlap_of_a_line_and_a_cube_up_to_one_and_two():
    one, two, line, cube = (np.float64(number) for number in (1, 2, 1, 3))
    assert schedules.profile_overlap(one, line, one, cube) == pytest.approx(2 * 4 / 5, rel=1e-12)
    # the integral over [0, 1] of 2 t times 4 (t / 2)^3 / 2
    assert schedules.profile_overlap(one, line, two, cube) == pytest.approx(0.1, rel=1e-12)
    # and of 4 t^3 times 2 (t / 2) / 2
    assert schedules.profile_overlap(one, cube, two, line) == pytest.approx(0.4, rel=1e-12)


@pytest.mark.verifies("schedules.profile_overlap")
@given(profiles, profiles)
def test_the_overlap_is_the_integral_of_the_product(one, other):
    expected = integral(lambda tau: profile(tau, *one) * profile(tau, *other), [one[0], other[0]])
    assert math.isclose(schedules.profile_overlap(*one, *other), expected, rel_tol=1e-6, abs_tol=1e-12)  # quadrature


@pytest.mark.verifies("schedules.profile_overlap")
@given(profiles, profiles)
def test_the_overlap_does_not_depend_on_the_order(one, other):
    assert math.isclose(schedules.profile_overlap(*one, *other), schedules.profile_overlap(*other, *one), rel_tol=1e-12)


@impostor("schedules.profile_overlap", "the exponent of the first average, whichever is the later one")
def overlap_with_the_first_exponent(time, gamma, time2, gamma2):
    earlier, later = np.minimum(time, time2), np.maximum(time, time2)
    return (gamma + 1) * (gamma2 + 1) / (gamma + gamma2 + 1) * (earlier / later) ** gamma / later


@impostor("schedules.profile_overlap", "the exponent of the earlier average")
def overlap_with_the_earlier_exponent(time, gamma, time2, gamma2):
    earlier, later = np.minimum(time, time2), np.maximum(time, time2)
    exponent = np.where(time < time2, gamma, gamma2)
    return (gamma + 1) * (gamma2 + 1) / (gamma + gamma2 + 1) * (earlier / later) ** exponent / later


@impostor("schedules.profile_overlap", "not divided by the time: long trainings overlap as much as short ones")
def overlap_without_the_time(time, gamma, time2, gamma2):
    return schedules_overlap(time, gamma, time2, gamma2) * np.maximum(time, time2)


@impostor("schedules.profile_overlap", "profiles that are powers but not normalised")
def overlap_of_bare_powers(time, gamma, time2, gamma2):
    return schedules_overlap(time, gamma, time2, gamma2) / ((gamma + 1) * (gamma2 + 1))


schedules_overlap = schedules.profile_overlap


@pytest.mark.verifies("schedules.posthoc_weights", by="point")
def test_weights_of_a_single_average():
    """The best multiple of one profile is the overlap with it over its own square."""

    def weight(time, gamma, wanted_time, wanted_gamma):
        (found,) = schedules.posthoc_weights(np.array([time]), np.array([gamma]), wanted_time, wanted_gamma)
        return found

    assert weight(1.0, 1.0, 1.0, 3.0) == pytest.approx(1.2, rel=1e-12)  # 8/5 over 4/3
    assert weight(1.0, 1.0, 2.0, 1.0) == pytest.approx(0.25, rel=1e-12)  # 1/3 over 4/3
    assert weight(2.0, 1.0, 1.0, 1.0) == pytest.approx(0.5, rel=1e-12)  # 1/3 over 2/3


@pytest.mark.verifies("schedules.posthoc_weights")
@given(st.integers(0, 2**20), st.integers(0, 3))
def test_an_average_that_was_kept_is_taken_as_it_is(seed, which):
    times, gammas = kept(seed)
    weights = schedules.posthoc_weights(times, gammas, times[which], gammas[which])
    np.testing.assert_allclose(weights, np.eye(4)[which], rtol=0, atol=1e-8)  # a condition of some 1e4


@pytest.mark.verifies("schedules.posthoc_weights")
@given(st.integers(0, 2**20), st.floats(5, 30), st.floats(0.5, 1))
def test_what_is_left_has_nothing_of_any_kept_average(seed, gamma, share):
    """Least squares: the error is orthogonal to all of them, measured by quadrature."""
    times, gammas = kept(seed)
    time = share * times[-1]
    weights = schedules.posthoc_weights(times, gammas, time, gamma)
    ends = [*times, time]
    for t, g in zip(times, gammas, strict=True):
        wanted = integral(lambda tau, t=t, g=g: profile(tau, time, gamma) * profile(tau, t, g), ends)
        made = sum(
            w * integral(lambda tau, t=t, g=g, t2=t2, g2=g2: profile(tau, t2, g2) * profile(tau, t, g), ends)
            for w, t2, g2 in zip(weights, times, gammas, strict=True)
        )
        assert math.isclose(made, wanted, rel_tol=1e-6, abs_tol=1e-8)  # quadrature


@pytest.mark.verifies("schedules.posthoc_weights")
@given(st.integers(0, 2**20), st.floats(5, 30), st.floats(0.5, 50))
def test_only_ratios_of_times_matter(seed, gamma, factor):
    times, gammas = kept(seed)
    weights = schedules.posthoc_weights(times, gammas, times[-1], gamma)
    scaled = schedules.posthoc_weights(factor * times, gammas, factor * times[-1], gamma)
    np.testing.assert_allclose(scaled, weights, rtol=0, atol=1e-8)


@pytest.mark.verifies("schedules.posthoc_weights")
@given(st.floats(0.025, 0.1), st.integers(1, 1000))
def test_weights_add_up_to_one_as_far_as_the_fit_is_good(relative_std, unit):
    """Every profile has the area 1, and an area is at most the norm times the root of the length (Cauchy-Schwarz).

    With three widths in four checkpoints the fit is good to 1 % of the profile's norm.
    """
    stds, gamma = (0.1, 0.05, 0.025), schedules.ema_gamma(relative_std)
    times = unit * np.repeat(np.arange(1.0, 5.0), len(stds))
    gammas = np.tile([schedules.ema_gamma(std) for std in stds], 4)
    weights = schedules.posthoc_weights(times, gammas, times[-1], gamma)
    assert abs(weights.sum() - 1) <= 0.01 * (gamma + 1) / math.sqrt(2 * gamma + 1)


@pytest.mark.verifies("schedules.posthoc_weights")
@given(st.integers(0, 2**20), st.floats(0.06, 0.085))
def test_an_average_that_was_not_kept_is_met_far_better_than_by_any_that_was(seed, relative_std):
    """On a random walk of 200 weights over 400 updates, against the average that was followed all along."""
    walk = np.random.default_rng(seed).normal(size=(400, 200)).cumsum(axis=0)
    stds, steps = (0.1, 0.05, 0.025), (100, 200, 300, 400)

    def average(steps, std):
        return ema_weights(steps, schedules.ema_gamma(std)) @ walk[:steps]

    times = np.repeat(np.array(steps, dtype=float), len(stds))
    gammas = np.tile([schedules.ema_gamma(std) for std in stds], len(steps))
    found = np.array([average(step, std) for step in steps for std in stds])
    wanted = average(400, relative_std)
    weights = schedules.posthoc_weights(times, gammas, 400.0, schedules.ema_gamma(relative_std))
    error = np.linalg.norm(weights @ found - wanted)
    assert error < 0.25 * np.linalg.norm(found - wanted, axis=1).min()  # on average a twelfth


@impostor("schedules.posthoc_weights", "the kept average whose exponent is nearest, alone")
def weights_of_the_nearest(times, gammas, time, gamma):
    return np.eye(len(times))[np.argmin(np.abs(gammas - gamma) + np.abs(times - time))]


@impostor("schedules.posthoc_weights", "divided by their sum: no longer least squares")
def weights_divided_by_their_sum(times, gammas, time, gamma):
    weights = schedules_posthoc(times, gammas, time, gamma)
    return weights / weights.sum()


@impostor("schedules.posthoc_weights", "negative ones cut off, as if it had to be a mixture")
def weights_without_the_negative(times, gammas, time, gamma):
    return schedules_posthoc(times, gammas, time, gamma).clip(0, 1)


@impostor("schedules.posthoc_weights", "the times forgotten: all averages read at the same moment")
def weights_without_the_times(times, gammas, time, gamma):
    return schedules_posthoc(np.ones_like(times), gammas, 1.0, gamma)


@impostor("schedules.posthoc_weights", "the overlaps themselves, without solving for what they share")
def weights_by_projection(times, gammas, time, gamma):
    own = schedules_overlap(times, gammas, times, gammas)
    return schedules_overlap(times, gammas, np.float64(time), np.float64(gamma)) / own


@impostor("schedules.posthoc_weights", "times counted in thousands in one place only")
def weights_with_a_unit_mixed_in(times, gammas, time, gamma):
    return schedules_posthoc(times, gammas, time + 1000, gamma)


schedules_posthoc = schedules.posthoc_weights
