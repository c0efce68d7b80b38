"""The numpy solvers obey the laws of the equations: the same tests, with our function in each equation's place."""

import functools

import ml_dtypes
import numpy as np
import pytest
import torch
from cosmos_export import sampling, solvers
from cosmos_export.errors import BundleError
from hypothesis import given
from hypothesis import strategies as st

from cosmos_ref.config import DiffusionConfig, SampleConfig
from cosmos_ref.equations import conditioning, guidance, noise
from cosmos_ref.equations import solvers as equations
from cosmos_ref.pipelines import sample as pipeline
from cosmos_ref.pipelines.video2world import AUGMENT_STREAM
from tests.equations.test_impostors import LAWS
from tests.impostors import Impostor, in_place_of_its_equation, rejects

OURS = {
    "solvers.initial_std": solvers.initial_std,
    "solvers.euler_step": solvers.euler_step,
    "solvers.heun_step": solvers.heun_step,
    "solvers.phi2": solvers.phi2,
    "solvers.res_2ab_step": solvers.res_2ab_step,
    "noise.karras_sigmas": solvers.karras_sigmas,
    "guidance.cfg": solvers.cfg,
    "conditioning.frame_mask": solvers.frame_mask,
    "conditioning.active_frames": solvers.active_frames,
    "conditioning.replace_frames": solvers.replace_frames,
}
OF_TRAINING = {"test_only_generated_frames_teach_the_network"}
"""Laws about gradients, which numpy has none of."""
OURS_LAWS = [(id, law) for id in OURS for law in LAWS[id] if law.__name__ not in OF_TRAINING]


def to_numpy(value):
    """A law's tensor as an array; a law's denoiser as one of arrays."""
    if isinstance(value, torch.Tensor):
        if value.dtype == torch.bfloat16:  # of which numpy has none of its own
            return value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()
    return (lambda x, sigma: to_numpy(value(to_torch(x), sigma))) if callable(value) else value


def to_torch(value):
    if isinstance(value, np.ndarray):
        if value.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.array(value))
    return value


def in_numpy(id, function):
    """Something to stand in for the equation: it takes and gives tensors, and reckons in numpy."""

    @functools.wraps(function)
    def run(*args):
        return to_torch(function(*map(to_numpy, args)))

    return Impostor(id, "the deployer's", run)


@pytest.mark.parametrize("id, law", OURS_LAWS, ids=lambda value: getattr(value, "__name__", value))
def test_what_the_equation_obeys_the_runtime_obeys(id, law):
    """Point values, exact solutions of a Gaussian and a mixture, orders of convergence, and every other law."""
    with in_place_of_its_equation(in_numpy(id, OURS[id])):
        law()


WRONG = {
    "solvers.initial_std": lambda sigma_max, data_std: sigma_max + data_std,
    "solvers.euler_step": lambda x, D, sigma, sigma_next: D + sigma_next / sigma * (D - x),
    "solvers.heun_step": lambda denoise, x, sigma, sigma_next: solvers.euler_step(
        x, denoise(x, sigma), sigma, sigma_next
    ),
    "solvers.phi2": lambda z: 0.5,
    "solvers.res_2ab_step": lambda x, D, D_previous, *levels: solvers.euler_step(x, D, *levels[:2]),
    "noise.karras_sigmas": lambda *numbers: solvers.karras_sigmas(*numbers)[:-1],
    "guidance.cfg": lambda D_c, D_u, g: D_u + g * (D_c - D_u),
    "conditioning.frame_mask": lambda given, frames: 1 - solvers.frame_mask(given, frames),
    "conditioning.active_frames": lambda mask, sigma, augment_sigma: mask,
    "conditioning.replace_frames": lambda D, x0, mask: D,
}


@pytest.mark.parametrize("id", OURS)
def test_a_wrong_function_in_numpy_is_found(id):
    """So what the laws judge is the function in numpy, not the equation behind it."""
    with in_place_of_its_equation(in_numpy(id, WRONG[id])):
        assert any(rejects(law) for law in LAWS[id])


@pytest.mark.parametrize("num_steps", [2, 3, 35])
def test_the_schedule_is_the_equations(num_steps):
    ours, theirs = solvers.karras_sigmas(num_steps, 0.002, 80, 7), noise.karras_sigmas(num_steps, 0.002, 80, 7)
    # torch counts its ramp from both ends, numpy from one: a few units in the last place, raised to the 7th power
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12)


@given(
    st.integers(0, 1000),
    st.floats(0.01, 80).flatmap(lambda s: st.tuples(st.just(s), st.just(0.0) | st.floats(0.3 * s, 0.95 * s))),
    st.floats(-2, 15),
)
def test_every_function_is_the_equations_to_the_last_digits(seed, levels, g):
    """In float64, where the operations are the same: 1e-12 is a few thousand units in the last place."""
    sigma = levels[0]
    x, D, D_previous = np.random.default_rng(seed).standard_normal((3, 2, 3, 4, 2, 2))
    tensors = [torch.from_numpy(a) for a in (x, D, D_previous)]
    each = np.array([sigma, levels[1] + 0.01])

    def denoise(x, sigma):
        return x / (1 + sigma**2)

    mask, counts = solvers.frame_mask(np.array([1, 3]), 4), torch.tensor([1, 3])
    active, augment_sigma = solvers.active_frames(mask, each, np.full(2, 0.02)), torch.full((2,), 0.02).double()
    theirs_active = conditioning.active_frames(
        conditioning.frame_mask(counts, 4), torch.from_numpy(each), augment_sigma
    )
    pairs = [
        (solvers.euler_step(x, D, *levels), equations.euler_step(*tensors[:2], *levels)),
        (solvers.heun_step(denoise, x, *levels), equations.heun_step(denoise, tensors[0], *levels)),
        (
            solvers.res_2ab_step(x, D, D_previous, *levels, 1.4 * sigma),
            equations.res_2ab_step(*tensors, *levels, 1.4 * sigma),
        ),
        (solvers.cfg(x, D, g), guidance.cfg(*tensors[:2], g)),
        (active, theirs_active),
        (solvers.replace_frames(D, x, active), conditioning.replace_frames(tensors[1], tensors[0], theirs_active)),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12, atol=1e-12)


CONVENTIONS = [
    dict(),
    dict(last_sigma="sigma_min"),
    dict(initial_noise="total"),
    dict(state="bf16"),
    dict(last_sigma="sigma_min", initial_noise="total", state="bf16"),
]


@pytest.mark.parametrize("solver", ["euler", "heun", "res_2ab"])
@pytest.mark.parametrize("conventions", CONVENTIONS, ids=str)
def test_the_loop_is_the_pipelines_loop(solver, conventions):
    settings, diffusion = SampleConfig(solver=solver, num_steps=9, **conventions), DiffusionConfig()
    dtype = np.float32 if settings.state == "bf16" else np.float64
    start = np.random.default_rng(0).standard_normal((2, 3)).astype(dtype)

    def denoise(x, sigma):
        return x / (1 + sigma**2) + 0.1

    theirs_levels = pipeline.schedule(diffusion, settings)
    theirs = pipeline.sample(denoise, torch.from_numpy(start), theirs_levels, settings)
    config = {"diffusion": vars(diffusion), "sample": vars(settings)}
    levels = sampling.schedule(config, settings.num_steps)
    np.testing.assert_allclose(levels, theirs_levels.numpy(), rtol=1e-12)
    ours = solvers.integrate(denoise, start, levels, solver, initial_noise=settings.initial_noise, state=settings.state)
    # a sample rounded to bfloat16 may fall to the other side where the levels differ in their last digit: 2**-8
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2**-8 if settings.state == "bf16" else 1e-12)


def test_a_rounded_sample_is_rounded_before_every_call_and_the_first_one_too():
    seen = []

    def denoise(x, sigma):
        seen.append(x)
        return x / (1 + sigma**2)

    start = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    solvers.integrate(denoise, start, [80.0, 3.0, 0.5, 0.0], "euler", initial_noise="total", state="bf16")
    assert (seen[0] == solvers.bf16(solvers.initial_std(80.0, 1.0) * start)).all()
    assert len(seen) == 3 and all((x == solvers.bf16(x)).all() for x in seen)


@given(st.floats(width=32, allow_nan=False))
def test_bfloat16_rounds_as_pytorch_rounds(value):
    ours = solvers.bf16(np.array([value], np.float32))
    assert ours.tobytes() == torch.tensor([value]).bfloat16().float().numpy().tobytes()


def test_the_noise_is_the_pipelines_noise():
    for seed, index in ((0, 0), (7, 1), (1, AUGMENT_STREAM + 3), (2**64 - 1, 2)):
        ours, theirs = (module.noise_from_seed(seed, index, (2, 3)) for module in (solvers, pipeline))
        assert (ours == theirs.numpy()).all()


@pytest.mark.parametrize("what", ["solver", "initial_noise", "state"])
def test_a_convention_that_is_not_known_is_refused_by_name(what):
    choice = {"solver": "euler", what: "magic"}
    with pytest.raises(BundleError, match=rf"unknown {what} 'magic'; accepted: \w+, \w+"):
        solvers.integrate(lambda x, sigma: x, np.zeros((1, 1)), [1.0, 0.0], **choice)
