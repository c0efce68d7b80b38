"""Our noise levels and Euler steps against diffusers' EDMEulerScheduler."""

import pytest
import torch
from diffusers import EDMEulerScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_ref.equations.edm import c_noise, denoise
from cosmos_ref.equations.noise import karras_sigmas
from cosmos_ref.equations.solvers import euler_step
from tests.oracles.promotion import float32_means_float64
from tests.strategies import normal, sigma_datas

pytestmark = pytest.mark.oracle
EXACT = dict(rtol=1e-12, atol=0)  # seventh powers of float64 roots

levels = st.fixed_dictionaries(
    {
        "sigma_min": st.floats(1e-4, 0.5),
        "sigma_max": st.floats(1, 200),
        "rho": st.floats(1, 10),
    }
)


@settings(max_examples=25)
@given(num_steps=st.integers(2, 50), levels=levels)
def test_the_noise_levels_are_those_of_diffusers(num_steps, levels):
    """Its `zero` is NVIDIA's sampler; its Cosmos pipelines take `sigma_min`, where the last step does nothing."""
    ours = karras_sigmas(num_steps, **levels)
    for last, end in ("zero", ours[-1]), ("sigma_min", ours[-2]):
        scheduler = EDMEulerScheduler(final_sigmas_type=last, **levels)
        with float32_means_float64():
            scheduler.set_timesteps(num_steps)
        torch.testing.assert_close(scheduler.sigmas[:-1], ours[:-1], **EXACT)
        torch.testing.assert_close(scheduler.sigmas[-1], end, rtol=1e-7, atol=0)  # went through float32 all the same
        torch.testing.assert_close(scheduler.timesteps, c_noise(ours[:-1]), rtol=1e-12, atol=1e-14)  # 0 at sigma 1


@settings(max_examples=10)
@given(num_steps=st.integers(2, 40), sigma_data=sigma_datas, levels=levels)
def test_every_euler_step_is_that_of_diffusers(num_steps, sigma_data, levels):
    """Of a network that is no denoiser at all, so that errors would not be forgotten on the way."""
    x = theirs = normal(3, 2, 5) * levels["sigma_max"]
    direction = normal(4, 5)
    with float32_means_float64():
        scheduler = EDMEulerScheduler(sigma_data=sigma_data, **levels)
        scheduler.set_timesteps(num_steps)
        sigmas = karras_sigmas(num_steps, **levels)
        for sigma, sigma_next, timestep in zip(sigmas[:-1], sigmas[1:], scheduler.timesteps, strict=True):
            scaled = scheduler.scale_model_input(theirs, timestep)
            F = torch.sin(scaled + timestep) * direction
            theirs = scheduler.step(F, timestep, theirs).prev_sample
            D = denoise(F, x, sigma.expand(2), sigma_data)
            x = euler_step(x, D, sigma.item(), sigma_next.item())
            torch.testing.assert_close(x, theirs, rtol=1e-11, atol=1e-11)
