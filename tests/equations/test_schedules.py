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
