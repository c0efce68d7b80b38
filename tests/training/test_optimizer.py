"""The learning rate, what decays, and the average of the weights."""

import dataclasses

import pytest
import torch
from torch import nn

from cosmos_ref.config import PRESETS
from cosmos_ref.equations.schedules import ema_gamma
from cosmos_ref.errors import UserError
from cosmos_ref.model.initialization import new_model
from cosmos_ref.training.ema import PowerEMA
from cosmos_ref.training.optimizer import build_optimizer, learning_rate, load_optimizer, optimizer_tensors
from tests.strategies import normal

MICRO = PRESETS["micro"]


def settings(**changes):
    return dataclasses.replace(MICRO.train, learning_rate=2.0, **changes)


def test_the_learning_rate_rises_stays_and_falls():
    config = settings(num_steps=100, warmup_steps=10, cooling_steps=20)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(2e-6)
    assert rates[5] == pytest.approx(1, rel=1e-5)
    assert set(rates[10:81]) == {2.0}
    assert rates[90] == pytest.approx(1)
    assert rates[99] == pytest.approx(0.1)  # the last update still moves


def test_without_warm_up_or_cooling_the_rate_is_constant():
    config = settings(num_steps=5, warmup_steps=0, cooling_steps=0)
    assert {learning_rate(step, config) for step in range(5)} == {2.0}


def test_a_cooling_longer_than_the_training_begins_at_the_full_rate():
    config = settings(num_steps=4, warmup_steps=0, cooling_steps=300)
    assert [learning_rate(step, config) for step in range(4)] == [2.0, 1.5, 1.0, 0.5]


def test_exactly_the_matrices_of_linear_layers_decay():
    """With a zero gradient AdamW moves a weight by its decay alone."""
    denoiser, uncertainty = new_model(MICRO, torch.Generator().manual_seed(0))
    nn.init.ones_(uncertainty.linear.weight)  # zeros could not show a decay
    for module in denoiser.modules():
        if isinstance(module, nn.Linear):
            nn.init.ones_(module.weight)
    before = {name: p.detach().clone() for name, p in denoiser.named_parameters()}
    optimizer = build_optimizer(denoiser, uncertainty, settings(weight_decay=0.1))
    for parameter in [*denoiser.parameters(), *uncertainty.parameters()]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = {name for name, p in denoiser.named_parameters() if torch.equal(p, before[name])}
    assert kept == {name for name in before if "norm" in name or "position_embedding" in name}
    for name in before.keys() - kept:
        torch.testing.assert_close(denoiser.get_parameter(name), torch.full_like(before[name], 1 - 2.0 * 0.1))
    assert torch.equal(uncertainty.linear.weight, torch.ones_like(uncertainty.linear.weight))


def test_every_parameter_is_trained_once():
    denoiser, uncertainty = new_model(MICRO, torch.Generator().manual_seed(0))
    optimizer = build_optimizer(denoiser, uncertainty, MICRO.train)
    trained = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in [*denoiser.parameters(), *uncertainty.parameters()])


@pytest.mark.parametrize("damage", ["missing", "unexpected", "of another shape"])
def test_moments_that_do_not_fit_are_refused(damage):
    denoiser, uncertainty = new_model(MICRO, torch.Generator().manual_seed(0))
    modules = {"denoiser": denoiser, "uncertainty": uncertainty}
    optimizer = build_optimizer(denoiser, uncertainty, MICRO.train)
    for parameter in [*denoiser.parameters(), *uncertainty.parameters()]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = optimizer_tensors(optimizer, modules)
    load_optimizer(optimizer, modules, moments)
    name = "exp_avg_sq.uncertainty.linear.weight"
    if damage == "missing":
        del moments[name]
    elif damage == "unexpected":
        name = "exp_avg.denoiser.no_such.weight"
        moments[name] = torch.zeros(1)
    else:
        moments[name] = moments[name][:, 1:]
    with pytest.raises(UserError, match=name):
        load_optimizer(optimizer, modules, moments)


@pytest.mark.parametrize("updates", [1, 2, 30])
def test_the_average_is_a_weighted_sum_of_all_weights(updates):
    """Weights of the power function: w_i = ((i + 1)^(g + 1) - i^(g + 1)) / n^(g + 1)."""
    module = nn.Linear(4, 3)
    ema = PowerEMA(module, relative_std=0.1)
    gamma = ema_gamma(0.1)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for step in range(updates):
        value = normal(step, 3, 4).float()
        with torch.no_grad():
            module.weight.copy_(value)
        ema.update(module, step)
        weight = ((step + 1) ** (gamma + 1) - step ** (gamma + 1)) / updates ** (gamma + 1)
        expected += weight * value.double()
    # Thirty float32 interpolations.
    torch.testing.assert_close(ema.weights["weight"].double(), expected, rtol=0, atol=1e-5)


def test_the_average_of_bf16_weights_is_kept_in_float32():
    module = nn.Linear(4, 3).bfloat16()
    ema = PowerEMA(module, relative_std=0.1)
    ema.update(module, 0)
    assert ema.weights["weight"].dtype == torch.float32
