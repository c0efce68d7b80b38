"""The loss is what the equations say it is."""

import dataclasses

import pytest
import torch

from cosmos_ref.conditioning.condition import give_frames, text_condition
from cosmos_ref.config import PRESETS
from cosmos_ref.model.initialization import new_model
from cosmos_ref.training.data import Batch
from cosmos_ref.training.optimizer import build_optimizer
from cosmos_ref.training.run import Run
from cosmos_ref.training.step import training_loss
from cosmos_ref.training.update import advance, in_bf16
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


def test_the_curve_takes_no_part_in_training_and_the_uncertainty_does():
    """The loss pulls on u with (1 - lambda L / e^u) / B: until e^u is the mean of lambda L."""
    level = (0.1 * normal(4, B)).requires_grad_()
    x0 = X0.clone().requires_grad_()
    loss, error = training_loss(lambda x, sigma: 0.9 * x, lambda sigma: level, x0, {}, NOISE, SIGMA, SIGMA_DATA)
    assert loss.requires_grad and not error.requires_grad
    (pull,) = torch.autograd.grad(loss, level)
    torch.testing.assert_close(pull, (1 - error / level.detach().exp()) / B, **ULPS)


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
    run = Run(denoiser, uncertainty, optimizer, emas={}, tokenizer=None)
    b = batch(4, [0, 1, 2, 0])
    errors = [advance(run, [b], config)["weighted_error"] for _ in range(250)]
    assert errors[-1] < 0.25 * errors[0]
    assert uncertainty(b.sigma).mean() < -0.3
