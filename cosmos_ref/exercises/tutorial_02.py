"""Exercises of tutorial 02: preconditioning and the loss, every term earned."""

import torch

from cosmos_ref.equations import edm, forms, losses
from cosmos_ref.exercises.checking import exercise


@exercise(
    "02.loss_weight",
    en="The weight must undo c_out twice: the error is squared, so its factor is c_out squared.",
    pt="O peso tem de desfazer c_out duas vezes: o erro está ao quadrado, logo o seu fator é c_out ao quadrado.",
)
def loss_weight(fn, case):
    """The weight times c_out squared is one."""
    sigma, sigma_data = case.sigma("sigma"), case.sigma("sigma_data", 0.05, 2.0)
    case.close(fn(sigma, sigma_data), 1 / edm.c_out(sigma, sigma_data.item()) ** 2)


@exercise(
    "02.best_logvar",
    en="Set the derivative of E e^-u + u by u to zero: how large is e^u there?",
    pt="Iguale a zero a derivada de E e^-u + u em u: quanto vale e^u nesse ponto?",
)
def best_logvar(fn, case):
    """The answer is the logarithm of the weighted error, and a step either way makes the loss larger."""
    weighted_error = case.sigma("E", 1e-3, 1e3)
    u = fn(weighted_error)
    case.close(u, torch.log(weighted_error))

    def loss(logvar):
        return losses.uncertainty_weighted(weighted_error, torch.ones_like(weighted_error), logvar)

    case.holds(loss(u) < torch.minimum(loss(u - 0.1), loss(u + 0.1)), "loss(u) < loss(u ± 0.1)")


@exercise(
    "02.noise_weight",
    en="The noise estimate is (x - D) / sigma, so its error is that of D divided by -sigma. Square that.",
    pt="A estimativa do ruído é (x - D) / sigma, logo o seu erro é o de D dividido por -sigma. Eleve isso ao quadrado.",
)
def noise_weight(fn, case):
    """With this weight the error of the noise estimate is the weighted error of D, for any data, noise and miss."""
    sigma, sigma_data = case.sigma("sigma"), case.sigma("sigma_data", 0.05, 2.0)
    x0, n, D = torch.zeros_like(sigma), case.number("n"), torch.ones_like(sigma)
    error = forms.noise_estimate(D[None], (x0 + sigma * n)[None], sigma[None])[0] - n
    case.close(fn(sigma, sigma_data), edm.loss_weight(sigma, sigma_data.item()) * (D - x0) ** 2 / error**2)
