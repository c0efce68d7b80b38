"""Exercises of tutorial 01: noise, scores and the perfect denoiser."""

import torch

from cosmos_ref.exercises.checking import exercise


@exercise(
    "01.mixture_denoiser",
    en="The weight of blob m at x is w_m exp(-|x - mu_m|^2 / (2 (s^2 + sigma^2))), over the sum of all.",
    pt="O peso da mancha m em x é w_m exp(-|x - mu_m|^2 / (2 (s^2 + sigma^2))), sobre a soma de todos.",
)
def mixture_denoiser(fn, case):
    """It climbs the noisy density: D = x + sigma^2 grad ln p, the gradient taken by PyTorch."""
    blobs, coordinates = case.whole("M", 1, 3), case.whole("K", 1, 2)
    x = case.numbers("x", case.whole("B", 1, 2), coordinates, low=-32, high=32)
    sigma, std = case.sigma("sigma", 0.05, 20.0), case.number("std", 0.125, 2.0)
    weights, means = case.weights("weights", blobs), case.numbers("means", blobs, coordinates)
    variance = sigma**2 + std**2
    place = x.clone().requires_grad_()
    log_terms = torch.log(weights) - ((place[:, None] - means) ** 2).sum(dim=2) / (2 * variance)
    (slope,) = torch.autograd.grad(torch.logsumexp(log_terms, dim=1).sum(), place)
    yours = fn(x.clone(), sigma, weights, means, std)
    en = pt = None
    if isinstance(yours, torch.Tensor) and yours.isnan().any():
        en = "Far from every blob all exponentials are zero, and 0 / 0 is nothing: torch.softmax knows how to avoid it."
        pt = "Longe de todas as manchas as exponenciais são zero, e 0 / 0 não é nada: torch.softmax sabe como evitá-lo."
    elif blobs == 1:
        en = "With one blob go from its mean towards x, by the share that s^2 has in s^2 + sigma^2."
        pt = "Com uma só mancha, vá da sua média em direção a x, na proporção de s^2 em s^2 + sigma^2."
    case.close(yours, x + sigma**2 * slope, en=en, pt=pt)


@exercise(
    "01.score_from_denoiser",
    en="The score points from x towards D. How does its length depend on sigma?",
    pt="O escore aponta de x para D. Como depende de sigma o seu comprimento?",
)
def score_from_denoiser(fn, case):
    """Tweedie's formula."""
    x, D, sigma = case.number("x"), case.number("D"), case.sigma("sigma")
    case.close(fn(x, D, sigma), (D - x) / sigma**2)


@exercise(
    "01.denoised_from_noise",
    en="x is the clean sample plus sigma times the unit noise. Solve for the clean sample.",
    pt="x é a amostra limpa mais sigma vezes o ruído unitário. Resolva para a amostra limpa.",
)
def denoised_from_noise(fn, case):
    """What noise was added is taken away again."""
    clean, n, sigma = case.number("x0"), case.number("n"), case.sigma("sigma")
    case.close(fn(clean + sigma * n, n, sigma), clean)
