"""The loss is what the equations say it is."""

import dataclasses

import pytest
import torch

from cosmos_ref.conditioning.condition import give_frames, text_condition
from cosmos_ref.config import PRESETS
from cosmos_ref.equations import edm
from cosmos_ref.model.initialization import new_model
from cosmos_ref.training.data import Batch
from cosmos_ref.training.loop import Run, advance, in_bf16
from cosmos_ref.training.optimizer import build_optimizer
from cosmos_ref.training.step import training_loss, weighted_error
from tests.strategies import normal

MICRO = PRESETS["micro"]
SIGMA_DATA = 0.5
B, SHAPE = 512, (16, 3, 4, 4)
X0 = SIGMA_DATA * normal(0, B, *SHAPE)
NOISE = normal(1, B, *SHAPE)
SIGMA = torch.exp(normal(2, B))
ULPS = dict(rtol=1e-5, atol=1e-6)  # sums of 768 float32 terms


def u(sigma):
    return 0.3 * torch.log(sigma) - 0.2


def batch(B, given, seed=0):
    x0 = SIGMA_DATA * normal(seed, B, *SHAPE).float()
    text = normal(seed + 1, B, MICRO.text.length, MICRO.text.width).float()
    condition = text_condition(text, x0, torch.full((B,), 24.0))
    noise = normal(seed + 2, 2, B, *SHAPE).float()
    condition = give_frames(condition, x0, torch.tensor(given), torch.full((B,), 0.05), noise[0])
    return Batch(x0, condition, noise[1], torch.exp(normal(seed + 3, B).float()))


def test_a_network_that_says_nothing_has_weighted_error_one():
    """For Gaussian latents, c_skip x misses x0 by exactly c_out: what lambda is made to weigh with one."""

    def says_nothing(x, sigma):
        return edm.denoise(torch.zeros_like(x), x, sigma, SIGMA_DATA)

    mean = weighted_error(says_nothing, X0, {}, NOISE, SIGMA, SIGMA_DATA).mean().item()
    assert mean == pytest.approx(1, abs=5 * (2 / X0.numel()) ** 0.5)  # five standard deviations of the mean


def test_a_perfect_denoiser_is_left_with_the_mean_uncertainty():
    def perfect(x, sigma):
        return X0

    loss, error = training_loss(perfect, u, X0, {}, NOISE, SIGMA, SIGMA_DATA)
    assert torch.equal(error, torch.zeros_like(error))
    torch.testing.assert_close(loss, u(SIGMA).mean())


def test_the_loss_of_a_constant_error_by_hand():
    """An error of 0.1 everywhere is L = 0.01; lambda and u are computed here once more, from their formulas."""

    def misses(x, sigma):
        return X0 + 0.1

    loss, error = training_loss(misses, u, X0, {}, NOISE, SIGMA, SIGMA_DATA)
    expected = 0.01 * (SIGMA**-2 + SIGMA_DATA**-2)
    torch.testing.assert_close(error, expected.to(error), **ULPS)
    torch.testing.assert_close(loss, (expected / torch.exp(u(SIGMA)) + u(SIGMA)).mean(), **ULPS)


def test_the_denoiser_sees_noise_of_the_level_it_is_told():
    def checks(x, sigma, marker):
        torch.testing.assert_close((x - X0) / sigma.reshape(-1, 1, 1, 1, 1), NOISE)
        assert marker == "the condition"
        return X0

    weighted_error(checks, X0, {"marker": "the condition"}, NOISE, SIGMA, SIGMA_DATA)


def test_given_frames_have_no_error_and_no_gradient():
    """Whatever is estimated in them; the other frames still count over the whole clip."""
    estimate = normal(3, B, *SHAPE).requires_grad_()
    given = torch.arange(B) % 3
    frame_mask = (torch.arange(3) < given[:, None]).double().reshape(B, 1, 3, 1, 1)

    def ignores_the_given(x, sigma, frame_mask):
        return estimate

    error = weighted_error(ignores_the_given, X0, {"frame_mask": frame_mask}, NOISE, SIGMA, SIGMA_DATA)
    error.sum().backward()
    assert (estimate.grad * frame_mask).abs().max() == 0
    generated = (estimate.grad != 0).any(1).any(-1).any(-1)
    assert torch.equal(generated, torch.arange(3) >= given[:, None])
    plain = weighted_error(lambda x, sigma: estimate, X0, {}, NOISE, SIGMA, SIGMA_DATA)
    torch.testing.assert_close(error[given == 0], plain[given == 0])


def test_the_loss_is_summed_in_float32_whatever_the_network_returns():
    """In bfloat16 neither the estimate's difference from x0 nor its square would keep three digits."""
    rounded = X0.bfloat16()
    error = weighted_error(lambda x, sigma: rounded, X0.float(), {}, NOISE.float(), SIGMA.float(), SIGMA_DATA)
    assert error.dtype == torch.float32
    expected = edm.loss_weight(SIGMA, SIGMA_DATA) * (rounded.double() - X0).square().mean((1, 2, 3, 4))
    torch.testing.assert_close(error.double(), expected, rtol=1e-4, atol=0)  # float32, and x0 was rounded to it


def test_bf16_gives_nearly_the_loss_of_fp32():
    denoiser, uncertainty = new_model(MICRO, torch.Generator().manual_seed(0))
    b = batch(32, [0, 1, 2, 0] * 8)
    arguments = uncertainty, b.x0, b.condition, b.noise, b.sigma, SIGMA_DATA
    exact, _ = training_loss(denoiser, *arguments)
    rounded, _ = training_loss(in_bf16(denoiser, torch.device("cpu")), *arguments)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)  # or bfloat16 was never used
    # A product rounds by 2**-9; errors of random sign through two blocks leave the mean square within a few times that.
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_batch_can_be_learnt_by_heart(precision):
    """Same clips and noise every step: lambda L falls far, and u follows it down."""
    settings = dict(num_steps=250, learning_rate=4e-3, warmup_steps=10, cooling_steps=50, precision=precision)
    config = dataclasses.replace(MICRO, train=dataclasses.replace(MICRO.train, **settings))
    denoiser, uncertainty = new_model(config, torch.Generator().manual_seed(0))
    optimizer = build_optimizer(denoiser, uncertainty, config.train)
    run = Run(denoiser, uncertainty, optimizer, ema=NoAverage(), tokenizer=None)
    b = batch(4, [0, 1, 2, 0])
    errors = [advance(run, b, config)["weighted_error"] for _ in range(250)]
    assert errors[-1] < 0.25 * errors[0]
    assert uncertainty(b.sigma).mean() < -0.3


class NoAverage:
    def update(self, module, step):
        pass
