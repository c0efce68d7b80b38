from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_ref.config import DiffusionConfig, SampleConfig
from cosmos_ref.equations.noise import karras_sigmas
from cosmos_ref.pipelines.conventions import like
from cosmos_ref.pipelines.sample import SOLVERS, guided, noise_from_seed, sample, schedule
from tests.pipelines.micro import CONFIG, condition_of, micro
from tests.strategies import normal, seeds

S = 0.5
DENOISED_AT_80 = 0.499990
"""Where the exact flow takes 80 when the data are N(0, 0.25): 80 S / sqrt(80^2 + S^2)."""


def gaussian_denoiser(x, sigma):
    return x * S**2 / (sigma**2 + S**2)


def from_noise_one(solver, sigmas):
    settings = SampleConfig(solver=solver)
    return sample(gaussian_denoiser, torch.ones(1, 1, 1, 1, 1).double(), sigmas, settings).item()


@pytest.mark.parametrize(
    ("solver", "num_steps", "sigma_min", "expected"),
    [
        ("euler", 35, 0.0002, 0.456869),  # the released sampler: 35 levels, then 0
        ("res_2ab", 36, 0.002, 0.509678),  # the original one: 35 steps, then the clean call
    ],
)
def test_sampling_reaches_the_published_samplers_values_on_gaussian_data(solver, num_steps, sigma_min, expected):
    """Six digits are known."""
    end = from_noise_one(solver, karras_sigmas(num_steps, sigma_min, 80.0, 7.0))
    assert end == pytest.approx(expected, abs=6e-7)


def test_heun_reaches_the_exact_value_on_gaussian_data():
    """Second order: within 1e-2 at 35 steps, where Euler is 4e-2 away."""
    assert from_noise_one("heun", karras_sigmas(35, 0.002, 80.0, 7.0)) == pytest.approx(DENOISED_AT_80, abs=1e-2)


@pytest.mark.parametrize(("solver", "evaluations"), [("euler", 5), ("heun", 9), ("res_2ab", 5)])
def test_a_solver_asks_the_denoiser_as_often_as_it_says_and_at_the_schedules_levels(solver, evaluations):
    asked, settings = [], SampleConfig(solver=solver, num_steps=5)
    sigmas = schedule(DiffusionConfig(), settings)
    sample(lambda x, sigma: asked.append(sigma) or 0 * x, normal(0, 1, 1, 1, 1, 1), sigmas, settings)
    assert len(asked) == evaluations
    assert set(asked) == set(sigmas.tolist()) - {0.0}


@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=10)
@given(seed=seeds, num_steps=st.integers(2, 9))
def test_with_a_denoiser_that_knows_the_answer_every_solver_finds_it(solver, seed, num_steps):
    """Also where the noise is gone: the last step ends in D, not near it."""
    answer, settings_ = normal(seed, 1, 2, 2, 2, 2), SampleConfig(solver=solver, num_steps=num_steps)
    sigmas = schedule(DiffusionConfig(), settings_)
    end = sample(lambda x, sigma: answer, normal(seed + 1, *answer.shape), sigmas, settings_)
    torch.testing.assert_close(end, answer, rtol=0, atol=1e-11)  # float64, from numbers of up to 300


def test_progress_sees_every_step():
    steps, settings = [], SampleConfig(num_steps=6)
    sample(
        gaussian_denoiser,
        normal(0, 1, 1, 1, 1, 1),
        schedule(DiffusionConfig(), settings),
        settings,
        lambda levels: steps.append(len(levels)) or levels,
    )
    assert steps == [6]


# --- what other samplers do


def settings_like(name, **changes):
    config = like(replace(CONFIG, diffusion=DiffusionConfig()), name)
    return config.diffusion, replace(config.sample, **changes)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("nvidia", {"state": "fp32"}, 0.456869 * 80.00625 / 80),  # the flow is linear in its start
        ("original", {}, 0.509678),
        ("diffusers", {}, 0.461004),  # ends at noise of 0.002
    ],
)
def test_each_implementations_conventions_reach_its_value_on_gaussian_data(name, changes, expected):
    """Six digits are known, the first one's from noise of 80."""
    diffusion, settings = settings_like(name, **changes)
    end = sample(gaussian_denoiser, torch.ones(1, 1, 1, 1, 1).double(), schedule(diffusion, settings), settings)
    assert end.item() == pytest.approx(expected, abs=6e-7)


def test_a_state_in_bfloat16_is_rounded_before_each_call_and_at_the_end():
    diffusion, settings = settings_like("nvidia", num_steps=5)
    met = []
    end = sample(
        lambda x, sigma: met.append(x) or gaussian_denoiser(x, sigma),
        normal(3, 2, 1, 1, 2, 2),
        schedule(diffusion, settings),
        settings,
    )
    assert len(met) == 5
    for x in (*met, end):
        assert x.dtype == torch.float64 and torch.equal(x, x.bfloat16().double())


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_last_step_of_no_length_is_not_taken(solver):
    """It ends where the same levels without it end, and the network is asked no more often."""
    settings_ = SampleConfig(solver=solver, num_steps=4, last_sigma="sigma_min")
    sigmas, asked = schedule(DiffusionConfig(), settings_), []
    assert sigmas[-1] == sigmas[-2] == pytest.approx(0.002)

    def ends(sigmas):
        asked.clear()
        return sample(lambda x, sigma: asked.append(sigma) or torch.sin(x), normal(4, 1, 1, 1, 1, 1), sigmas, settings_)

    whole, calls = ends(sigmas), len(asked)
    assert torch.equal(whole, ends(sigmas[:-1])) and calls == len(asked)


# --- guidance


@pytest.fixture(scope="module")
def model():
    return micro()


def guided_D(model, text, null_text, guidance):
    """D at a random sample, and the batch sizes of the denoiser's calls."""
    x = normal(5, 2, 16, 3, 4, 4).float()
    with mock.patch.object(model.denoiser, "run", wraps=model.denoiser.run) as run:
        D = guided(
            model.denoiser, x, torch.tensor([1.3], dtype=torch.float64), condition_of(text), null_text, guidance
        )(x, 1.3)
    return D, [len(call.args[0]) for call in run.call_args_list]


TEXT, NULL = normal(1, 2, 24, 16).float(), normal(2, 2, 24, 16).float()


def test_without_guidance_the_second_branch_is_not_computed(model):
    assert guided_D(model, TEXT, NULL, 0.0)[1] == [2]


def test_with_guidance_both_branches_are_one_call(model):
    assert guided_D(model, TEXT, NULL, 1.5)[1] == [4]


def test_guidance_away_from_the_text_itself_changes_nothing(model):
    """float32: the two branches cancel to rounding, times g."""
    plain, guided_ = guided_D(model, TEXT, NULL, 0.0)[0], guided_D(model, TEXT, TEXT, 7.0)[0]
    torch.testing.assert_close(guided_, plain, rtol=0, atol=1e-4)


def test_guidance_goes_on_from_the_text_away_from_the_null_text(model):
    """D_c + g (D_c - D_u): at g = -1 only the null text is left, at g = 2 it is 3 D_c - 2 D_u."""
    with_text, without = guided_D(model, TEXT, NULL, 0.0)[0], guided_D(model, NULL, NULL, 0.0)[0]
    assert (with_text - without).abs().max() > 1e-3
    torch.testing.assert_close(guided_D(model, TEXT, NULL, -1.0)[0], without, rtol=0, atol=1e-4)
    torch.testing.assert_close(guided_D(model, TEXT, NULL, 2.0)[0], 3 * with_text - 2 * without, rtol=0, atol=1e-4)


# --- noise


def test_noise_of_a_seed_is_what_numpys_philox_gives():
    """Point values: a clip's seed is a promise to whoever wrote it down."""
    expected = [1.091689109802246, 0.45582669973373413, 0.7017897367477417, 0.2849433720111847]
    assert noise_from_seed(1, 0, (4,)).tolist() == expected
    expected = [[-1.0680471658706665, 1.5709235668182373], [-0.9954203367233276, 0.4870198667049408]]
    assert noise_from_seed(7, 2**32 + 3, (2, 2)).tolist() == expected


@given(seed=st.integers(0, 2**64 - 1), index=st.integers(0, 2**33))
def test_noise_of_another_seed_or_index_is_other_noise(seed, index):
    here = noise_from_seed(seed, index, (8,))
    assert here.dtype == torch.float32
    assert not torch.equal(here, noise_from_seed(seed ^ 1, index, (8,)))
    assert not torch.equal(here, noise_from_seed(seed, index + 1, (8,)))


def test_schedule_is_the_diffusions():
    sigmas = schedule(CONFIG.diffusion, CONFIG.sample)
    assert (len(sigmas), sigmas[-1]) == (5, 0)
    assert sigmas[0].item() == pytest.approx(CONFIG.diffusion.sigma_max)
    assert sigmas[3].item() == pytest.approx(CONFIG.diffusion.sigma_min)
