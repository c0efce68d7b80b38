"""The loss is what the equations say it is."""

import dataclasses

import pytest
import torch

from cosmos_ref.conditioning.condition import give_frames, text_condition
from cosmos_ref.config import PRESETS
from cosmos_ref.model.initialization import new_model
from cosmos_ref.training.data import Batch
from cosmos_ref.training.ema import PowerEMA
from cosmos_ref.training.optimizer import build_optimizer
from cosmos_ref.training.run import Run
from cosmos_ref.training.step import training_loss
from cosmos_ref.training.update import TrainingDiverged, advance, in_bf16
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


def double_run(config):
    """A run in float64, whose weights are not at a special place."""
    denoiser, uncertainty = new_model(config, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(uncertainty.linear.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    denoiser, uncertainty = denoiser.double(), uncertainty.double()
    emas = {std: PowerEMA(denoiser, std) for std in config.train.ema_stds}
    return Run(denoiser, uncertainty, build_optimizer(denoiser, uncertainty, config.train), emas, tokenizer=None)


def cut(whole, size):
    """A batch in micro-batches, in float64."""

    def part(tensor, i):
        return tensor[i : i + size].double()

    return [
        Batch(
            part(whole.x0, i),
            {name: part(value, i) for name, value in whole.condition.items()},
            part(whole.noise, i),
            part(whole.sigma, i),
            samples=range(i, i + size),
        )
        for i in range(0, len(whole.x0), size)
    ]


def trained(**settings):
    return dataclasses.replace(MICRO, train=dataclasses.replace(MICRO.train, **settings))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_loss_gradients_and_records_do_not_depend_on_the_micro_batch(size):
    config, whole = trained(max_grad_norm=0.1), batch(8, [0, 1, 2, 0] * 2)
    found = []
    for pieces in (8, size):
        run = double_run(config)
        record = advance(run, cut(whole, pieces), config)
        found.append((record, [parameter.grad for parameter in run.parameters]))
    (expected, gradients), (record, accumulated) = found
    assert record == pytest.approx(expected, rel=1e-12)  # sums in another order
    for one, other in zip(gradients, accumulated, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-14)


def test_the_scale_of_the_loss_scales_its_gradient_and_not_what_is_recorded():
    """Ten times the gradient, before its limit; AdamW moves as before, once its epsilon is nothing."""
    whole, found = batch(4, [0, 1, 2, 0]), []
    for scale in (1.0, 10.0):
        config = trained(loss_scale=scale, max_grad_norm=1e9, eps=1e-100, weight_decay=0.0)
        run = double_run(config)
        record = advance(run, cut(whole, 4), config)
        found.append((record, [p.grad for p in run.parameters], [p.detach().clone() for p in run.parameters]))
    (one, gradients, weights), (ten, scaled, same) = found
    assert ten["loss"] == one["loss"]
    assert ten["grad_norm"] == pytest.approx(10 * one["grad_norm"], rel=1e-12)
    for g, g10, w, w10 in zip(gradients, scaled, weights, same, strict=True):
        torch.testing.assert_close(g10, 10 * g, rtol=1e-9, atol=1e-18)
        torch.testing.assert_close(w10, w, rtol=1e-9, atol=1e-12)


def test_a_gradient_is_shortened_to_its_limit_and_keeps_its_direction():
    whole, found = cut(batch(4, [0, 1, 2, 0]), 4), []
    for limit in (1e9, 0.5):
        run = double_run(config := trained(max_grad_norm=limit))
        norm = advance(run, whole, config)["grad_norm"]
        found.append((norm, torch.cat([p.grad.flatten() for p in run.parameters])))
    (norm, gradient), (norm_before, limited) = found
    assert norm == norm_before == pytest.approx(gradient.norm().item(), rel=1e-12)
    assert norm > 0.5
    torch.testing.assert_close(limited, gradient * 0.5 / norm, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("where", ["x0", "weights"])
def test_an_update_that_is_not_finite_changes_nothing_and_says_why(where):
    config = trained()
    run, batches = double_run(config), cut(batch(4, [0, 1, 2, 0]), 2)
    if where == "x0":
        batches[1].x0[0] = float("nan")
        says = r"step 1: loss is nan in an update of videos.*clips of video samples 2 are not finite: take them out"
    else:
        with torch.no_grad():
            run.denoiser.network.final_layer.linear.weight.fill_(float("inf"))
        says = r"error of video samples 0, 1, 2, 3 is not finite though their clips are.*--train.learning-rate"
    before = [parameter.detach().clone() for parameter in run.parameters]
    average = {name: tensor.clone() for name, tensor in run.emas[0.05].weights.items()}
    with pytest.raises(TrainingDiverged, match=says):
        advance(run, batches, config)
    assert run.step == 0
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))
    assert all(torch.equal(tensor, average[name]) for name, tensor in run.emas[0.05].weights.items())
    assert not run.optimizer.state


def test_each_average_has_a_width_of_its_own():
    """After the first update all are the weights; then the wider one lags behind more."""
    config = trained(ema_stds=(0.2, 0.05), num_steps=6, warmup_steps=0, cooling_steps=0)
    run, batches = double_run(config), cut(batch(4, [0, 1, 2, 0]), 4)

    def lag():
        weights = run.denoiser.state_dict()
        return [sum((t - weights[n]).square().sum() for n, t in ema.weights.items()) for ema in run.emas.values()]

    advance(run, batches, config)
    assert max(lag()) < 1e-9  # averages are float32
    for _ in range(5):
        advance(run, batches, config)
    wide, narrow = lag()
    assert wide > 2 * narrow > 0
